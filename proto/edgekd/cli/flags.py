"""Turn a settings dataclass into command-line flags and a grouped --help, with tyro.

A class puts its fields into a help group with `help_group: ClassVar[str]`, a single field with `metadata={"group": NAME}`.
Field docstrings are the help texts. A field whose default is None states the effect of the default in its docstring.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

GROUPS = ("data", "model", "training", "recipe", "receiving", "serving", "cores", "security", "output")
"""Help groups in the order of --help. Fields without a group come first."""

_MAX_HELP_COLUMNS = 100
_METAVARS = {str: "STR", int: "INT", float: "FLOAT", Path: "PATH"}
_CONFIG_HELP = "TOML file with settings. Its keys are the names of these flags. A flag on the command line overrides the file."


def fields_of(config_class: type[Any]) -> list[dataclasses.Field[Any]]:
    """Fields that are flags, in declaration order."""
    return [field for field in dataclasses.fields(config_class) if field.init]


def hints_of(config_class: type[Any]) -> dict[str, Any]:
    """Type of every flag by field name."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in fields_of(config_class)}


def print_help(config_class: type[Any], *, prog: str, description: str, positional: Sequence[str] = ()) -> None:
    """Print --help and exit with status 0. The fields in `positional` are shown as positional arguments."""
    import tyro

    try:
        with _bounded_width():
            tyro.cli(
                _twin(config_class, help_texts(config_class), positional),
                args=["--help"],
                prog=prog,
                description=description,
                config=(tyro.conf.EnumChoicesFromValues, tyro.conf.OmitArgPrefixes),
            )
    finally:
        sys.stdout.flush()  # a closed pipe must raise here, not at exit


def read_flags(config_class: type[Any], args: Sequence[str], *, prog: str) -> tuple[dict[str, Any], list[str]] | str:
    """Return the values by field name and the arguments that are no flags. Return tyro's message if a value is invalid.

    The message contains no white space: tyro wraps it to the terminal's width, which could break a flag in two.
    """
    # tyro takes 0.1 s to import. The list of commands and the version do not need it.
    import tyro

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            values, unexpected = tyro.cli(
                _twin(config_class, {}),
                args=args,
                prog=prog,
                return_unknown_args=True,
                config=(tyro.conf.EnumChoicesFromValues, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        return re.sub(r"[\s\u2500-\u257f|+]", "", stderr.getvalue())
    groups = [values, *(getattr(values, field.name) for field in dataclasses.fields(values) if _is_group(field))]
    flat = {field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
    return {name: flat[name] for name in hints_of(config_class)}, unexpected


def _twin(config_class: type[Any], docs: dict[str, str], positional: Sequence[str] = ()) -> type[Any]:
    """Build a dataclass for tyro: the same flags without validation, each help group as a nested dataclass.

    The caller builds the real class from the values. Otherwise tyro would print a ValueError of __post_init__ in its own format.
    """
    import tyro

    hints = hints_of(config_class)
    arguments: dict[str, list[tuple[str, Any, Any]]] = {group: [] for group in ("", *GROUPS)}
    for field in sorted(fields_of(config_class), key=lambda field: _rank(config_class, field)):
        kind, default = _as_argument(field, hints[field.name], docs.get(field.name))
        if field.name in positional:
            kind = Annotated[kind, tyro.conf.Positional]
        group = "" if field.name in positional else group_of(config_class, field)
        arguments[group].append((field.name, kind, default))
    config = Annotated[Path | None, tyro.conf.arg(help=_CONFIG_HELP, help_behavior_hint="", metavar="PATH")]
    members: list[tuple[str, Any, Any]] = [("config", config, dataclasses.field(default=None)), *arguments.pop("")]
    for group, inside in arguments.items():
        if inside:
            nested = dataclasses.make_dataclass(group, inside, frozen=True, kw_only=True)
            members.append((group, nested, dataclasses.field(metadata={"is_group": True})))
    return dataclasses.make_dataclass(config_class.__name__, members, frozen=True, kw_only=True)


def _as_argument(field: dataclasses.Field[Any], hint: Any, doc: str | None) -> tuple[Any, Any]:
    """Type and default of one flag for tyro. A None default is not displayed, nor is None a part of the placeholder."""
    import tyro

    options: dict[str, Any] = {} if doc is None else {"help": doc}
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if isinstance(hint, types.UnionType) and len(kinds) == 1 and kinds[0] in _METAVARS:
        options["metavar"] = _METAVARS[kinds[0]]
    if field.default is None:
        options["help_behavior_hint"] = ""
    default = dataclasses.field(default=field.default, default_factory=field.default_factory)
    return Annotated[hint, tyro.conf.arg(**options)], default


def _is_group(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("is_group"))


def group_of(config_class: type[Any], field: dataclasses.Field[Any]) -> str:
    """Return the help group of a field: its own group, or that of its declaring class, or ""."""
    group: str = field.metadata.get("group", vars(_declaring_class(config_class, field)).get("help_group", ""))
    return group


def _rank(config_class: type[Any], field: dataclasses.Field[Any]) -> int:
    """Order within a help group: first the fields of the command itself, last those of shared settings."""
    mro = config_class.__mro__
    return mro.index(_declaring_class(config_class, field)) if "group" in field.metadata else len(mro)


def _declaring_class(config_class: type[Any], field: dataclasses.Field[Any]) -> type[Any]:
    return next(each for each in config_class.__mro__ if field.name in inspect.get_annotations(each))


def help_texts(config_class: type[Any]) -> dict[str, str]:
    """Docstring below each field of a class and of its bases, on one line."""
    docs = {}
    for each in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(following, ast.Expr):
                docs[statement.target.id] = " ".join(ast.literal_eval(following.value).split())
    return docs


@contextlib.contextmanager
def _bounded_width() -> Iterator[None]:
    """Limit the width of --help: tyro would use several columns on a wide terminal."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, _MAX_HELP_COLUMNS))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
