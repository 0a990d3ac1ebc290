"""The images of one data set in memory: the value that both ends compare by digest. Loads neither torch nor torchvision."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDataset:
    """Labelled images in memory, and the digest by which the two ends make sure that they have the same ones."""

    name: str
    """As the user gave it, for example "digits:public"."""
    images: npt.NDArray[np.uint8]
    """uint8 [N, C, H, W], contiguous."""
    labels: npt.NDArray[np.int64]
    """int64 [N], each in 0 .. num_classes-1."""
    num_classes: int
    digest: str
    """SHA-256 over the shape, num_classes and the images in order, lower-case hex. Labels are not part of it: the teacher's
    public data needs none."""
    files: tuple[Path, ...] = ()
    """The image file of each sample, in order, where they come from files; else nothing."""
