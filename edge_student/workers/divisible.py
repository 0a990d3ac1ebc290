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


_OUTPUTS_PER_WEIGHT = 0.4
"""Outputs of convolutions per weight of theirs from which channels_last is faster.

oneDNN converts activations to a format of its own, or weights if the activations are in channels_last. Measured with one thread:
resnet18 with 24 rows takes 1.12 of the time at 32 pixels (0.1 outputs per weight) and 0.97 at 64 (0.4); mobilenet_v3_small 0.58.
"""


def prefers_channels_last(student: nn.Module, input_shape: tuple[int, ...], num_rows: int) -> bool:
    """Return whether a shard of `num_rows` is faster in the memory format channels_last, with the same outputs.

    The answer depends on the model and on shapes only, so that runs are repeatable. A model that calls `view` may not allow it.
    """
    model, inputs = _probe(student, input_shape)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    num_outputs = 0

    def count(module: nn.Module, args: object, outputs: torch.Tensor) -> None:
        nonlocal num_outputs
        num_outputs += outputs[0].numel()

    hooks = [convolution.register_forward_hook(count) for convolution in convolutions]
    with torch.inference_mode():
        whole = model(inputs)
        for hook in hooks:
            hook.remove()
        num_weights = sum(convolution.weight.numel() for convolution in convolutions)
        if not num_weights or num_outputs * num_rows < _OUTPUTS_PER_WEIGHT * num_weights:
            return False
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
