"""Data sets by name. The mapping from sample ids to images is part of the protocol between edge and cloud.

A data set is NAME[:SPLIT]. The splits public, private and test are disjoint, and the same on every machine. Without a split it is
the whole training part, public followed by private. The test split is the data set's own test part if it has one, else the last
fifth of a fixed permutation. Of the rest, a fixed permutation assigns the first third to public. Samples are in the order of that
permutation, so that the first n of them are a random sample. The loaders are in sources.py.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from edgekd.cli.settings import closest
from edgekd.data.image_dataset import ImageDataset
from edgekd.data.sources import SOURCES, SPLITS


def load_dataset(spec: str) -> ImageDataset:
    """Load one split of a data set.

    spec is one of digits, fashion-mnist, cifar10, cifar100, imagefolder:PATH[,size=64] and
    synthetic:classes=K,size=S,samples=M[,channels=3], followed by :public, :private, :test or no split.
    Raises ValueError for an invalid spec, WorldError if a download fails, and OSError if a file cannot be read.
    """
    name, argument, split = _parse(spec)
    images, labels, num_classes, files = SOURCES[name](argument, split)
    if len(labels) == 0:
        raise ValueError(f"data set '{spec}' is empty: it has too few images for this split; add images, or use another split")
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
    """Split a spec into name, argument (empty if none) and split (empty for the whole training part)."""
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
