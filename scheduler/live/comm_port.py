"""The comm worker as the live loop sees it: what it tells, and what can be asked of it."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchArrived:
    """The comm worker has put batch `index` into the ring, between `started` and `ended`, for `cpu_s` of its CPU time.

    `busy_s`: seconds since the batch before in which it ran or waited for a core; None if nobody knows.
    """

    index: int
    started: float
    ended: float
    cpu_s: float
    num_bytes: int
    busy_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommEnded:
    """The comm worker has received everything and exits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommFailed:
    """The comm worker cannot go on; `error` is raised in the compute worker."""

    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class CommTrouble:
    """An attempt to receive failed at `time`, and another follows."""

    time: float
    cause: str


CommEvent = BatchArrived | CommEnded | CommFailed | CommTrouble


class CommPort(Protocol):
    """The comm worker as the scheduler sees it."""

    def go(self) -> None:
        """Let the worker start."""

    def next_event(self, timeout_s: float) -> CommEvent | None:
        """Wait for its next event; None when the time is up. Only the scheduler thread calls this."""

    def hold(self) -> None:
        """Stop it at its next chunk."""

    def release(self) -> None:
        """Let it go on."""

    def free_slots(self, num_batches: int) -> None:
        """Batches 0 .. num_batches-1 have been consumed."""
