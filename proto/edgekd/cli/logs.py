"""Format log lines as text or JSON and attach context fields to them.

A text line has time, level and message. A JSON line is one object, which also has the fields below if they are known. Fields come
from three sources: the process (`start_logging`), a block of code (`log_context`) and one message (`extra`). No other attribute of
a record is written, so that data which a library attaches to its records cannot get into a log.

Standard library only, because every program logs, the lightest ones too.
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
from typing import ClassVar, Literal, TextIO

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Log flags of every command. Settings classes inherit from it."""

    help_group: ClassVar[str] = "output"

    log_level: LogLevel = "info"
    """Lowest severity of the log messages on stderr."""
    log_format: LogFormat = "text"
    """Format of log messages: text is for people, json writes one object per line."""


FIELDS = ("run", "edge", "policy", "index", "count", "peer")
"""Run id, edge id, policy, index of the first batch, number of batches, address of the remote end."""

_TEXT = "%(asctime)s %(levelname)s %(message)s"

_context: ContextVar[Mapping[str, object]] = ContextVar("_context", default=MappingProxyType({}))


class JsonFormatter(logging.Formatter):
    """Format a record as a JSON object: time (ISO 8601, UTC), level, message, logger, known fields, traceback if any."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        """Store `fields`, which are added to every record."""
        super().__init__()
        self._fields = _known(fields)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
            **self._fields,
            **_context.get(),
            **_known(record.__dict__),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(
    level: str, log_format: str = "text", *, text: str = _TEXT, fields: Mapping[str, object] = MappingProxyType({})
) -> None:
    """Send log messages to stderr, one line each, with the time.

    `level` is a LogLevel, `log_format` a LogFormat. `text` is the format string of text lines. `fields` are added to every
    JSON line.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core has a log of its own; our errors name the causes
    handler = _StderrHandler()
    handler.setFormatter(JsonFormatter(fields) if log_format == "json" else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is now: while a progress bar is shown, it prints the records above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


@contextmanager
def log_context(**fields: object) -> Iterator[None]:
    """Add `fields` to the messages that this thread, or this asyncio task, logs in the block. Fields that are None are omitted."""
    token = _context.set({**_context.get(), **_known(fields)})
    try:
        yield
    finally:
        _context.reset(token)


def set_log_context(**fields: object) -> None:
    """Add `fields` to all further messages of this thread, including the final error message of a program."""
    _context.set({**_context.get(), **_known(fields)})


def print_error(message: str) -> None:
    """Print the final error message of a program to stderr, in the format of its log."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        logging.getLogger(__name__).error("%s", message.removeprefix("error: "))
    else:
        print(message, file=sys.stderr)


def _known(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: fields[name] for name in FIELDS if fields.get(name) is not None}


def plain(text: str, max_length: int | None = None) -> str:
    """Escape unprintable characters, which could move the cursor, break a line or reverse the text. Cut to `max_length`."""
    cut = text if max_length is None or len(text) <= max_length else f"{text[:max_length]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)
