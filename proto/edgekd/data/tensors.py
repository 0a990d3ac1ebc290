"""From stored pixels to the tensors that a model gets."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch


def to_input(images: npt.NDArray[np.uint8]) -> "torch.Tensor":
    """uint8 [B, C, H, W] -> float32 [B, C, H, W] in [-1, 1], what every model here is fed."""
    import torch  # here, so that asking for a data set does not cost a program without a model a second

    assert images.dtype == np.uint8
    # torch warns about memory it may not write to, though it only reads here.
    source = images if images.flags.writeable else images.copy()
    return torch.from_numpy(source).to(torch.float32).div_(127.5).sub_(1.0)
