"""The optimiser step of a shard, also after a worker was killed in the middle of it."""

import numpy as np
import pytest
import torch
from small_training import RECIPE

from edge_student.workers import step as step_module
from edge_student.workers.board import Board
from edge_student.workers.shared_model import SharedModel
from edge_student.workers.step import ShardStep, combine_buffers

SHARDS = 2


class Killed(Exception):
    """Stands for a SIGKILL."""


def fresh() -> tuple[SharedModel, Board]:
    """Return a model of 130 parameters with gradients and momentum, in chunks of 16 elements."""
    torch.manual_seed(1)
    model = SharedModel(torch.nn.Linear(12, 10), SHARDS, 16)
    generator = np.random.default_rng(2)
    model.arrays["gradients"][:] = generator.normal(size=model.arrays["gradients"].shape)
    model.arrays["momentum"][:] = generator.normal(size=model.arrays["momentum"].shape)
    model.arrays["has_gradient"][:] = 1
    return model, Board(SHARDS)


def steps(model: SharedModel, board: Board) -> list[ShardStep]:
    return [ShardStep(model, n, board.progress_of(n), RECIPE) for n in range(SHARDS)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "CHUNK", 16)


@pytest.fixture
def expected() -> tuple[np.ndarray, np.ndarray]:
    model, board = fresh()
    for each in steps(model, board):
        each.run()
    return model.arrays["parameters"].copy(), model.arrays["momentum"].copy()


def test_all_slices_together_are_the_step_of_torch_on_the_sum(expected: tuple[np.ndarray, np.ndarray]) -> None:
    model, _ = fresh()
    parameter = torch.nn.Parameter(torch.from_numpy(model.arrays["parameters"].copy()))
    optimizer = torch.optim.SGD([parameter], lr=RECIPE.lr, momentum=RECIPE.momentum)
    optimizer.state[parameter]["momentum_buffer"] = torch.from_numpy(model.arrays["momentum"].copy())
    parameter.grad = torch.from_numpy(model.arrays["gradients"].sum(axis=0))
    optimizer.step()
    assert np.allclose(expected[0], parameter.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["_keep", "_restore", "_update"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(4))
def test_a_step_that_was_killed_is_completed_by_another_worker(
    name: str, when: str, number: int, expected: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, board = fresh()
    calls = 0
    original = getattr(ShardStep, name)

    def dies(self: ShardStep, start: int, stop: int) -> None:
        nonlocal calls
        calls += 1
        if calls <= number:
            original(self, start, stop)
            return
        if when == "after":
            original(self, start, stop)
        elif name == "_update":
            model.arrays["parameters"][start : start + (stop - start) // 2] = np.nan  # half done
            model.arrays["momentum"][start : start + (stop - start) // 2] = np.nan
        raise Killed

    for n in range(SHARDS):
        with monkeypatch.context() as patch:
            patch.setattr(ShardStep, name, dies)
            try:
                steps(model, board)[n].run()
            except Killed:
                calls = -100
        steps(model, board)[n].run()
    assert np.array_equal(model.arrays["parameters"], expected[0])
    assert np.array_equal(model.arrays["momentum"], expected[1])


def test_a_parameter_without_a_gradient_is_not_stepped() -> None:
    model, board = fresh()
    before = model.arrays["parameters"].copy()
    model.arrays["has_gradient"][:, 1] = 0  # the bias
    for each in steps(model, board):
        each.run()
    assert np.array_equal(model.arrays["parameters"][120:], before[120:])
    assert not np.array_equal(model.arrays["parameters"][:120], before[:120])


def test_buffers_are_averaged_by_rows_and_constants_stay_exact() -> None:
    student = torch.nn.BatchNorm1d(2)
    student.register_buffer("constant", torch.tensor([0.1, float("nan"), float("inf")]))
    model = SharedModel(student, SHARDS, 16)
    rows = model.arrays["shard_buffers"]
    rows[:] = model.arrays["buffers"]
    rows[0, 0], rows[1, 0] = 1.0, 4.0
    model.arrays["other_shard_buffers"][:] = model.arrays["other_buffers"]
    combine_buffers(model, [1, 2])
    assert float(student.running_mean[0]) == pytest.approx(3.0)
    assert float(student.constant[0]) == float(np.float32(0.1))
    assert np.isnan(float(student.constant[1]))
    assert np.isinf(float(student.constant[2]))
