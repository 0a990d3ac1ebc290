"""The optimiser step of a shard, also after a worker was killed in the middle of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_training import RECIPE

from edge_student.training.optimizers import OptimizerRule
from edge_student.training.recipe import Recipe
from edge_student.workers import step as step_module
from edge_student.workers.board import Board
from edge_student.workers.shared_model import SharedModel
from edge_student.workers.step import ShardStep, combine_buffers

SHARDS = 2
RECIPES = [RECIPE, replace(RECIPE, rule=OptimizerRule(name="adamw", weight_decay=0.1), clip_grad=0.5, lrs=(0.1, 0.2, 0.3))]
CYCLE = 2


class Killed(Exception):
    """Stands for a SIGKILL."""


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return request.param


def fresh(recipe: Recipe = RECIPE) -> tuple[SharedModel, Board]:
    """Return a model of 130 parameters with gradients and states of the optimizer, in chunks of 16 elements."""
    torch.manual_seed(1)
    model = SharedModel(torch.nn.Linear(12, 10), SHARDS, 16, state_names=recipe.rule.state_names)
    generator = np.random.default_rng(2)
    model.arrays["gradients"][:] = generator.normal(size=model.arrays["gradients"].shape)
    for name in recipe.rule.state_names:
        model.arrays[name][:] = np.abs(generator.normal(size=model.arrays[name].shape))
    model.arrays["has_gradient"][:] = 1
    return model, Board(SHARDS)


def steps(model: SharedModel, board: Board, recipe: Recipe = RECIPE) -> list[ShardStep]:
    return [ShardStep(model, n, board.progress_of(n), recipe) for n in range(SHARDS)]


def results(model: SharedModel, recipe: Recipe) -> list[np.ndarray]:
    return [model.arrays[name].copy() for name in ("parameters", *recipe.rule.state_names)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "CHUNK", 16)


@pytest.fixture
def expected(recipe: Recipe) -> list[np.ndarray]:
    model, board = fresh(recipe)
    for each in steps(model, board, recipe):
        each.run(CYCLE)
    return results(model, recipe)


def test_all_slices_together_are_the_step_of_torch_on_the_sum(recipe: Recipe, expected: list[np.ndarray]) -> None:
    model, _ = fresh(recipe)
    parameter = torch.nn.Parameter(torch.from_numpy(model.arrays["parameters"].copy()))
    if recipe.rule.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD([parameter], lr=recipe.lr, momentum=0.9)
        state = {"momentum_buffer": model.arrays["momentum"]}
    else:
        optimizer = torch.optim.AdamW([parameter], lr=recipe.lrs[CYCLE], weight_decay=0.1)
        state = {name: model.arrays[name] for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter]["step"] = torch.tensor(float(CYCLE))
    for name, values in state.items():
        optimizer.state[parameter][name] = torch.from_numpy(values.copy())
    parameter.grad = torch.from_numpy(model.arrays["gradients"].sum(axis=0))
    if recipe.clip_grad is not None:
        assert torch.nn.utils.clip_grad_norm_([parameter], recipe.clip_grad) > recipe.clip_grad
    optimizer.step()
    assert np.allclose(expected[0], parameter.detach().numpy(), rtol=1e-5, atol=1e-7)


KILLS = [(name, number) for name in ("_keep", "_update") for number in range(4)] + [("_restore", 0)]


@pytest.mark.parametrize(("name", "number"), KILLS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_step_that_was_killed_is_completed_by_another_worker(
    name: str, when: str, number: int, recipe: Recipe, expected: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`number` is that of the call of the method `name` before or after which the worker is killed."""
    model, board = fresh(recipe)
    calls = 0
    original = getattr(ShardStep, name)

    def half_done(self: ShardStep, start: int, stop: int, *more: Any) -> None:
        for array in ("parameters", *recipe.rule.state_names):
            model.arrays[array][start : start + (stop - start) // 2] = np.nan
        raise Killed

    def dies(self: ShardStep, start: int, stop: int, *more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls <= number or when == "after":
            original(self, start, stop, *more)
        if calls > number:
            if name == "_update" and when == "before":
                half_done(self, start, stop)
            raise Killed

    for n in range(SHARDS):
        killed = [("_update", half_done)] if name == "_restore" else []  # a chunk is restored after a first kill only
        for method, replacement in [*killed, (name, dies)]:
            calls = 0
            with monkeypatch.context() as patch:
                patch.setattr(ShardStep, method, replacement)
                with pytest.raises(Killed):
                    steps(model, board, recipe)[n].run(CYCLE)
        steps(model, board, recipe)[n].run(CYCLE)
    for found, wanted in zip(results(model, recipe), expected, strict=True):
        assert np.array_equal(found, wanted)


def test_a_parameter_without_a_gradient_is_not_stepped() -> None:
    model, board = fresh()
    before = model.arrays["parameters"].copy()
    model.arrays["has_gradient"][:, 1] = 0  # the bias
    for each in steps(model, board):
        each.run(0)
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
