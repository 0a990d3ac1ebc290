"""Data sets of the package `datasets` (Hugging Face): `hf:NAME`, from the hub, its cache, or a folder. The package is optional."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.cli.settings import closest
from edgekd.data.arrays import index_labels, parse_options, read_items
from edgekd.data.loaded import Loaded
from edgekd.data.preprocessing import MAX_SIZE
from edgekd.data.splits import ALL, SPLITS, TEST_FOLDERS, all_ids, train_ids, whole_ids
from edgekd.errors import WorldError
from edgekd.files import expanded
from edgekd.wire.inputs import square_pixels

_INPUTS = ("image", "img", "input", "inputs", "pixel_values", "x")
_LABELS = ("label", "labels", "fine_label", "target", "y")
_OPTIONS = ("config", "input", "label", "size")

logger = logging.getLogger(__name__)


def hugging_face(argument: str, split: str) -> Loaded:
    """NAME[,config=NAME][,input=COLUMN][,label=COLUMN][,size=64]: a data set of the hub, or a folder of one.

    Images are converted as those of `imagefolder:`. Another input column must have arrays of one shape, and becomes float32 unless
    it is uint8. If there is a test or validation split, it is the test data, and public and private share the split train.
    Other splits can be named.
    """
    name, options = parse_options("hf:NAME", argument, _OPTIONS)
    size = options.get("size", "64")
    if not size.isdecimal() or not 1 <= int(size) <= MAX_SIZE:
        raise ValueError(f"hf:{name}: size is {size!r}, must be in 1 .. {MAX_SIZE}")
    rows, ids = _select(_load(name, options.get("config")), f"hf:{name}", split)
    columns = list(rows.column_names)
    column = _column(columns, options.get("input"), _INPUTS, f"hf:{name}", "input")
    label = _label_column(rows, columns, options.get("label"), f"hf:{name}")
    return read_items(_Items(rows, ids, column, label, int(size)), f"hf:{argument}")


class _Items:
    """Rows as a map-style data set of (array, label) or (array,), in the order of `ids`."""

    def __init__(self, rows: Any, ids: npt.NDArray[np.int64], column: str, label: str | None, size: int) -> None:
        import datasets

        self._ids, self._column, self._size = ids, column, size
        self._is_image = isinstance(rows.features[column], datasets.Image)
        if self._is_image:
            self._rows = rows.cast_column(
                column, datasets.Image(decode=False)
            )  # the file, of which Pillow reads 16 bits as they are
        else:
            self._rows = rows.with_format("numpy", columns=[column])
        self._labels: Sequence[int] | None = None
        self.classes: list[str] = []
        if label is not None:
            values, names = list(rows[label]), getattr(rows.features[label], "names", None)
            for value in values:
                if not isinstance(value, int | str):
                    raise ValueError(f"hf: column {label!r} has the value {value!r}, must have integers or text: name label=COLUMN")
            if names is None:
                indices, names = index_labels(values)
                values = indices.tolist()
            self._labels, self.classes = values, list(names)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = int(self._ids[index])
        value = self._rows[row][self._column]
        if self._is_image:
            array = square_pixels(BytesIO(value["bytes"]) if value["bytes"] else Path(value["path"]), self._size)
        else:
            array = np.asarray(value)
            if array.dtype.kind in "fiu" and array.dtype != np.uint8:
                array = array.astype(np.float32)
        return (array,) if self._labels is None else (array, self._labels[row])


def _load(name: str, config: str | None) -> Any:
    """Return a `Dataset`, or a `DatasetDict` of its splits."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"data set 'hf:{name}' needs the package datasets, which is not installed: pip install edgekd[hf]"
        ) from None
    folder = expanded(Path(name))
    try:
        with redirect_stdout(sys.stderr):
            if any((folder / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
                return datasets.load_from_disk(os.fspath(folder))
            return datasets.load_dataset(os.fspath(folder) if folder.is_dir() else name, config)
    except Exception as error:  # the package raises errors of many libraries
        problem = " ".join(str(error).split())[:300]
        raise WorldError(
            f"hf:{name} cannot be loaded: {type(error).__name__}: {problem}; check name, config= and network, or name a folder"
        ) from error


def _select(loaded: Any, spec: str, split: str) -> tuple[Any, npt.NDArray[np.int64]]:
    """Return the rows that have a split, and the ids of the split."""
    if not hasattr(loaded, "keys"):
        return loaded, whole_ids(len(loaded), _known(spec, split, ()))
    parts = dict(loaded)
    test = next((parts[name] for name in TEST_FOLDERS if name in parts), None)
    if split in parts:
        return parts[split], all_ids(len(parts[split]))
    if split == "test" and test is not None:
        return test, all_ids(len(test))
    train = parts.get("train", next(iter(parts.values())) if len(parts) == 1 else None)
    if train is None:
        raise ValueError(f"{spec} has the splits {', '.join(parts)}, but none is train: name one, {spec}:{next(iter(parts))}")
    _known(spec, split, parts)
    if split == ALL:
        return train, all_ids(len(train))
    return train, (whole_ids if test is None else train_ids)(len(train), split)


def _known(spec: str, split: str, parts: Any) -> str:
    names = tuple(dict.fromkeys((*SPLITS, ALL, *parts)))
    if split and split not in names:
        raise ValueError(f"{spec}: split '{split}' is unknown, must be one of {', '.join(names)}{closest(split, names)}")
    return split


def _column(columns: Sequence[str], given: str | None, usual: Sequence[str], spec: str, option: str) -> str:
    if given is not None and given not in columns:
        raise ValueError(f"{spec} has no column {given!r}{closest(given, columns)}; it has {', '.join(columns)[:200]}")
    found = given or next((name for name in usual if name in columns), None)
    if found is None:
        raise ValueError(f"{spec} has the columns {', '.join(columns)[:200]}: name one with {option}=")
    return found


def _label_column(rows: Any, columns: Sequence[str], given: str | None, spec: str) -> str | None:
    """Return the column of the labels, or None for unlabelled data. The hub marks hidden labels with -1."""
    if given is not None:
        return _column(columns, given, (), spec, "label")
    found = next((name for name in _LABELS if name in columns), None)
    if found is not None and min(map(_as_number, rows[found]), default=0) < 0:
        logger.info("%s: column %s has labels of -1, which the hub uses for hidden ones: the data are unlabelled", spec, found)
        return None
    return found


def _as_number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0
