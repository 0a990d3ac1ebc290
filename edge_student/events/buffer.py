"""The run's log in memory: every task, wait and decision as a record, until it is written to events.jsonl.

Records are plain dicts with times of the monotonic clock. They are kept in memory, because a write in the middle of a training step
would be work that nobody scheduled, until the next checkpoint, or the end of the run, in whatever way it ends.
"""

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgekd.files import named_by, replace_atomically

logger = logging.getLogger(__name__)

Record = dict[str, Any]
_TIMES = ("time", "started", "ended", "decided")


class Journal:
    """Collects records; safe to call from several threads (appending to a list is atomic)."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        """Take in one record."""
        self.records.append(record)

    def take(self) -> list[Record]:
        """All records so far, which are no longer kept here."""
        taken = self.records[:]
        del self.records[: len(taken)]  # what another thread has appended meanwhile stands behind them
        return taken

    def put_back(self, taken: list[Record]) -> None:
        """Keep again what `take` gave."""
        self.records[:0] = taken

    def relative_to(self, start: float) -> list[Record]:
        """The records in order of time, with times in seconds since `start`."""
        return since(start, self.records)


def since(start: float, records: Iterable[Record]) -> list[Record]:
    """Records in order of time, with times in seconds since `start`."""
    moved = [{**record, **{key: record[key] - start for key in _TIMES if key in record}} for record in records]
    return sorted(moved, key=moment)


def moment(record: Mapping[str, Any]) -> float:
    """When a record happened or began, in seconds."""
    return float(record["started"] if "started" in record else record["time"])


def make_folder(folder: Path) -> None:
    """Make the folder that --out wants, and try it: what cannot be written is said before the work, not after.

    ValueError if something else has that name, or nothing may be written there; OSError naming the folder if the disk is at fault.
    """
    with named_by("--out"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            what = "a link that leads nowhere" if folder.is_symlink() else "a file"
            raise ValueError(f"--out: {folder} cannot be a folder, because {what} has that name, or that of one above it") from None
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error


def claim_folder(folder: Path) -> int:
    """Keep other runs from writing there while this process lives; the descriptor that does.

    ValueError if another run has it. Where the file system knows no locks it is only said.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"--out {folder}: another run is at work there; wait for its end, or name another folder") from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see that no other run writes there", folder, error.strerror)
    return descriptor


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it. OSError names the file."""
    replace_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does. ValueError for NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
