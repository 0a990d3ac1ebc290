"""Whether a model gives the same outputs for a batch in shards as for the whole batch."""

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
    model = copy.deepcopy(student).eval()
    inputs = torch.rand((_ROWS, *input_shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        whole = model(inputs)
        parts = torch.empty_like(whole)
        for first in range(2):
            parts[first::2] = model(inputs[first::2])
    if not torch.allclose(whole, parts, rtol=_TOLERANCE, atol=_TOLERANCE * float(whole.abs().max())):
        raise ModelNotDivisible("an output of the model depends on the other rows of its batch")
