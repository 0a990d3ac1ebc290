"""What a model allows: batches in shards, and torch's memory format channels_last."""

import copy

import torch
from torch import nn

from edge_student.workers.shared_model import ModelNotDivisible

_ROWS = 4
_TOLERANCE = 1e-3


def check_divisible(student: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Raise ModelNotDivisible if the outputs of a row depend on the other rows of the batch, in evaluation mode.

    In training, batch normalisation depends on them too: each shard is normalised by itself (Hoffer, Hubara and Soudry, "Train
    longer, generalize better", 2017, call it ghost batch normalisation). That is intended and not checked here.
    """
    model, inputs = _probe(student, input_shape)
    with torch.inference_mode():
        whole = model(inputs)
        parts = torch.empty_like(whole)
        for first in range(2):
            parts[first::2] = model(inputs[first::2])
    if not _are_equal(whole, parts):
        raise ModelNotDivisible("an output of the model depends on the other rows of its batch")


def allows_channels_last(student: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Return whether the model gives the same outputs in the memory format channels_last. One that calls `view` may raise."""
    model, inputs = _probe(student, input_shape)
    with torch.inference_mode():
        whole = model(inputs)
        try:
            found = model.to(memory_format=torch.channels_last)(inputs.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return False
    return _are_equal(whole, found)


def _probe(student: nn.Module, input_shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of the model in evaluation mode, and inputs in [-1, 1] that are always the same."""
    inputs = torch.rand((_ROWS, *input_shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return copy.deepcopy(student).eval(), inputs


def _are_equal(expected: torch.Tensor, found: torch.Tensor) -> bool:
    return torch.allclose(expected, found, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max()))
