"""The interface between the live loop and the comm worker: the worker's events and the loop's commands.

`BatchArrived` becomes the record `task` of the event log and the controller's event `TaskDone`.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchArrived:
    """The comm worker has written batch `index` into the ring between `started` and `ended`, using `cpu_s` of CPU time.

    `busy_s`: seconds since the previous batch in which the worker ran or waited for a core; None if unknown.
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
    """The comm worker cannot continue. `error` is raised in the compute worker."""

    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class CommTrouble:
    """An attempt to receive failed at `time`; a retry follows."""

    time: float
    cause: str


CommEvent = BatchArrived | CommEnded | CommFailed | CommTrouble


class CommPort(Protocol):
    """The comm worker as the scheduler sees it."""

    def go(self) -> None:
        """Start receiving."""

    def next_event(self, timeout_s: float) -> CommEvent | None:
        """Wait for the next event; None after `timeout_s` seconds. Called by the scheduler thread only."""

    def hold(self) -> None:
        """Hold the worker at its next chunk."""

    def release(self) -> None:
        """Release a held worker."""

    def free_slots(self, num_batches: int) -> None:
        """Free the slots of batches 0 .. num_batches-1, which have been consumed."""
