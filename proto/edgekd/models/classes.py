"""Classes by name: maps labels of one data set to the outputs of a model, and selects the outputs that are kept."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekd.data.dataset import Dataset
from edgekd.files import expanded, named_by
from edgekd.wire.limits import MAX_CLASSES

BY_NAME = "names"
"""Value of --class-map that maps equal names, and accepts that the teacher has more classes."""
IN_ORDER = "order"
"""Value of --class-map that relates classes by their order, for a teacher without class names."""
_MAX_BYTES = 16 << 20


def read_class_names(text: str) -> tuple[str, ...]:
    """Return the names of --classes: a number K for 0 .. K-1, or a text file with one name per line. Raises ValueError."""
    if text.isdecimal():
        if len(text) > 10 or not 1 <= int(text) <= MAX_CLASSES:
            raise ValueError(f"--classes is {text}, must be in 1 .. {MAX_CLASSES}")
        return tuple(map(str, range(int(text))))
    return _lines("--classes", text)  # ImageNet's names repeat: a crane is a bird and a machine


def check_class_names(names: Sequence[str], source: str) -> None:
    """Raise ValueError for a name that cannot be sent: an empty one, or one that is not printable Unicode."""
    for name in names:
        if not name or not name.isprintable():  # surrogates, from file names that are not UTF-8, are not printable
            raise ValueError(f"the class name {name!r} of {source} must be printable text: rename it")


def kept_outputs(text: str, class_names: Sequence[str], num_classes: int) -> list[int]:
    """Return the outputs that --keep-classes selects, in its order.

    `text` has names or numbers, separated by commas, or is @FILE with one per line. A name has priority over a number. Raises
    ValueError for an unknown or repeated class, or a name of several outputs.
    """
    entries = _lines("--keep-classes", text[1:]) if text.startswith("@") else tuple(part.strip() for part in text.split(","))
    counts = Counter(class_names)
    outputs = []
    for entry in entries:
        if counts[entry] > 1:
            numbers = [str(number) for number, name in enumerate(class_names) if name == entry]
            raise ValueError(
                f"--keep-classes has {entry!r}, the name of {counts[entry]} outputs: select one of {', '.join(numbers)}"
            )
        if counts[entry]:
            outputs.append(list(class_names).index(entry))
        elif entry.isdecimal() and len(entry) < 10 and int(entry) < num_classes:
            outputs.append(int(entry))
        else:
            raise ValueError(
                f"--keep-classes has {entry!r}, which is no class of the teacher: {describe(class_names, num_classes)}"
            )
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"--keep-classes is {text!r}, must name each class once")
    return outputs


def read_class_map(text: str) -> dict[str, str]:
    """Return the map of --class-map FILE, a JSON object {"name at this edge": "name at the teacher"}. Raises ValueError."""
    content = _read("--class-map", text)
    try:
        pairs = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--class-map {text} is not valid JSON: {error}") from None
    if not isinstance(pairs, dict) or not all(isinstance(name, str) for name in pairs.values()):
        raise ValueError(f'--class-map {text} must be a JSON object of names, such as {{"cat": "tabby"}}')
    return pairs


def outputs_of(own: Sequence[str], teacher: Sequence[str], class_map: str | None, *, edge: str, source: str) -> list[int]:
    """Return for each class name of the edge the output of the teacher with this name. `edge` and `source` name both in errors.

    Raises ValueError unless both have the same names, in any order, or --class-map relates them.
    """
    if class_map is None and set(own) != set(teacher):
        missing = [name for name in own if name not in set(teacher)]
        extra = [name for name in teacher if name not in set(own)]
        details = [f"only {edge} has {_few(missing)}"] * bool(missing) + [f"only {source} has {_few(extra)}"] * bool(extra)
        remedy = (
            "write --class-map FILE, a JSON object of the edge's names and the teacher's"
            if missing
            else f"serve with --keep-classes, or train for all of the teacher's classes with --class-map {BY_NAME}"
        )
        raise ValueError(f"class names differ: {' and '.join(details)}: {remedy}")
    names = {name: name for name in own} if class_map is None or class_map == BY_NAME else read_class_map(class_map)
    position, counts = {name: number for number, name in enumerate(teacher)}, Counter(teacher)
    outputs = []
    for name in own:
        target = names.get(name)
        if target is None:
            raise ValueError(f"--class-map lacks {name!r}, a class of {edge}")
        if counts[target] != 1:
            problem = "which is no class" if target not in counts else f"the name of {counts[target]} classes"
            raise ValueError(f"--class-map maps {name!r} to {target!r}, {problem} of {source}: {describe(teacher, len(teacher))}")
        outputs.append(position[target])
    return outputs


def relabelled(dataset: Dataset, outputs: Sequence[int], class_names: Sequence[str]) -> Dataset:
    """Return the data set with class c renumbered to outputs[c], of a model with these class names."""
    labels = np.asarray(outputs, np.int64)[dataset.labels]
    return replace(dataset, labels=labels, num_classes=len(class_names), class_names=tuple(class_names))


def describe(class_names: Sequence[str], num_classes: int) -> str:
    """Return the classes in a few words, for an error message."""
    return f"it has {_few(class_names)}" if class_names else f"it has {num_classes} classes without names"


def _few(names: Sequence[str], count: int = 5) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:count])
    return shown if len(names) <= count else f"{shown} and {len(names) - count} more"


def _lines(flag: str, text: str) -> tuple[str, ...]:
    lines = _read(flag, text).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ValueError(f"{flag} {text} has no names, must have one per line")
    return names


def _read(flag: str, text: str) -> str:
    """Return the content of the small text file that a flag names. Raises ValueError."""
    path = expanded(Path(text))
    with named_by(flag):
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{flag} {path} has more than {_MAX_BYTES} bytes")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{flag} {path} is not text in UTF-8") from None
