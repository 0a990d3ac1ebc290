"""events.jsonl, which grows at every checkpoint: what a run has logged since the last one is appended, and leaves the memory.

A run that goes on after a kill cuts the file back to the length that its checkpoint remembers, and appends to that.
"""

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edge_student.events.buffer import EventBuffer, Record, moment, since
from scheduler.model.checked_json import check_keys, not_negative


@dataclass(slots=True, kw_only=True)
class Totals:
    """What the records of a run add up to. Seconds are wall-clock but for `comm_cpu_s`.

    What a task spent held in its middle is not its own: that is a wait, with a record of its own.
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
        """One record more."""
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
        """By name."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, where: str) -> "Totals":
        """ValueError for what `to_json` cannot have made."""
        names = {field.name: field.type for field in fields(cls)}
        check_keys(data, required=tuple(names), where=where)
        values = {name: not_negative(value, repr(name), where, "it") for name, value in data.items()}
        return cls(**{name: int(value) if names[name] is int else value for name, value in values.items()})  # type: ignore[arg-type]


class EventFile:
    """The file of one run, and the totals of all that was ever appended to it.

    `start` is when its times count from, on the monotonic clock: of a run that goes on, so long ago as it had run before.
    """

    start = 0.0

    def __init__(self, path: Path, *, num_bytes: int = 0, totals: Totals | None = None) -> None:
        """`num_bytes` are kept of what is there, none of it if there are fewer. Raises OSError if it cannot be written."""
        self.totals = totals or Totals()
        self._path = path
        size = path.stat().st_size if path.exists() else 0
        self.has_lost_its_beginning = size < num_bytes
        self.num_bytes = 0 if self.has_lost_its_beginning else num_bytes
        with path.open("ab") as file:
            file.truncate(self.num_bytes)

    def append(self, buffer: EventBuffer, *, keep_free: int = 0) -> None:
        """Move to the file all that the buffer holds, if that leaves `keep_free` bytes of the disk.

        Raises OSError naming the file; then everything is as it was.
        """
        taken = buffer.take()
        lines = "".join(json.dumps(record) + "\n" for record in since(self.start, taken)).encode()
        try:
            disk = os.statvfs(self._path)
            # Some file systems, in user space or over a network, do not tell: they say that they have no blocks at all.
            if keep_free and disk.f_blocks and len(lines) > disk.f_bavail * disk.f_frsize - keep_free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with self._path.open("r+b") as file:
                file.seek(self.num_bytes)
                file.write(lines)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except BaseException as error:
            buffer.put_back(taken)
            with contextlib.suppress(OSError):  # half of the lines, on a full disk
                os.truncate(self._path, self.num_bytes)
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error
            raise
        self.num_bytes += len(lines)
        for record in taken:
            self.totals.add(record)

    def tail(self, most_bytes: int) -> tuple[list[Record], bool]:
        """The last records, as many as so many bytes hold, in order of time; and whether those are all."""
        with self._path.open("rb") as file:
            skipped = max(self.num_bytes - most_bytes, 0)
            file.seek(skipped)
            if skipped:
                file.readline()
            records = [json.loads(line) for line in file]
        return sorted(records, key=moment), not skipped
