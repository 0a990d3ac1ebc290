"""Converts stored pixels to model inputs."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def to_input(images: npt.NDArray[np.uint8]) -> "torch.Tensor":
    """Convert uint8 [B, C, H, W] to float32 [B, C, H, W] in [-1, 1], the input of every model here."""
    import torch  # local, so that a program without a model does not spend a second on the import

    assert images.dtype == np.uint8
    # torch warns about read-only memory, even if it only reads.
    source = images if images.flags.writeable else images.copy()
    return torch.from_numpy(source).to(torch.float32).div_(127.5).sub_(1.0)
