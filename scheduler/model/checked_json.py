"""Validate JSON from outside the program. Every error is a ValueError that names the place, the value and the rule."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard


def read_json(text: str, where: str) -> Any:
    """Parse a JSON document. Raises ValueError for invalid JSON, or for an object with a duplicate key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{where}: the key {twice!r} is given twice")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: this is not JSON: {error}") from None
    except ValueError as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: a number has too many digits") from None
    except RecursionError:
        raise ValueError(f"{where}: this JSON is nested too deeply") from None


def check_keys(data: Any, *, required: tuple[str, ...], optional: tuple[str, ...] = (), where: str) -> None:
    """Raise ValueError unless `data` is an object with all `required` keys and no keys but these and `optional`."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object with {', '.join(required)}; got {shown(data)}")
    missing = [key for key in required if key not in data]
    unknown = [_plain(key) for key in data if key not in (*required, *optional)]
    if missing:
        also = f", and unknown {', '.join(unknown)}" if unknown else ""
        raise ValueError(f"{where}: missing {', '.join(missing)}{also}")
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; the keys are {', '.join((*required, *optional))}")


def number(data: Mapping[str, Any], key: str, where: str) -> float:
    """Return the finite number at this key. Raises ValueError."""
    return finite(data[key], repr(key), where)


def finite(value: Any, name: str, where: str) -> float:
    """Return `value` as a finite float. Raises ValueError that names `name` and the value."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {name} is {shown(value)}; it must be a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise ValueError(f"{where}: {name} is {found}; it must be finite")
    return found


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole(data: Mapping[str, Any], key: str, where: str, *, least: int, most: int | None) -> int:
    """Return the whole number at this key. Raises ValueError if it is not in `least` .. `most`."""
    value = data[key]
    if not is_whole(value) or value < least:
        raise ValueError(f"{where}: {key!r} is {shown(value)}; it must be a whole number, at least {least}")
    if most is not None and value > most:
        raise ValueError(f"{where}: {key!r} is {shown(value)}; it must be at most {most}")
    return value


def not_negative(value: Any, name: str, where: str, what: str = "work") -> float:
    """Return `value` as a float of at least 0. Raises ValueError; `what` is the name of the quantity in the message."""
    found = finite(value, name, where)
    if found < 0:
        raise ValueError(f"{where}: {name} is {found:g}; {what} cannot be negative")
    return found


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Return `value` if it is an object. Raises ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected an object; got {shown(value)}")
    return value


def listing(value: Any, where: str, *, length: int | None = None) -> Sequence[Any]:
    """Return `value` if it is a list, with `length` entries if a length is given. Raises ValueError."""
    if not isinstance(value, list) or length not in (None, len(value)):
        raise ValueError(f"{where}: expected a list{'' if length is None else f' of {length}'}; got {shown(value)}")
    return value


def shown(value: Any) -> str:
    """Return the repr of a value for an error message: at most 60 printable characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(key: Any) -> str:
    """Return a key in a form that is safe to print on a terminal."""
    return key if isinstance(key, str) and key.isprintable() and len(key) < 60 else shown(key)
