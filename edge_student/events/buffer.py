"""Buffers the event records of a run (tasks, waits, decisions) in memory until they are written to events.jsonl.

Records are plain dicts with times of the monotonic clock. They stay in memory until the next checkpoint or the end of the run,
because a write within a training step would be unscheduled work.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Record = dict[str, Any]
_TIMES = ("time", "started", "ended", "decided")


class EventBuffer:
    """Collects records; safe to call from several threads (appending to a list is atomic)."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        """Append one record."""
        self.records.append(record)

    def take(self) -> list[Record]:
        """Remove and return all records."""
        taken = self.records[:]
        del self.records[: len(taken)]  # records that another thread appended meanwhile stay
        return taken

    def put_back(self, taken: list[Record]) -> None:
        """Put records from `take` back at the front."""
        self.records[:0] = taken


def since(start: float, records: Iterable[Record]) -> list[Record]:
    """Return the records in order of time, with times in seconds since `start`."""
    moved = [{**record, **{key: record[key] - start for key in _TIMES if key in record}} for record in records]
    return sorted(moved, key=moment)


def moment(record: Mapping[str, Any]) -> float:
    """Return the time or start time of a record, in seconds."""
    return float(record["started"] if "started" in record else record["time"])
