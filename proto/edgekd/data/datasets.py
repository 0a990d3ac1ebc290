"""Data sets by name: which sample id means which image is part of what both ends agree on.

A data set is NAME[:SPLIT]. The splits public, private and test are disjoint and the same on every machine; without a split
it is the whole train part, public followed by private. The test split is the data set's own test part if it has one, else
the last fifth of a fixed permutation; of the rest a fixed permutation gives the first third to public. Splits are in the
order of that permutation, so that the first n samples are a fair draw. Where images come from is in sources.py.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekd.cli.settings import closest
from edgekd.data.image_dataset import ImageDataset
from edgekd.data.sources import SOURCES, SPLITS

if TYPE_CHECKING:
    pass


def load_dataset(spec: str) -> ImageDataset:
    """Load one split of a data set.

    spec is one of digits, fashion-mnist, cifar10, cifar100, imagefolder:PATH[,size=64] and
    synthetic:classes=K,size=S,samples=M[,channels=3], each with :public, :private, :test or nothing after it.
    Raises ValueError for a spec that breaks a rule, WorldError if a download fails, OSError if a file cannot be read.
    """
    name, argument, split = _parse(spec)
    images, labels, num_classes, files = SOURCES[name](argument, split)
    if len(labels) == 0:
        raise ValueError(f"data set '{spec}' is empty: there are too few images to give this split one")
    images = np.require(images, requirements=["C", "W"])
    return ImageDataset(
        name=spec,
        images=images,
        labels=np.ascontiguousarray(labels, dtype=np.int64),
        num_classes=num_classes,
        digest=_digest(images, num_classes),
        files=files,
    )


def _parse(spec: str) -> tuple[str, str, str]:
    """Name, argument (empty if none) and split (empty for the whole train part) of a spec."""
    name, _, rest = spec.partition(":")
    if name not in SOURCES:
        known = ", ".join(SOURCES)
        raise ValueError(f"data set '{name}' is unknown, must be one of {known}{closest(name, SOURCES)}")
    argument, _, split = rest.rpartition(":")
    if split in SPLITS:
        return name, argument, split
    if name in ("imagefolder", "synthetic"):
        return name, rest, ""
    if rest:
        allowed = ", ".join(SPLITS)
        raise ValueError(f"data set '{spec}': split '{rest}' is unknown, must be one of {allowed}, or left out")
    return name, "", ""


def _digest(images: npt.NDArray[np.uint8], num_classes: int) -> str:
    shape = "x".join(map(str, images.shape))
    digest = hashlib.sha256(f"edgekd images uint8 {shape} classes {num_classes}\n".encode())
    digest.update(images.data)
    return digest.hexdigest()
