"""The rollback state: buffers and random generators as they were at the end of the last complete cycle."""

import re
from collections.abc import Iterator

import pytest
import torch

from edge_student.training.rollback import RollbackState, generator_states, restore_generators


def student() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout())


@pytest.fixture(autouse=True)
def _same_generator_after_the_test() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def test_buffers_have_their_full_names_and_are_copies() -> None:
    model = student()
    state = RollbackState(model, "cpu")
    assert list(state.buffers) == ["0.running_mean", "0.running_var", "0.num_batches_tracked"]
    assert list(RollbackState(model[0], "cpu").buffers) == ["running_mean", "running_var", "num_batches_tracked"]  # type: ignore[index]
    model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert state.buffers["0.running_mean"].tolist() == [0.0, 0.0]
    assert state.buffers["0.num_batches_tracked"].item() == 0


def test_save_copies_the_buffers_of_now() -> None:
    model = student()
    state = RollbackState(model, "cpu")
    model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    state.save()
    assert state.buffers["0.running_mean"].tolist() == pytest.approx([0.2, 0.4])  # momentum 0.1 of the means 2 and 4
    model(torch.zeros(2, 2))
    assert state.buffers["0.num_batches_tracked"].item() == 1


def test_a_buffer_that_was_replaced_is_saved_too() -> None:
    model = student()
    state = RollbackState(model, "cpu")
    model[0].running_mean = torch.tensor([5.0, 6.0])  # type: ignore[index]
    state.save()
    assert state.buffers["0.running_mean"].tolist() == [5.0, 6.0]


def test_restored_generators_repeat_the_same_numbers() -> None:
    torch.manual_seed(3)
    state = RollbackState(student(), "cpu")
    torch.rand(4)
    state.save()
    expected = torch.rand(4)
    restore_generators(state.generators, "cpu")
    assert torch.equal(torch.rand(4), expected)
    assert not torch.equal(torch.rand(4), expected)


def test_only_states_of_devices_in_use_matter() -> None:
    states = generator_states("cpu")
    assert list(states) == ["cpu"]
    restore_generators({**states, "cuda": torch.zeros(1)}, "cpu")
    with pytest.raises(ValueError, match="the random generator state is missing"):
        restore_generators({"cuda": states["cpu"]}, "cpu")


@pytest.mark.parametrize("state", [torch.zeros(3, dtype=torch.uint8), torch.zeros(3), 7])
def test_an_invalid_state_is_a_value_error(state: object) -> None:
    with pytest.raises(ValueError, match=re.escape("the random generator state of cpu is invalid: ")):
        restore_generators({"cpu": state}, "cpu")  # type: ignore[dict-item]
