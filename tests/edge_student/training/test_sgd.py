"""The optimiser compared with torch.optim.SGD, and modules that it must not import."""

import subprocess
import sys

import pytest
import torch

from edge_student.training.sgd import Sgd


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_those_of_torch_bit_by_bit(momentum: float) -> None:
    models = []
    for make in (lambda p: Sgd(p, lr=0.1, momentum=momentum), lambda p: torch.optim.SGD(p, lr=0.1, momentum=momentum)):
        torch.manual_seed(3)
        model = torch.nn.ModuleList(
            [torch.nn.Linear(5, 7), torch.nn.Linear(7, 2), torch.nn.Linear(4, 4)]
        )  # the last layer is unused
        optimizer = make(list(model.parameters()))
        for _ in range(5):
            optimizer.zero_grad()
            model[1](torch.tanh(model[0](torch.randn(6, 5)))).square().mean().backward()
            optimizer.step()
        models.append(model)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_training_does_not_import_the_compiler() -> None:
    script = """
import sys, torch
from edge_student.training.sgd import Sgd
layer = torch.nn.Linear(2, 2)
optimizer = Sgd(layer.parameters(), lr=0.1, momentum=0.9)
layer(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
