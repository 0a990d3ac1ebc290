"""Read a settings dataclass from a command line and a TOML file.

An explicit flag overrides `--config FILE.toml`, and the file overrides the default of the dataclass. tyro parses the flags
(flags.py). This module adds the file and reports every mistake in one line: the value, the rule, and the command that prints the
help. It does not depend on tyro's wording, which changes between versions.
"""

import dataclasses
import difflib
import enum
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgekd.cli.flags import fields_of, hints_of, print_help, read_flags

ConfigT = TypeVar("ConfigT")

# No count is larger. Python rejects numbers with thousands of digits, with an error that does not name the flag.
_MAX_DIGITS = 18
_MAX_FILE_BYTES = 1 << 16


def parse(config_class: type[ConfigT], argv: Sequence[str], *, prog: str, description: str) -> ConfigT:
    """Build `config_class`, a frozen dataclass of flags, from a command line and its TOML file.

    --help prints the help and raises SystemExit(0). Raises ValueError with a one-line message. Causes: an unknown flag or
    key, a missing required flag, a wrong type, or a value that `__post_init__` rejects.

    A class may list other classes in `reads_files_of`. The file may then contain keys of these classes, which are checked for their
    type and ignored. A key that no class has raises ValueError.

    A class may list required fields in `positional`. Their flags may be left out, as in `fit samples.json`. A class may have a text
    `examples`, which the help prints below the description.
    """
    hints = hints_of(config_class)
    ignorable = {name: hint for other in getattr(config_class, "reads_files_of", ()) for name, hint in hints_of(other).items()}
    if "-h" in argv or "--help" in argv:
        description = "\n\n".join(filter(None, [description, getattr(config_class, "examples", "")]))
        print_help(config_class, prog=prog, description=description, positional=_positional(config_class))
    argv = _with_flags_of_positionals(argv, _positional(config_class), hints)
    given = _given_names(argv, hints, prog)
    path = _config_path(argv) if "config" in given else None
    settings = {} if path is None else _read_toml(path, {**ignorable, **hints})
    settings = {name: value for name, value in settings.items() if name in hints and name not in given}
    _check_required(config_class, given | settings.keys(), prog)
    args = [arg for name, value in settings.items() for arg in _as_args(name, value)] + list(argv)

    def source(name: str) -> str:
        return f"{path}: {name}" if name in settings else _flag(name)

    for name in given | settings.keys():
        if _value_of(name, args) == "":  # Path("") would be the current folder
            raise ValueError(f"{source(name)} is empty, must be {_kind(hints.get(name, Path))}; see {prog} --help")
    result = read_flags(config_class, args, prog=prog)
    if isinstance(result, str):
        name = _first_name(result, [*hints, "config"])
        value, kind = _value_of(name, args), _kind(hints.get(name, Path))
        problem = f"is {value!r}, must be {kind}" if value is not None else f"needs a value: {kind}"
        raise ValueError(f"{source(name)} {problem}; see {prog} --help")
    values, unexpected = result
    if unexpected:
        raise ValueError(f"unexpected argument {unexpected[0]!r}: every setting is a --flag; see {prog} --help")
    try:
        return config_class(**values)
    except ValueError as error:
        raise ValueError(f"{error}{_origin(str(error), settings, path)}") from None


def _origin(message: str, settings: Iterable[str], path: Path | None) -> str:
    """Return " (--flag comes from FILE)" for the flags in a message that the file has set, or an empty string."""
    flags = [_flag(name) for name in settings if re.search(rf"{_flag(name)}(?![\w-])", message)]
    return f" ({' and '.join(flags)} come{'s' if len(flags) == 1 else ''} from {path})" if flags else ""


def _given_names(argv: Sequence[str], hints: Mapping[str, Any], prog: str) -> set[str]:
    """Return the field names of the flags on a command line. Raises ValueError for an unknown flag."""
    names = set()
    for arg in argv:
        # tyro handles --tyro-print-completion and --tyro-write-completion.
        if not arg.startswith("--") or arg.startswith("--tyro-"):
            continue
        flag = arg.partition("=")[0]
        name = flag[2:].replace("-", "_")
        if name.startswith("no_") and hints.get(name[3:]) is bool:
            name = name[3:]
        if name != "config" and name not in hints:
            flags = [_flag(known) for known in [*hints, "config"]]
            raise ValueError(f"unknown flag {flag}{closest(flag, flags)}; {prog} --help lists all flags")
        names.add(name)
    return names


def _positional(config_class: type[Any]) -> Sequence[str]:
    """The fields whose flags may be left out, in the order of their values."""
    return getattr(config_class, "positional", ())


