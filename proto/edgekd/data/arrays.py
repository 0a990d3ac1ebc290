"""Data sets that are not images: arrays in NumPy files, windows of a CSV table, and a PyTorch data set of the user's own."""

import csv
import hashlib
import inspect
import io
import logging
import operator
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.cli.progress import Progress
from edgekd.cli.settings import closest
from edgekd.data.loaded import Loaded
from edgekd.data.rows import MOST_IN_MEMORY, FileRows, Samples, write_rows
from edgekd.data.splits import ALL, SPLITS, Ids, whole_ids
from edgekd.files import expanded, named_by
from edgekd.wire.limits import MAX_CLASSES

MAX_ROWS = 1 << 24
"""Rows of one window: more than any model at an edge reads."""
DIGESTS = Path("~/.cache/edgekd/digests")

logger = logging.getLogger(__name__)

_DTYPES = (np.dtype(np.uint8), np.dtype(np.float32))


def npy(argument: str, split: str) -> Loaded:
    """FILE.npy[,labels=FILE.npy]: samples [N, ...] of uint8 or float32, and labels, integers or names [N].

    The file is not loaded: rows are read when they are needed. Digests of a large file are kept, so that only the first start reads
    all of it.
    """
    path, options = parse_options("npy:FILE", argument, ("labels",))
    all_inputs = _open_npy(path)
    ids = whole_ids(len(all_inputs), split)
    inputs: Samples = all_inputs.select(ids)
    if inputs.nbytes <= MOST_IN_MEMORY:
        inputs = inputs[:]
    else:
        inputs = all_inputs.select(ids, digests=_digests_file(expanded(Path(path)), split))
    if "labels" not in options:
        return Loaded(inputs, None, ())
    file = expanded(Path(options["labels"]))
    values = _read_labels(file)
    if len(values) != len(all_inputs):
        raise ValueError(f"npy:{path}: {file} has {len(values)} labels for {len(all_inputs)} samples, must have one for each")
    labels, names = index_labels(values.tolist())
    return Loaded(inputs, labels[ids], names)


def csv_windows(argument: str, split: str) -> Loaded:
    """FILE.csv,window=W[,step=W][,label=COLUMN]: windows of W rows, float32 [columns, W].

    The first row has the names of the columns. All columns other than the label must be numbers. Rows are divided where the label
    changes, and each part is cut into windows from its first row on, `step` rows apart. So a window has one label, and windows do
    not overlap by default. Incomplete windows are dropped.
    """
    path, options = parse_options("csv:FILE", argument, ("window", "step", "label"))
    if "window" not in options:
        raise ValueError(f"csv:{path} needs window=ROWS, the number of rows of a sample")
    window = _count(f"csv:{path}", "window", options["window"])
    step = _count(f"csv:{path}", "step", options.get("step", options["window"]))
    if step < window:
        logger.warning("csv:%s: windows overlap with step=%d, so the splits share rows, and the accuracy is too high", path, step)
    values, labels = _read_table(path, options.get("label"))
    starts = _window_starts(labels, len(values), window, step)
    if not len(starts):
        raise ValueError(f"csv:{path} has no {window} consecutive rows of one label; name a smaller window=")
    starts = starts[whole_ids(len(starts), split)]
    windows = np.lib.stride_tricks.sliding_window_view(values, window, axis=0)[starts]  # [windows, columns, rows]
    inputs = np.ascontiguousarray(windows, np.float32)
    if labels is None:
        return Loaded(inputs, None, ())
    indices, names = index_labels(labels)
    return Loaded(inputs, indices[starts], names)


