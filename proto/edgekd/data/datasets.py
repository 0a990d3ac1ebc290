"""Data sets by name: which sample id means which image is part of what both ends agree on.

A data set is NAME[:SPLIT]. The splits public, private and test are disjoint and the same on every machine; without a split
it is the whole train part, public followed by private. The test split is the data set's own test part if it has one, else
the last fifth of a fixed permutation; of the rest a fixed permutation gives the first third to public. Splits are in the
order of that permutation, so that the first n samples are a fair draw. Where images come from is in sources.py.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekd.cli.settings import closest
from edgekd.data.sources import SOURCES, SPLITS

if TYPE_CHECKING:
    import torch


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


def to_input(images: npt.NDArray[np.uint8]) -> "torch.Tensor":
    """uint8 [B, C, H, W] -> float32 [B, C, H, W] in [-1, 1], what every model here is fed."""
    import torch  # here, so that asking for a data set does not cost a program without a model a second

    assert images.dtype == np.uint8
    # torch warns about memory it may not write to, though it only reads here.
    source = images if images.flags.writeable else images.copy()
    return torch.from_numpy(source).to(torch.float32).div_(127.5).sub_(1.0)


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
