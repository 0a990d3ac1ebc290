"""Yield points between layers: position, thread, and bit-identical training results."""

import threading
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from small_training import PRIVATE, PUBLIC, RECIPE, TEST, Boundaries, Logits, student
from torch import nn

from edge_student.training.team_trainer import TeamTrainer
from edge_student.training.torch_team import TorchTeam
from edge_student.training.yield_points import (
    GAP_S,
    NO_YIELD_POINTS,
    YieldPoints,
    every_layer,
    find_yield_points,
    interruptible,
    select_spaced,
)
from edgekd.data.models import save_weights
from scheduler.model.state import Task


class Block(nn.Module):
    """A model with nested layers, a layer used twice, one that works in place, and one that returns several tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.ReLU(inplace=True)
        self.inner = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.recurrent = nn.GRU(32, 8, batch_first=True)
        self.last = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inside = self.twice(self.norm(self.conv(images)))
        inside = self.twice(self.inner(inside))
        sequence, _ = self.recurrent(inside.transpose(1, 2).flatten(2))
        answer: torch.Tensor = self.last(sequence.flatten(1))
        return answer


FORWARD = ["conv", "norm", "twice", "inner.0", "inner.1", "twice", "recurrent", "last"]


def block() -> Block:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return Block()


def one_step(model: nn.Module) -> None:
    model(torch.ones(2, 1, 8, 8)).sum().backward()


class Metronome:
    """A clock that advances by `step_s` seconds at each reading."""

    def __init__(self, step_s: float) -> None:
        self.step_s, self.now = step_s, 0.0

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def reached(model: nn.Module, points: YieldPoints) -> tuple[int, int, set[int]]:
    """Return the number of yield points reached in the forward and in the backward of a step, and the threads."""
    threads: list[int] = []
    with interruptible(model, points, lambda: threads.append(threading.get_ident())):
        loss = model(torch.ones(2, 1, 8, 8)).sum()
        forward = len(threads)
        loss.backward()
    return forward, len(threads) - forward, set(threads)


def test_every_layer_is_reached_in_both_passes_by_the_thread_that_trains() -> None:
    model = block()
    assert every_layer(model).forward == set(FORWARD), "modules that hold others are no layers"
    assert reached(model, every_layer(model)) == (len(FORWARD), len(FORWARD), {threading.get_ident()})


def test_only_the_points_asked_for_are_reached() -> None:
    assert reached(block(), YieldPoints(forward=frozenset({"twice"}), backward=frozenset({"conv"})))[:2] == (2, 1)
    assert reached(block(), NO_YIELD_POINTS)[:2] == (0, 0)


def test_afterwards_nothing_is_left_on_the_model(tmp_path: Path) -> None:
    model = block()
    names = list(model.state_dict())
    calls: list[None] = []
    with interruptible(model, every_layer(model), lambda: calls.append(None)):
        assert list(model.state_dict()) == names
        copy = deepcopy(model)
        save_weights(model, tmp_path / "a.safetensors")
    one_step(model)
    assert calls == []
    assert list(copy.state_dict()) == names
    with pytest.raises(ZeroDivisionError), interruptible(model, every_layer(model), lambda: 1 // 0):
        one_step(model)
    one_step(model)


@pytest.mark.parametrize("points", [YieldPoints(forward=frozenset({"last"}), backward=frozenset()), every_layer(block())])
def test_an_exception_between_layers_leaves_the_pass(points: YieldPoints) -> None:
    def fail() -> None:
        raise ConnectionError("gave up")

    model = block()
    with pytest.raises(ConnectionError, match="gave up"), interruptible(model, points, fail):
        one_step(model)


def test_an_exception_in_a_backward_leaves_it_unchanged() -> None:
    def fail() -> None:
        raise ConnectionError("gave up")

    model = block()
    with interruptible(model, YieldPoints(forward=frozenset(), backward=frozenset({"inner.1"})), fail):
        loss = model(torch.ones(2, 1, 8, 8)).sum()
        with pytest.raises(ConnectionError, match="gave up"):
            loss.backward()


def test_points_lie_apart_in_time() -> None:
    visits = [("a", 0.0), ("b", 0.6 * GAP_S), ("c", 1.1 * GAP_S), ("d", 1.9 * GAP_S), ("e", 2.0 * GAP_S), ("f", 9.0 * GAP_S)]
    assert select_spaced(visits) == {"c", "f"}
    assert select_spaced([]) == select_spaced(visits[:2]) == frozenset(), "a step that is soon over is not interrupted"


def test_a_layer_that_is_called_all_the_time_is_no_place() -> None:
    visits = [("cell", number * GAP_S / 100) for number in range(1000)]
    assert select_spaced(visits) == frozenset()
    assert select_spaced([*visits, ("last", visits[-1][1])]) == {"last"}


def test_measuring_finds_the_points_of_both_passes() -> None:
    model = block()
    found = find_yield_points(model, lambda: one_step(model), clock=Metronome(0.6 * GAP_S))
    # Two layers take longer than GAP_S, so every second layer is a yield point, in the order of each pass.
    assert found.forward == {"twice", "inner.1", "recurrent"}
    assert found.backward == {"twice", "inner.0", "norm"}
    assert reached(model, NO_YIELD_POINTS)[:2] == (0, 0), "what measured is gone"


class Resizing(Boundaries):
    """A schedule that sets the team to the next of `sizes` between any two layers and records the previous size."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes, self.found, self.team = sizes, [], TorchTeam()

    def between_layers(self) -> None:
        self.found.append(self.team.size())
        self.team.resize(self.sizes[len(self.found) % len(self.sizes)])
        self.team.exercise()


def trained(schedule: Boundaries, model: nn.Module, points: YieldPoints) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    trainer = TeamTrainer(student=model, private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    trainer._yield_points = points
    trainer.train(3, schedule, Logits(), lambda done: None)
    torch.set_num_threads(1)
    return trainer.student.state_dict()


@pytest.mark.parametrize("make", [student, block], ids=["cnn", "block"])
def test_interruptions_change_no_bit_of_the_weights(make: Callable[[], nn.Module]) -> None:
    schedule = Resizing(1)
    interrupted = trained(schedule, make(), every_layer(make()))
    undisturbed = trained(Boundaries(), make(), NO_YIELD_POINTS)
    assert len(schedule.found) >= 3 * 2 * len(every_layer(make()).forward)
    assert all(torch.equal(interrupted[name], tensor) for name, tensor in undisturbed.items())


def test_a_team_sized_between_two_layers_keeps_its_size_in_both_passes() -> None:
    schedule = Resizing(1, 2)
    trained(schedule, block(), every_layer(block()))
    assert schedule.tasks == [Task.FORWARD, Task.BACKWARD] * 3
    assert schedule.found == ([1, 2] * len(schedule.found))[: len(schedule.found)]


def test_a_trainer_asks_everywhere_until_its_warm_up_has_measured() -> None:
    trainer = TeamTrainer(student=student(), private=PRIVATE, public=PUBLIC, recipe=RECIPE)
    assert trainer._yield_points == every_layer(trainer.student)
    trainer.warm_up(10)
    assert trainer._yield_points.forward <= every_layer(trainer.student).forward
    assert reached_by_accuracy(trainer) == 0


def reached_by_accuracy(trainer: TeamTrainer) -> int:
    schedule = Resizing(1)
    trainer.train(1, schedule, Logits(), lambda done: None)
    before = len(schedule.found)
    trainer.accuracy(TEST)
    return len(schedule.found) - before