def user_dataset(factory: Any, spec: str, split: str) -> Loaded:
    """Read a map-style PyTorch data set of items (x, y), (x,) or x, where x is a uint8 or float32 tensor or array.

    `factory` is called with `split` if it has a parameter of that name, and must then return this split; otherwise its data set is
    divided. Class names are its attribute `classes`, as in torchvision, or else the numbers of the labels. Every item is read once,
    so random augmentation in the data set does not repeat in each epoch.
    """
    items, is_split = _call(factory, spec, split)
    if not is_split and split not in ("", ALL, *SPLITS):
        raise ValueError(f"data set '{spec}': split '{split}' is unknown, must be one of {', '.join(SPLITS)} or {ALL}, or left out")
    num_samples = _length(items, spec)
    ids = np.arange(num_samples) if is_split else whole_ids(num_samples, split)
    inputs, labels, names = _read(items, ids, spec)
    if not labels:
        return Loaded(inputs, None, ())
    if not names:
        if is_split:
            raise ValueError(f"data set '{spec}' needs an attribute `classes` with the class names: one split may lack a class")
        for sample in range(num_samples):
            if sample not in labels:
                _item(items, sample, spec, labels)
        names = numbered_classes(labels.values(), f"data set '{spec}'")
    return Loaded(inputs, _checked_labels(labels, ids, names, spec), names)


def read_items(items: Any, spec: str) -> Loaded:
    """Read a map-style data set of (x, y), (x,) or x, all of it and in its order. Class names are its attribute `classes`, if any.

    Raises ValueError, naming the data set, for items of different shapes, labels of a part of the items, and labels below 0 or
    without a class.
    """
    ids = np.arange(_length(items, spec))
    inputs, labels, names = _read(items, ids, spec)
    return Loaded(inputs, _checked_labels(labels, ids, names, spec) if labels else None, names if labels else ())


def _length(items: Any, spec: str) -> int:
    try:
        return len(items)
    except TypeError:
        raise ValueError(f"data set '{spec}' has no len(), must be a map-style data set with len() and items by index") from None


def _read(items: Any, ids: Ids, spec: str) -> tuple[Samples, dict[int, int], tuple[str, ...]]:
    """Return the inputs of these items, in this order, their labels by item, empty without labels, and the class names, if any."""
    labels: dict[int, int] = {}
    inputs = _collect((_item(items, sample, spec, labels) for sample in ids.tolist()), len(ids), spec)
    if labels and len(labels) != len(inputs):
        raise ValueError(
            f"data set '{spec}' has labels for {len(labels)} of {len(inputs)} items, must have them for all or for none"
        )
    classes = getattr(items, "classes", None) if labels else None
    if classes is not None and not isinstance(classes, list | tuple):
        raise ValueError(f"data set '{spec}': classes is a {type(classes).__name__}, must be a list of class names")
    return inputs, labels, tuple(map(str, classes or ()))


def _checked_labels(labels: dict[int, int], ids: Ids, names: Sequence[str], spec: str) -> Ids:
    """Return the labels of these items, int64 [N]. Without names, they must be at least 0."""
    own = np.array([labels[sample] for sample in ids.tolist()], np.int64)
    for wrong in (own.min(), own.max()):
        if wrong < 0 or (names and wrong >= len(names)):
            allowed = f"in 0 .. {len(names) - 1} for {len(names)} classes" if names else "at least 0"
            raise ValueError(f"data set '{spec}' has the label {wrong}, must be {allowed}")
    return own


def numbered_classes(labels: Iterable[int], name: str) -> tuple[str, ...]:
    """Return the names of classes that are the numbers from 0 to the largest label. Raises ValueError for too many classes."""
    present = set(labels)
    if max(present) >= MAX_CLASSES:
        raise ValueError(f"{name} has the label {max(present)}, must be below {MAX_CLASSES}: number the classes from 0")
    if absent := max(present) + 1 - len([label for label in present if label >= 0]):
        logger.warning(
            "%s has no samples of %d of %d classes: labels must number the classes from 0", name, absent, max(present) + 1
        )
    return tuple(map(str, range(max(present) + 1)))


def _call(factory: Any, spec: str, split: str) -> tuple[Any, bool]:
    """Call the user's factory. Returns the data set and whether it is one split."""
    try:
        parameters = inspect.signature(factory).parameters
        takes_split = "split" in parameters
        if takes_split and not split:
            raise TypeError(f"it takes a split, so name one, {spec}:private or {spec}:public")
        items = factory(split=split) if takes_split else factory()
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and the user must fix it
        known = f"; the splits that EdgeKD uses are {', '.join(SPLITS)}" if split not in (*SPLITS, "") else ""
        raise ValueError(f"data set '{spec}' failed: {type(error).__name__}: {error}{known}") from error
    if not hasattr(items, "__getitem__"):
        raise ValueError(
            f"data set '{spec}' is a {type(items).__name__}, must be a map-style data set with len() and items by index"
        )
    return items, takes_split


