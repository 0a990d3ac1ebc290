"""The optimizers compared with those of torch.optim, and modules that they must not import."""

import subprocess
import sys
from collections.abc import Callable, Iterable

import pytest
import torch

from edge_student.training.optimizers import Optimizer, OptimizerRule

LR = 0.1
CASES: list[tuple[OptimizerRule, Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]]] = [
    (OptimizerRule(momentum=0.0), lambda p: torch.optim.SGD(p, lr=LR)),
    (OptimizerRule(), lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9)),
    (OptimizerRule(weight_decay=0.01), lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, weight_decay=0.01)),
    (OptimizerRule(name="adam", weight_decay=0.01), lambda p: torch.optim.Adam(p, lr=LR, weight_decay=0.01, foreach=False)),
    (OptimizerRule(name="adamw", weight_decay=0.01), lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.01, foreach=False)),
]


def model_of(seed: int) -> torch.nn.ModuleList:
    """Return three layers; the last one is not used."""
    torch.manual_seed(seed)
    return torch.nn.ModuleList([torch.nn.Linear(5, 7), torch.nn.Linear(7, 2), torch.nn.Linear(4, 4)])


def differentiate(model: torch.nn.ModuleList) -> None:
    model[1](torch.tanh(model[0](torch.randn(6, 5)))).square().mean().backward()


@pytest.mark.parametrize(("rule", "make"), CASES)
@pytest.mark.parametrize("max_norm", [None, 0.01])
def test_steps_are_those_of_torch_bit_by_bit(
    rule: OptimizerRule, make: Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer], max_norm: float | None
) -> None:
    ours = model_of(3)
    optimizer = Optimizer(ours.parameters(), rule)
    for step in range(5):
        optimizer.zero_grad()
        differentiate(ours)
        if max_norm is not None:
            optimizer.clip(max_norm)
        optimizer.step(lr=LR, num_steps=step)
    theirs = model_of(3)
    reference = make(theirs.parameters())
    for _ in range(5):
        reference.zero_grad()
        differentiate(theirs)
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rule", [OptimizerRule(), OptimizerRule(name="adamw")])
def test_a_restored_state_goes_on_with_the_same_bits(rule: OptimizerRule) -> None:
    def train(model: torch.nn.ModuleList, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            differentiate(model)
            optimizer.step(lr=LR, num_steps=step)

    whole, half = model_of(3), model_of(3)
    train(whole, Optimizer(whole.parameters(), rule), range(6))
    first = Optimizer(half.parameters(), rule)
    train(half, first, range(3))
    second = Optimizer(half.parameters(), rule)
    second.state = first.state
    assert set(second.state) == set(rule.state_names)
    assert all(set(states) == {0, 1, 2, 3} for states in second.state.values())  # none for the unused layer
    train(half, second, range(3, 6))
    for one, other in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_training_does_not_import_the_compiler(name: str) -> None:
    script = f"""
import sys, torch
from edge_student.training.optimizers import Optimizer, OptimizerRule
layer = torch.nn.Linear(2, 2)
optimizer = Optimizer(layer.parameters(), OptimizerRule(name="{name}"))
layer(torch.ones(1, 2)).sum().backward()
optimizer.clip(1.0)
optimizer.step(lr=0.1, num_steps=0)
optimizer.zero_grad()
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
