"""The result of a loader."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.data.rows import Samples


class Loaded(NamedTuple):
    """Samples [N, ...], uint8 or float32, and their classes.

    `labels` is int64 [N], or None for unlabelled data. `class_names` has a name for each class, in order. Without names there are
    `num_classes` classes. `files` has the image file of each sample, if there are files, all of them below `root`.
    """

    inputs: Samples
    labels: npt.NDArray[np.int64] | None
    class_names: tuple[str, ...]
    files: tuple[str, ...] = ()
    root: Path | None = None
    num_classes: int = 0
