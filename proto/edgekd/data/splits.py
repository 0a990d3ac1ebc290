"""Names of splits, and the assignment of samples to them, which is part of the protocol: edge and cloud must agree on it."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.files import expanded
from edgekd.wire.order import permutation

SPLITS = ("public", "private", "test")
ALL = "all"
"""A split of all samples, for data sets that have no test part of their own."""

_SPLIT_SEED = 0

OWN_SOURCES = ("imagefolder", "unlabelled", "npy", "csv", "hf")
"""Sources of the user's own data, SOURCE:ARGUMENT[:SPLIT]."""
BUILT_IN = ("digits", "fashion-mnist", "cifar10", "cifar100", "synthetic")

OWN = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<callable>[^\W\d]\w*)(:(?P<split>[^\W\d]\w*))?")
"""A data set of the user's own code: package.module:callable[:SPLIT]."""

Ids = npt.NDArray[np.int64]


def train_ids(num_train: int, split: str) -> Ids:
    """Return the ids of a split of the training part: public is the first third of a permutation, private the rest."""
    order = permutation(_SPLIT_SEED, num_train, 0)
    num_public = num_train // 3
    return {"public": order[:num_public], "private": order[num_public:], "": order}[split]


def whole_ids(num_samples: int, split: str) -> Ids:
    """Return the ids of a split of a data set without a test part. The last fifth of a permutation is the test split."""
    order = all_ids(num_samples)
    if split == ALL:
        return order
    num_train = num_samples - num_samples // 5
    return order[num_train:] if split == "test" else order[:num_train][train_ids(num_train, split)]


def all_ids(num_samples: int) -> Ids:
    """Return the ids of all samples, in a fixed random order, so that the first n are a random sample."""
    return permutation(_SPLIT_SEED, num_samples, 0)


TEST_FOLDERS = ("test", "testing", "val", "valid", "validation", "eval", "dev")
"""Names of folders that are the test split of an image folder."""


def contains_test(dataset: str) -> bool:
    """Return whether the name of a data set selects samples of its test split, by a name other than :test."""
    return is_own(dataset) and dataset.rpartition(":")[2] in (ALL, *TEST_FOLDERS)


def overlaps(test: str, training: str) -> bool:
    """Return whether two splits of one data set share samples: equal ones, and a split with one that includes it."""
    base, split = _parts_of(test)
    other, other_split = _parts_of(training)
    if base != other:
        return False
    return split in (other_split, ALL) or (split == "" and other_split in ("public", "private"))


def split_of(dataset: str, split: str) -> str:
    """Name another split of the same data set: fashion-mnist:private, test -> fashion-mnist:test."""
    return f"{_parts_of(dataset)[0]}:{split}"


def _parts_of(dataset: str) -> tuple[str, str]:
    """Return the name of a data set without its split, and the split, empty if there is none."""
    base, colon, last = dataset.rpartition(":")
    has_folders = dataset.startswith("imagefolder:") and (expanded(Path(base.partition(":")[2].partition(",")[0])) / last).is_dir()
    own = None if dataset.partition(":")[0] in OWN_SOURCES else OWN.fullmatch(dataset)
    is_of_hub = dataset.startswith("hf:") and ":" in base
    is_split = last in (*SPLITS, ALL) or has_folders or is_of_hub or (own is not None and own["split"] is not None)
    return (base, last) if colon and is_split else (dataset, "")


def is_own(dataset: str) -> bool:
    """Return whether the name is of the user's own data, whose classes have no order that both ends know."""
    return dataset.partition(":")[0] not in BUILT_IN
