"""A student with many weights for each of its outputs."""

import math
from itertools import pairwise
from typing import Any

import torch


def make(num_classes: int, input_shape: tuple[int, int, int]) -> Any:
    """Return the student, with more than 300 weights for each output of a row."""
    sizes = (math.prod(input_shape), 500, 500, 500, num_classes)
    layers = [torch.nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes)]
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)
