"""Checks whether a model can be trained in shards, and whether a team or torch's memory format channels_last is faster for it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

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


_TEAM_BELOW = 0.2
"""Outputs per weight, of one shard, below which a team of threads is faster on a quiet machine (docs/decisions/029).

Every shard reads all weights and writes a gradient for each, where a team divides the weights. Two shards of 24 rows took, of the
time of a team of two threads: an MLP of 4 million weights (0.01 outputs per weight) 1.1 and 1.2, resnet18 at 32 pixels (0.1) 1.02
to 1.15 and at 64 pixels (0.4) 1.0, a ViT (8) 0.77.
"""

_TEAM_BELOW_OF_CONVOLUTIONS = 0.06
"""The same for models that are faster in channels_last, in outputs of convolutions per weight of the model.

Such a model gains much from one thread per process, unless its last layer has most of the weights. Relative to a team, two shards
took: mobilenet_v3_small with 7,800 classes (0.08 outputs per weight) 0.54 and with 39,000 (0.02) 1.3, cnn with 3,900 classes (0.22)
0.92 and with 19,500 (0.05) 1.2.
"""


def team_is_faster(student: nn.Module, input_shape: tuple[int, ...], num_rows: int) -> bool:
    """Return whether one team of threads trains faster than shards of `num_rows` rows each, because each weight makes few outputs.

    The answer depends on the model, on shapes and on the number of shards only, so that runs are repeatable.
    """
    model, inputs = _probe(student, input_shape)
    num_weights = sum(parameter.numel() for parameter in model.parameters())
    if prefers_channels_last(student, input_shape, num_rows):
        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        return _num_outputs(model, convolutions, inputs) * num_rows < _TEAM_BELOW_OF_CONVOLUTIONS * num_weights
    layers = [module for module in model.modules() if any(part.dim() > 1 for part in module.parameters(recurse=False))]
    return _num_outputs(model, layers, inputs) * num_rows < _TEAM_BELOW * num_weights


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
    num_weights = sum(convolution.weight.numel() for convolution in convolutions)
    if not num_weights or _num_outputs(model, convolutions, inputs) * num_rows < _OUTPUTS_PER_WEIGHT * num_weights:
        return False
    with torch.inference_mode():
        whole = model(inputs)
        try:
            found = model.to(memory_format=torch.channels_last)(inputs.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return False
    return _are_equal(whole, found)


def _num_outputs(model: nn.Module, layers: Sequence[nn.Module], inputs: torch.Tensor) -> float:
    """Return the number of elements that these layers of `model` output for one row of `inputs`."""
    found = 0

    def count(module: nn.Module, args: object, output: Any) -> None:
        nonlocal found
        found += _num_elements(output)

    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        model(inputs)
    for hook in hooks:
        hook.remove()
    return found / len(inputs)


def _num_elements(output: Any) -> int:
    """Return the number of elements of all tensors in the output of a layer, which may be a tuple or a dict of them."""
    if isinstance(output, torch.Tensor):
        return output.numel()
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return sum(map(_num_elements, parts))


def _probe(student: nn.Module, input_shape: tuple[int, ...]) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of the model in evaluation mode, and inputs in [-1, 1] that are always the same. Raises ModelNotDivisible."""
    inputs = torch.rand((_ROWS, *input_shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    try:
        return copy.deepcopy(student).eval(), inputs
    except Exception as error:  # the user's model may raise anything
        raise ModelNotDivisible(f"the model cannot be copied ({error})") from error


def _are_equal(expected: torch.Tensor, found: torch.Tensor) -> bool:
    return torch.allclose(expected, found, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max()))
