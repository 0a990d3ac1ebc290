"""Random changes of the private samples of a step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_student.training.own_code import OwnCodeError
from edgekd.wire.order import mix

Samples = npt.NDArray[Any]
Augment = Callable[[Samples, np.random.Generator], Samples]
"""A function of stored samples [B, ...], uint8 or float32, and a generator. It returns an array of the same shape and type."""

_PAD = 8  # a border of 1/8 of the side: 4 of 32 pixels


def crop_flip(samples: Samples, random: np.random.Generator) -> Samples:
    """Add a black border, crop to the former size at a random place, and mirror half of the images [B, C, H, W].

    The border is 1/8 of the side (He et al., "Deep Residual Learning", section 4.2: 4 of 32 pixels).
    """
    count, _, height, width = samples.shape
    top, left = height // _PAD, width // _PAD
    padded = np.pad(samples, ((0, 0), (0, 0), (top, top), (left, left)))
    changed = np.empty_like(samples)
    tops, lefts = random.integers(0, 2 * top + 1, count), random.integers(0, 2 * left + 1, count)
    is_mirrored: npt.NDArray[np.bool_] = np.less(random.random(count), 0.5)
    for row in range(count):
        crop = padded[row, :, tops[row] : tops[row] + height, lefts[row] : lefts[row] + width]
        changed[row] = crop[..., ::-1] if is_mirrored[row] else crop
    return changed


AUGMENTS: dict[str, Augment | None] = {"none": None, "crop-flip": crop_flip}


def check_augment(augment: Augment | None, shape: tuple[int, ...], name: str) -> None:
    """Raise ValueError if crop-flip is to change samples that are not images."""
    if augment is crop_flip and len(shape) != 3:
        raise ValueError(f"--augment is crop-flip, but samples of {name} have shape {list(shape)}, must be images [C, H, W]")


def augmented(augment: Augment, samples: Samples, *, seed: int, cycle: int, part: int) -> Samples:
    """Return changed samples. The random numbers depend on seed, cycle and part of the batch only.

    Raises OwnCodeError if a function of the user fails, or returns another shape or type.
    """
    random = np.random.default_rng([mix(mix(seed) + cycle) >> 1, part])
    before = (samples.shape, samples.dtype)
    try:
        changed = np.asarray(augment(samples, random))
    except Exception as error:  # the user's code may raise anything
        raise OwnCodeError(f"--augment failed in cycle {cycle}: {type(error).__name__}: {error}") from error
    if (changed.shape, changed.dtype) != before:
        raise OwnCodeError(
            f"--augment returned {changed.dtype} {list(changed.shape)} in cycle {cycle}, must be {before[1]} {list(before[0])}"
        )
    return changed
