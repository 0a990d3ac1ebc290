"""The images of one data set in memory, with the digest that both ends compare. Loads neither torch nor torchvision."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageDataset:
    """Labelled images in memory, with a digest by which edge and cloud verify that they have the same images."""

    name: str
    """The spec that the user gave, for example "digits:public"."""
    images: npt.NDArray[np.uint8]
    """uint8 [N, C, H, W], contiguous."""
    labels: npt.NDArray[np.int64]
    """int64 [N], each in 0 .. num_classes-1."""
    num_classes: int
    digest: str
    """SHA-256 over the shape, num_classes and the images in order, lower-case hex. It excludes labels, because the public data
    needs none."""
    files: tuple[Path, ...] = ()
    """The image file of each sample, in order. Empty for data sets that are not image files."""
