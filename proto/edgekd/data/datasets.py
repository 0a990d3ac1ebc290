"""Data sets by name. The mapping from sample ids to samples is part of the protocol between edge and cloud.

A data set is NAME[:SPLIT]. The splits public, private and test are disjoint, and the same on every machine. Without a split it is
the whole training part, public followed by private. The test split is the data set's own test part if it has one, else the last
fifth of a fixed permutation. Of the rest, a fixed permutation assigns the first third to public. Samples are in the order of that
permutation, so that the first n of them are a random sample. The loaders are in sources.py and beside it.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgekd.cli.settings import closest
from edgekd.data import tensors
from edgekd.data.arrays import numbered_classes, read_items, user_dataset
from edgekd.data.dataset import Dataset
from edgekd.data.folders import has_folder, resized_files
from edgekd.data.loaded import Loaded
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.rows import MOST_IN_MEMORY, FileRows, Samples, chunks, write_rows
from edgekd.data.sources import SOURCES, WITH_ARGUMENT
from edgekd.data.splits import ALL, OWN, SPLITS
from edgekd.data.user_modules import import_attribute
from edgekd.files import write_json

_RESIZED_ROWS = 256
_FORMS = f"{', '.join(SOURCES)} or package.module:callable"


def load_dataset(spec: str) -> Dataset:
    """Load one split of a data set. spec is NAME[:ARGUMENT][:SPLIT], with a name of `SOURCES`, or package.module:callable[:SPLIT].

    Raises ValueError for an invalid spec, WorldError if a download fails, and OSError if a file cannot be read.
    """
    name, argument, split = _parse(spec)
    if name in SOURCES:
        loaded = SOURCES[name](argument, split)
    else:
        loaded = user_dataset(import_attribute(name, argument, what=f"data set '{spec}'", forms=_FORMS), spec, split)
    return _checked(spec, loaded)


def dataset_of(items: Any, name: str, classes: Sequence[str] | None = None) -> Dataset:
    """Return a data set of a map-style PyTorch data set of (x, y) or (x,), which is read once and not divided.

    Class names are `classes`, or else the attribute `classes`, or the numbers from 0 to the largest label. `name` is for messages.
    Raises ValueError as `load_dataset`.
    """
    loaded = read_items(items, name)
    if loaded.labels is not None:
        largest = int(loaded.labels.max())
        names = tuple(classes or ()) or loaded.class_names or numbered_classes(loaded.labels.tolist(), name)
        if largest >= len(names) or len(set(names)) < len(names):
            raise ValueError(f"{name} has labels up to {largest} for {len(names)} classes: name every class, once")
        loaded = loaded._replace(class_names=names)
    return _checked(name, loaded)


def _checked(spec: str, loaded: Loaded) -> Dataset:
    inputs, labels = loaded.inputs, loaded.labels
    if len(inputs) == 0:
        raise ValueError(f"data set '{spec}' is empty: it has too few samples for this split; add samples, or use another split")
    if isinstance(inputs, np.ndarray):
        inputs = np.require(inputs, requirements=["C", "W"])
    shape = inputs.shape[1:]
    if len(shape) == 3 and inputs.dtype == np.uint8 and shape[0] not in (1, 3) and shape[2] in (1, 3):
        raise ValueError(f"data set '{spec}' has samples of {list(shape)}, with channels last: move them first, [C, H, W]")
    num_classes = 0 if labels is None else loaded.num_classes or len(loaded.class_names)
    return Dataset(
        name=spec,
        inputs=inputs,
        labels=np.zeros(len(inputs), np.int64) if labels is None else np.ascontiguousarray(labels, dtype=np.int64),
        num_classes=num_classes,
        class_names=() if labels is None else loaded.class_names,
        digest=_digest(spec, inputs, num_classes),
        files=loaded.files,
        root=loaded.root,
    )


def resized(dataset: Dataset, preprocessing: Preprocessing) -> Dataset:
    """Return the data set with its images resized by the model's rule, from the image files if there are files.

    The digest stays, because it identifies the samples. Raises ValueError for samples that are not images, and as `load_dataset`.
    """
    rule = preprocessing.resize
    if rule is None:
        return dataset
    preprocessing.check(dataset.input_shape, dataset.inputs.dtype)
    if dataset.files:
        assert dataset.root is not None
        return replace(dataset, inputs=resized_files(dataset.files, rule, root=dataset.root, name=dataset.name))
    shape = (dataset.input_shape[0], *rule.size)
    parts = (tensors.resized(dataset.inputs[part], preprocessing) for part in chunks(dataset.inputs, most_rows=_RESIZED_ROWS))
    if len(dataset.inputs) * int(np.prod(shape)) <= MOST_IN_MEMORY:
        return replace(dataset, inputs=np.concatenate(list(parts)))
    return replace(dataset, inputs=write_rows(parts, len(dataset.inputs), shape, np.uint8))


def _parse(spec: str) -> tuple[str, str, str]:
    """Split a spec into name, argument (empty if none) and split (empty for the whole training part)."""
    name, _, rest = spec.partition(":")
    argument, _, split = rest.rpartition(":")
    if name not in SOURCES:
        match = OWN.fullmatch(spec)
        if match is None or match["callable"] in SPLITS:
            raise ValueError(f"data set '{name[:200]}' is unknown, must be one of {_FORMS}{closest(name, SOURCES)}")
        return match["module"], match["callable"], match["split"] or ""
    if split in SPLITS:
        return name, argument, split
    if name in WITH_ARGUMENT:
        is_named = (
            split == ALL
            or (name == "imagefolder" and has_folder(argument, split))
            or (name == "hf" and bool(argument) and split.isidentifier())
        )
        return (name, argument, split) if is_named else (name, rest, "")
    if rest:
        allowed = ", ".join(SPLITS)
        raise ValueError(f"data set '{spec}': split '{rest}' is unknown, must be one of {allowed}, or left out")
    return name, "", ""


def _digest(spec: str, inputs: Samples, num_classes: int) -> str:
    """Return the digest of samples. Raises ValueError for a sample with NaN or infinity, from which no model learns."""
    shape = "x".join(map(str, inputs.shape))
    kind = "images" if inputs.dtype == np.uint8 and len(inputs.shape) == 4 else "samples"
    header = f"edgekd {kind} {inputs.dtype} {shape} classes {num_classes}\n"
    kept = inputs.digests if isinstance(inputs, FileRows) else None
    if kept is not None and kept.exists():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a damaged file is written again
            return str(json.loads(kept.read_text(encoding="utf-8"))[header])
    digest = hashlib.sha256(header.encode())
    for part in chunks(inputs):
        rows = inputs[part]
        if rows.dtype != np.uint8 and not (finite := np.isfinite(rows).reshape(len(rows), -1).all(axis=1)).all():
            raise ValueError(
                f"data set '{spec}': sample {part.start + int(np.argmin(finite))} contains NaN or infinity, must be finite"
            )
        digest.update(rows.data.cast("B"))
    if kept is not None:
        write_json(kept, {header: digest.hexdigest()})
    return digest.hexdigest()