def _item(items: Any, sample: int, spec: str, labels: dict[int, int]) -> npt.NDArray[Any]:
    """Return the array of an item, and add its label, if it has one, to `labels`."""
    try:
        item = items[sample]
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ValueError(f"data set '{spec}' failed for item {sample}: {type(error).__name__}: {error}") from error
    parts = item if isinstance(item, tuple | list) else (item,)
    if len(parts) not in (1, 2):
        raise ValueError(f"data set '{spec}': item {sample} has {len(parts)} parts, must be (x, y) or (x,)")
    if len(parts) == 2:
        try:
            labels[sample] = operator.index(parts[1].item() if hasattr(parts[1], "item") else parts[1])
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"data set '{spec}': the label of item {sample} is {str(parts[1])[:80]}, must be an integer") from None
    value = parts[0]
    kind = type(value).__name__
    is_array = isinstance(value, np.ndarray) or hasattr(value, "detach")  # an image of Pillow has its channels last
    try:
        array = np.asarray(value.detach() if hasattr(value, "detach") else value) if is_array else None
    except (TypeError, RuntimeError) as error:  # a type or device that NumPy does not have
        raise ValueError(f"data set '{spec}': item {sample} cannot be converted: {error}; return float32 on the CPU") from None
    if array is None or array.dtype not in _DTYPES or not array.ndim or not array.size:
        kind += f" of {array.dtype} {list(array.shape)}" if array is not None else ""
        raise ValueError(
            f"data set '{spec}': item {sample} is a {kind}, must be a tensor or array of float32 or uint8, not a scalar; "
            "convert it in the data set, for example with ToTensor"
        )
    return array


def _collect(arrays: Iterator[npt.NDArray[Any]], count: int, spec: str) -> Samples:
    """Stack arrays of one shape and type in memory, or in a file without a name if they are many."""
    first = next(arrays, None)
    if first is None:
        return np.empty((0, 1), np.float32)

    def checked() -> Iterator[npt.NDArray[Any]]:
        yield first
        for number, array in enumerate(arrays, 1):
            if (array.shape, array.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    f"data set '{spec}': item number {number} is {array.dtype} {list(array.shape)}, the first is {first.dtype} "
                    f"{list(first.shape)}: all must be equal"
                )
            yield array

    if first.nbytes * count <= MOST_IN_MEMORY:
        samples = np.empty((count, *first.shape), first.dtype)
        for row, array in zip(samples, checked(), strict=True):
            row[...] = array
        return samples
    with Progress(f"reading {spec}", count) as progress:

        def advancing() -> Iterator[npt.NDArray[Any]]:
            for array in checked():
                progress.advance()
                yield array[np.newaxis]

        return write_rows(advancing(), count, first.shape, first.dtype)


def _open_npy(path: str) -> FileRows:
    """Return the rows of a .npy file of samples. Raises ValueError for a file that is not one, and OSError if it cannot be read."""
    file = expanded(Path(path))
    with named_by("npy:FILE"):
        file.open("rb").close()
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"npy:{path} is not a NumPy array file: {error}; save one with numpy.save") from None
    if not isinstance(array, np.memmap) or array.ndim < 2 or array.size == 0:
        raise ValueError(f"npy:{path} must be one array [samples, ...] with at least two dimensions and one value; use numpy.save")
    if array.dtype not in _DTYPES:
        order = " in big-endian order" if array.dtype == np.dtype(">f4") else ""
        raise ValueError(f"npy:{path} has {array.dtype}{order}, must be float32 or uint8; convert it with .astype(numpy.float32)")
    if not array.flags.c_contiguous:
        raise ValueError(f"npy:{path} is in Fortran order, must be in C order; save numpy.ascontiguousarray of it")
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    return FileRows(descriptor, sample_shape=array.shape[1:], dtype=array.dtype, row_ids=np.arange(len(array)), offset=array.offset)


def _digests_file(file: Path, split: str) -> Path:
    """Return the file that keeps the digests of a split. A changed array has another one."""
    status = file.stat()
    identity = f"{file.resolve()} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {split}"
    folder = DIGESTS.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{file.stem}-{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:16]}.json"


