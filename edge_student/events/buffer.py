"""The run's log in memory: every task, wait and decision as a record, until it is written to events.jsonl.

Records are plain dicts with times of the monotonic clock. They are kept in memory, because a write in the middle of a training step
would be work that nobody scheduled, until the next checkpoint, or the end of the run, in whatever way it ends.
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
