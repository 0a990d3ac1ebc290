"""Writes events.jsonl: each checkpoint moves the buffered records from memory to the end of the file.

A resumed run first truncates the file to the length stored in its checkpoint.
"""

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edge_student.events.buffer import EventBuffer, Record, moment, since
from edgekd.files import free_bytes
from scheduler.model.checked_json import check_keys, not_negative


@dataclass(slots=True, kw_only=True)
class Totals:
    """Sums over the records of a run. Seconds are wall-clock, except `comm_cpu_s`.

    Time that a task was held (`held_s`) does not count as task time: it has a wait record of its own.
    """

    stall_s: float = 0.0
    hold_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0
    comm_s: float = 0.0
    comm_cpu_s: float = 0.0
    checkpoint_s: float = 0.0
    comm_num_bytes: int = 0
    num_cached_batches: int = 0
    num_decisions: int = 0
    num_checkpoints: int = 0

    def add(self, record: Record) -> None:
        """Add one record."""
        event = record["event"]
        if event == "decision":
            self.num_decisions += 1
        if event not in ("task", "wait", "checkpoint"):
            return
        seconds = float(record["ended"] - record["started"] - record.get("held_s", 0.0))
        if event == "checkpoint":
            self.checkpoint_s += seconds
            self.num_checkpoints += 1
        elif event == "wait":
            self.stall_s += seconds if record["why"] == "logits" else 0.0
            self.hold_s += seconds if record["why"] == "hold" else 0.0
        elif record["task"] == "comm":
            self.comm_s += seconds
            self.comm_cpu_s += record["cpu_s"]
            self.comm_num_bytes += record["num_bytes"]
            self.num_cached_batches += record["num_bytes"] == 0
        elif record["task"] == "forward":
            self.forward_s += seconds
        else:
            self.backward_s += seconds

    def to_json(self) -> dict[str, float]:
        """Return the totals by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, where: str) -> "Totals":
        """Return totals from the output of `to_json`. Raises ValueError for other data; `where` names its source."""
        names = {field.name: field.type for field in fields(cls)}
        check_keys(data, required=tuple(names), where=where)
        values = {name: not_negative(value, repr(name), where, "it") for name, value in data.items()}
        return cls(**{name: int(value) if names[name] is int else value for name, value in values.items()})  # type: ignore[arg-type]


class EventFile:
    """The events.jsonl of one run, with the totals of all records ever appended to it.

    `start` is the zero of the file's times, on the monotonic clock. A resumed run sets it earlier by the time it had already run.
    """

    start = 0.0

    def __init__(self, path: Path, *, num_bytes: int = 0, totals: Totals | None = None) -> None:
        """Open or create the file; truncate it to `num_bytes`, or to 0 if it is shorter. Raises OSError if it is not writable."""
        self.totals = totals or Totals()
        self._path = path
        size = path.stat().st_size if path.exists() else 0
        self.has_lost_records = size < num_bytes
        self.num_bytes = 0 if self.has_lost_records else num_bytes
        with path.open("ab") as file:
            file.truncate(self.num_bytes)

    def append(self, buffer: EventBuffer, *, keep_free: int = 0) -> None:
        """Move all buffered records to the file, if at least `keep_free` bytes of the disk remain free.

        Raises OSError with the file's name. Buffer and file are then unchanged.
        """
        taken = buffer.take()
        lines = "".join(json.dumps(record) + "\n" for record in since(self.start, taken)).encode()
        try:
            if keep_free and len(lines) > free_bytes(self._path) - keep_free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with self._path.open("r+b") as file:
                file.seek(self.num_bytes)
                file.write(lines)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            buffer.put_back(taken)
            with contextlib.suppress(OSError):  # removes partly written lines after a full disk
                os.truncate(self._path, self.num_bytes)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error
            raise
        self.num_bytes += len(lines)
        for record in taken:
            self.totals.add(record)

    def drop(self, buffer: EventBuffer) -> None:
        """Count the buffered records in the totals without writing them, because the disk has no space for them."""
        for record in buffer.take():
            self.totals.add(record)

    def tail(self, max_bytes: int) -> tuple[list[Record], bool]:
        """Return the records in the last `max_bytes` of the file, in order of time, and whether these are all records."""
        with self._path.open("rb") as file:
            skipped = max(self.num_bytes - max_bytes, 0)
            file.seek(skipped)
            if skipped:
                file.readline()
            records = [json.loads(line) for line in file]
        return sorted(records, key=moment), not skipped