def _with_flags_of_positionals(argv: Sequence[str], positional: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Put the flag before each positional value, so that both spellings are read by the same rules. A tuple takes all values."""
    given = {arg.partition("=")[0] for arg in argv}
    names = [name for name in positional if _flag(name) not in given]
    args: list[str] = []
    collected: list[str] = []
    needs_value = False
    for arg in argv:
        is_value = arg == "-" or not arg.startswith("-")
        if names and is_value and not needs_value:
            if typing.get_origin(hints[names[0]]) is tuple:
                collected.append(arg)
            else:
                args.append(f"{_flag(names.pop(0))}={arg}")
        else:
            args.append(arg)
        name = arg.removeprefix("--").removeprefix("no-").replace("-", "_")
        needs_value = not is_value and "=" not in arg and hints.get(name) is not bool
    return [*args, *([_flag(names[0]), *collected] if collected else [])]


def _config_path(argv: Sequence[str]) -> Path:
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        flag, equals, value = arg.partition("=")
        if flag == "--config" and (value or (following and not equals)):
            return Path(value or following)
    raise ValueError("--config needs a value, the path of a TOML file")


def _read_toml(path: Path, hints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a TOML file by field name. Raises ValueError for an unknown key or an unreadable file."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"it has more than {_MAX_FILE_BYTES} bytes")
        document = tomllib.loads(content.decode())
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is not valid TOML: it is nested too deeply") from None
    settings = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name not in hints:
            raise ValueError(f"{path}: unknown key '{key}'{closest(name, hints)}; keys are the names of the flags")
        if isinstance(value, dict) or isinstance(value, bool) is not (hints[name] is bool):
            raise ValueError(f"{path}: {key} is {_show(value)}, must be {_kind(hints[name])}")
        settings[name] = value
    return settings


def _as_args(name: str, value: Any) -> list[str]:
    """Convert a setting of the file to command-line arguments, so that the same rules apply to file and flags."""
    flag = _flag(name)
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag[2:]]
    return [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]


def _check_required(config_class: type[Any], given: Iterable[str], prog: str) -> None:
    positional = _positional(config_class)
    missing = [
        field.name.upper() if field.name in positional else _flag(field.name)
        for field in fields_of(config_class)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and field.name not in set(given)
    ]
    if missing:
        is_or_are = "is" if len(missing) == 1 else "are"
        raise ValueError(f"{' and '.join(missing)} {is_or_are} required; {prog} --help lists all flags")


def closest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with similar names as the end of an error message, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def parse_numbers(name: str, text: str, defaults: Mapping[str, int | None]) -> dict[str, int]:
    """Parse the options "key=value,key=value" of `name` as positive whole numbers. A default of None marks a required key.

    Raises ValueError for an unknown or missing key, or a value that is not a positive whole number.
    """
    numbers = dict(defaults)
    for option in filter(None, text.split(",")):
        key, _, value = option.partition("=")
        if key not in defaults:
            allowed = ", ".join(defaults)
            raise ValueError(f"{name}: unknown option '{key}', must be one of {allowed}{closest(key, defaults)}")
        if not value.isascii() or not value.isdigit() or int(value[:_MAX_DIGITS]) < 1:
            raise ValueError(f"{name}: {key}={value} must be a positive whole number")
        if len(value) > _MAX_DIGITS:
            raise ValueError(f"{name}: {key}={value} is too large, must have at most {_MAX_DIGITS} digits")
        numbers[key] = int(value)
    missing = [f"{key}=..." for key, value in numbers.items() if value is None]
    if missing:
        raise ValueError(f"{name}: {', '.join(missing)} missing from '{text}'")
    return {key: value for key, value in numbers.items() if value is not None}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _first_name(text: str, names: Iterable[str]) -> str:
    """Return the field of the first flag in a message. Of two flags with a common prefix, the longer one matches."""
    flags = sorted(map(_flag, names), key=len, reverse=True)
    match = re.search("|".join(map(re.escape, flags)), text)
    assert match is not None, f"tyro rejected the command line without naming a flag: {text}"
    return match[0][2:].replace("-", "_")


def _value_of(name: str, args: Sequence[str]) -> str | None:
    """Return the value of the last occurrence of a flag, for an error message; None without a value."""
    words: list[str] = []
    is_inside = False
    for arg in args:
        flag, equals, value = arg.partition("=")
        if arg.startswith("--"):
            is_inside = flag.replace("_", "-") == _flag(name)
            words = ([value] if equals else []) if is_inside else words
        elif is_inside:
            words.append(arg)
    return " ".join(words) if words else None


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "a table" if isinstance(value, dict) else repr(value)


def _kind(hint: Any) -> str:
    """Describe the valid values of a type, for an error message."""
    known = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    if hint in known:
        return known[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_kind(argument) for argument in arguments if argument is not types.NoneType)
    if typing.get_origin(hint) in (tuple, list):
        return f"a list, each {_kind(arguments[0])}"
    return str(hint)