def _read_labels(file: Path) -> npt.NDArray[Any]:
    with named_by("npy:FILE,labels=FILE"):
        file.open("rb").close()
    try:
        values = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"labels {file} are not a NumPy array file: {error}; save integers or text with numpy.save") from None
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "iuU":
        raise ValueError(f"labels {file} must be one array [samples] of integers or text")
    return values


def index_labels(values: Sequence[Any]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return labels and class names. The distinct values are the classes, in numerical order if all are numbers, else of text."""
    numbers = {value: _as_int(value) for value in set(values)}
    are_numbers = None not in numbers.values()
    ordered = sorted(numbers, key=lambda value: (numbers[value] or 0 if are_numbers else 0, str(value)))
    position = {value: number for number, value in enumerate(ordered)}
    return np.array([position[value] for value in values], np.int64), tuple(map(str, ordered))


def _as_int(value: Any) -> int | None:
    try:
        return int(value)
    except ValueError:
        return None


def _read_table(path: str, label: str | None) -> tuple[npt.NDArray[np.float32], list[str] | None]:
    """Return the numbers of a CSV file, float32 [rows, columns], and its label column."""
    try:
        with named_by("csv:FILE"):
            rows = list(csv.reader(io.StringIO(expanded(Path(path)).read_text(encoding="utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"csv:{path} is not a CSV file in UTF-8: {error}") from None
    header = [name.strip() for name in rows[0]] if rows else []
    if header and all(_is_number(name) for name in header):
        raise ValueError(f"csv:{path}: the first row has numbers, must have the names of the columns")
    if len(header) == 1 and ";" in header[0]:
        raise ValueError(f"csv:{path} is separated by semicolons, must be by commas: convert it")
    if "" in header:
        raise ValueError(
            f"csv:{path}: column {header.index('') + 1} has no name: remove it (pandas: to_csv(index=False)), or name it"
        )
    if label is not None and label not in header:
        raise ValueError(f"csv:{path} has no column {label!r}{closest(label, header)}; its first row has {', '.join(header)[:200]}")
    column = None if label is None else header.index(label)
    numbers, labels = [], []
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(f"csv:{path}: row {number} has {len(row)} values, must have {len(header)} as the first row")
        if column is not None:
            labels.append(row.pop(column).strip())
            if not labels[-1]:
                raise ValueError(f"csv:{path}: row {number} has no {label}: remove the row, or fill it in")
        try:
            values = np.array(row, np.float32)
        except ValueError:
            hint = "" if column is not None else "; a column of classes is label=COLUMN"
            raise ValueError(f"csv:{path}: row {number} has a value that is not a number: {','.join(row)[:80]!r}{hint}") from None
        if not np.isfinite(values).all():
            raise ValueError(f"csv:{path}: row {number} has a value that is not finite: remove the row, or fill it in")
        numbers.append(values)
    if not numbers or not len(numbers[0]):
        raise ValueError(f"csv:{path} has no numbers, must have a row of column names and then rows of numbers")
    return np.stack(numbers), None if column is None else labels


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _window_starts(labels: list[str] | None, num_rows: int, window: int, step: int) -> npt.NDArray[np.int64]:
    """Return the first row of each window. A window does not span a change of the label."""
    changes = [0, num_rows]
    if labels is not None:
        changes = [0, *(row for row in range(1, num_rows) if labels[row] != labels[row - 1]), num_rows]
    parts = [np.arange(begin, end - window + 1, step, dtype=np.int64) for begin, end in pairwise(changes)]
    return np.concatenate(parts)


def parse_options(form: str, argument: str, allowed: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return path and options of PATH,key=value,... Raises ValueError for an unknown or repeated option."""
    path, *parts = argument.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if key not in allowed or not equals or not value or key in options:
            raise ValueError(f"{form} has the option {part!r}, must be {' or '.join(f'{name}=...' for name in allowed)}, each once")
        options[key] = value
    if not path:
        raise ValueError(f"{form} has no file: name it after the colon")
    return path, options


def _count(spec: str, name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_ROWS:
        raise ValueError(f"{spec}: {name} is {text!r}, must be in 1 .. {MAX_ROWS}")
    return int(text)
