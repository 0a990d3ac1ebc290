"""What the lines of a log look like, for people or for machines, and whom they are about. The same at both ends.

As text a line is time, level and message. As JSON it is one object, with the fields below where they are known. Fields come from
three places: what holds for the whole process (`start_logging`), for a piece of work (`about`), and for one message (`extra`).
Nothing else of a record is written, so that what a library attaches to its records cannot end up in a log.

Standard library only: the lightest program logs too.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import ClassVar, Literal

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Log flags of every command. For a settings class to inherit from."""

    help_group: ClassVar[str] = "output"

    log_level: LogLevel = "info"
    """Lowest severity of the log messages on stderr."""
    log_format: LogFormat = "text"
    """Format of log messages: text is for people, json writes one object per line."""


FIELDS = ("run", "edge", "policy", "index", "count", "peer")
"""Of which run and edge, under which policy, from which batch on, how many of them, and who is at the other end."""

_TEXT = "%(asctime)s %(levelname)s %(message)s"

_about: ContextVar[Mapping[str, object]] = ContextVar("_about", default=MappingProxyType({}))


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (ISO 8601, UTC), level, message, logger, the fields that are known, a traceback if any."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        """`fields` hold for every record."""
        super().__init__()
        self._fields = _known(fields)

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **self._fields,
            **_about.get(),
            **_known(record.__dict__),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(
    level: str, log_format: str = "text", *, text: str = _TEXT, fields: Mapping[str, object] = MappingProxyType({})
) -> None:
    """Messages go to stderr, one line each, with the time: runs are long, and links fail at night.

    `level` is a LogLevel, `log_format` a LogFormat. `text` is how a line looks as text; `fields` stand in every line of JSON.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's core writes lines of its own; what they tell of a connection we say
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(fields) if log_format == "json" else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler])


@contextmanager
def about(**fields: object) -> Iterator[None]:
    """What this thread, or this task of asyncio, logs in the block is about these `fields`. None is not known."""
    token = _about.set({**_about.get(), **_known(fields)})
    try:
        yield
    finally:
        _about.reset(token)


def about_from_now_on(**fields: object) -> None:
    """What this thread logs from here to its end is about these `fields`: for a program that does one thing, its last word too."""
    _about.set({**_about.get(), **_known(fields)})


def last_word(message: str) -> None:
    """What a program ends with, one line on stderr; as an object where the log is one of objects."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        logging.getLogger(__name__).error("%s", message.removeprefix("error: "))
    else:
        print(message, file=sys.stderr)


def _known(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: fields[name] for name in FIELDS if fields.get(name) is not None}


def plain(text: str, most: int | None = None) -> str:
    """`text` with all spelled out that would move a cursor, break a line or turn the writing round; cut to `most` letters."""
    cut = text if most is None or len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)
