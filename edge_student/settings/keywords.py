"""Settings as keyword arguments of the Python interface: the names, types and words of the command line."""

from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from edge_student.settings.student import TrainConfig
from edgekd.cli.flags import hints_of
from edgekd.cli.settings import closest


def train_config(settings: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of these settings; None stands for a default.

    Raises ValueError, in the words of the command line, for a wrong type or value.
    """
    hints = hints_of(TrainConfig)
    return TrainConfig(**{name: _converted(name, value, hints[name]) for name, value in settings.items() if value is not None})


def check_names(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for a setting of another name."""
    for name in settings:
        if name not in known:
            raise ValueError(f"unknown setting {name}{closest(name, known)}")


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return a setting in its type, as the command line would read it. Raises ValueError."""
    kinds = [kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,)) if kind is not NoneType]
    flag = f"--{name.replace('_', '-')}"
    for kind in kinds:
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{flag} is {value!r}, must be {', '.join(map(repr, get_args(kind)))}")
            return value
        if issubclass(kind, Enum):
            known = [member.value for member in kind]
            if value not in known and not isinstance(value, kind):
                raise ValueError(f"{flag} is {value!r}, must be {', '.join(map(repr, known))}")
            return kind(value)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        if kind is Path and isinstance(value, str):
            return Path(value)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    raise ValueError(f"{flag} is {value!r}, must be {' or '.join(kind.__name__ for kind in kinds)}")
