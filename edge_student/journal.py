"""The run's log: every task, wait and decision as a line of events.jsonl.

Records are plain dicts with times of the monotonic clock. They are kept in memory during the run, because a write in the middle of
a training step would be work that nobody scheduled, and saved when the run ends, in whatever way.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgekd.files import replace_atomically

Record = dict[str, Any]
_TIMES = ("time", "started", "ended", "decided")


class Journal:
    """Collects records; safe to call from several threads (appending to a list is atomic)."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        """Take in one record."""
        self.records.append(record)

    def relative_to(self, start: float) -> list[Record]:
        """The records in order of time, with times in seconds since `start`."""
        moved = [{**record, **{key: record[key] - start for key in _TIMES if key in record}} for record in self.records]
        return sorted(moved, key=moment)

    def total_s(self, **match: str) -> float:
        """Seconds that all records with these fields lasted together, for example total_s(event="wait", why="logits").

        What a task spent held in its middle is not its own: that is a wait, with a record of its own.
        """
        return sum(
            float(record["ended"] - record["started"] - record.get("held_s", 0.0))
            for record in self.records
            if all(record.get(key) == value for key, value in match.items())
        )


def moment(record: Record) -> float:
    """When a record happened or began, in seconds."""
    return float(record["started"] if "started" in record else record["time"])


def make_folder(folder: Path) -> None:
    """Make the folder that --out wants, and try it: what cannot be written is said before the work, not after.

    ValueError if something else has that name, OSError naming the folder if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"--out: {folder} cannot be a folder, because a file has that name or the name of one above it") from None
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it. OSError names the file."""
    replace_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does. ValueError for NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
