"""A model in shared memory, and which models can be there."""

import math
import threading

import numpy as np
import pytest
import torch
from noisy_student import NoisyStudent

from edge_student.workers.divisible import check_divisible, prefers_channels_last, team_is_faster
from edge_student.workers.shared_model import ModelNotDivisible, SharedModel

SHAPE = (1, 8, 8)


class Tied(torch.nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)
        self.second.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(inputs.flatten(1)))


class Centred(torch.nn.Module):
    """Subtracts the mean of the batch, so that a row's output depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(64, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(inputs.flatten(1) - inputs.flatten(1).mean(0))


class Viewed(torch.nn.Module):
    """Calls `view` on the output of a convolution, which raises in the memory format channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(144, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolution(inputs).view(len(inputs), -1))


def test_the_models_of_all_workers_have_the_same_parameters_and_buffers_of_their_own() -> None:
    student = NoisyStudent()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    model = SharedModel(student, 2, 16)
    first, second = model.load(0), model.load(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    with torch.no_grad():
        next(student.parameters()).fill_(7.0)
        first.features[2].running_mean.fill_(3.0)
        first.features[2].num_batches_tracked.fill_(5)
    assert all(float(next(each.parameters()).detach().min()) == 7.0 for each in (student, first, second))
    assert float(second.features[2].running_mean.max()) == 0.0
    assert int(second.features[2].num_batches_tracked) == 0
    assert float(student.features[2].running_mean.max()) == 0.0


def test_a_tied_weight_stays_one_weight() -> None:
    student = Tied()
    loaded = SharedModel(student, 1, 16).load(0)
    assert loaded.first.weight is loaded.second.weight
    assert student.first.weight.data_ptr() == student.second.weight.data_ptr()


def test_weights_of_convolutions_may_be_in_channels_last_with_the_same_values() -> None:
    student = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    loaded = SharedModel(student, 1, 16, is_channels_last=True).load(0)
    for parameter, expected in zip(loaded.parameters(), before, strict=True):
        assert torch.equal(parameter, expected)
    assert loaded[0].weight.is_contiguous(memory_format=torch.channels_last)
    gradients = SharedModel(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), 2, 16, is_channels_last=True).gradient_views(1)
    assert gradients[0].stride() == loaded[0].weight.stride()


def test_models_that_cannot_be_in_shards_are_refused_with_the_cause() -> None:
    with pytest.raises(ModelNotDivisible, match="depends on the other rows"):
        check_divisible(Centred(), SHAPE)
    check_divisible(NoisyStudent(), SHAPE)
    with pytest.raises(ModelNotDivisible, match="not float32"):
        SharedModel(torch.nn.Linear(2, 2).double(), 1, 16)
    student = torch.nn.Linear(2, 2)
    student.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ModelNotDivisible, match="cannot be sent to another process"):
        SharedModel(student, 1, 16)


def test_a_model_that_calls_view_keeps_its_memory_format() -> None:
    assert not prefers_channels_last(Viewed(), SHAPE, 8)
    assert prefers_channels_last(torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten()), SHAPE, 8)


def test_a_model_with_many_weights_for_few_outputs_keeps_its_memory_format() -> None:
    student = torch.nn.Sequential(torch.nn.Conv2d(1, 40, SHAPE[1]), torch.nn.Flatten(), torch.nn.Linear(40, 10))
    num_weights = SHAPE[1] * SHAPE[2]  # for each of the outputs, one in a row
    assert not prefers_channels_last(student, SHAPE, int(0.4 * num_weights) - 1)
    assert prefers_channels_last(student, SHAPE, int(0.4 * num_weights) + 1)
    assert not prefers_channels_last(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), SHAPE, 1000)


@pytest.mark.parametrize(
    ("student", "num_rows"),
    [
        (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10, bias=False)), 12.8),
        (torch.nn.Sequential(torch.nn.Conv2d(1, 40, SHAPE[1], bias=False), torch.nn.Flatten()), 12.8),
        (torch.nn.Sequential(torch.nn.Flatten(1, 2), torch.nn.GRU(8, 64, bias=False, batch_first=True)), 4.8),
    ],
    ids=["linear", "convolution", "recurrent"],
)
def test_a_team_trains_models_with_many_weights_for_few_outputs(student: torch.nn.Module, num_rows: float) -> None:
    """Limits by hand: 0.2 outputs per weight. One output needs 64 weights, and 24 in the GRU, which outputs 8 steps and a state."""
    assert team_is_faster(student, SHAPE, math.floor(num_rows))
    assert not team_is_faster(student, SHAPE, math.ceil(num_rows))


def test_a_team_trains_a_convolutional_model_whose_last_layer_has_most_weights() -> None:
    """Limit by hand: 0.06 outputs of convolutions per weight, 40 of them in a row, for 207,600 weights."""
    student = torch.nn.Sequential(torch.nn.Conv2d(1, 40, SHAPE[1]), torch.nn.Flatten(), torch.nn.Linear(40, 5000))
    assert prefers_channels_last(student, SHAPE, 311)
    assert team_is_faster(student, SHAPE, 311)
    assert not team_is_faster(student, SHAPE, 312)


def test_a_refused_model_is_unchanged() -> None:
    student = torch.nn.Linear(2, 2).double()
    weight = student.weight.detach().numpy().copy()
    with pytest.raises(ModelNotDivisible):
        SharedModel(student, 1, 16)
    assert np.array_equal(student.weight.detach().numpy(), weight)
