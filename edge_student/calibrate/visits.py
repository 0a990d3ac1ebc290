"""The measurement plan of `calibrate`: the modes, their order and duration, and the rules for which tasks count.

Modes are interleaved (A B C, C B A, A B C, ...), so that warm-up and disturbances affect them alike. This module has no clock and
starts nothing. A `Device` runs a mode and reports every task boundary and every batch to its `Visit`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from edgekd.errors import WorldError
from scheduler.model.state import COMPUTE_FIRST, Allocation, Task

ROUNDS = 8
"""Planned visits of each mode: four pairs, there and back."""

MIN_TASKS = 3
"""Tasks of each side after which a visit may end, if time allows."""

MAX_SPLITS = 8

QUIET_SHARE = 0.7
"""CPU seconds per wall-clock second of the comm worker below which it waited for the link."""

_HOPELESS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeUnderTest:
    """A mode to measure."""

    name: str
    allocation: Allocation

    @property
    def has_comm(self) -> bool:
        """Whether comm runs in it."""
        return self.allocation.comm > 0

    @property
    def has_comp(self) -> bool:
        """Whether training runs in it."""
        return self.allocation.comp > 0

    @property
    def has_own_comm_cores(self) -> bool:
        """Whether comm has cores that training does not use. Otherwise comm can starve while the link buffers data."""
        return self.has_comm and self.allocation.shared is None

    @property
    def may_starve(self) -> bool:
        """Whether comm runs, but only on cores that training uses too."""
        return self.has_comm and self.allocation.shared is not None


def modes_under_test(num_cores: int) -> tuple[ModeUnderTest, ...]:
    """Return the modes to measure on `num_cores`: at most MAX_SPLITS splits, evenly spaced. Raises ValueError for one core.

    comm-only follows comp-only, so that batches buffered by the link while comm was held are drained on every core.
    """
    if num_cores < 2:
        raise ValueError(f"calibrate measures splits of the cores, and this run has {num_cores} core; use 2 or more, see --cores")
    last, num_splits = num_cores - 1, min(num_cores - 1, MAX_SPLITS)
    steps = max(num_splits - 1, 1)
    splits = sorted({1 + round((last - 1) * n / steps) for n in range(num_splits)})
    return (
        ModeUnderTest(name="comp-only", allocation=Allocation.all_comp(num_cores)),
        ModeUnderTest(name="comm-only", allocation=Allocation.all_comm(num_cores)),
        *(ModeUnderTest(name=f"split:{c}", allocation=Allocation.split(c, num_cores)) for c in splits),
        ModeUnderTest(name=COMPUTE_FIRST, allocation=Allocation.sharing(COMPUTE_FIRST, num_cores)),
    )


class Visit:
    """One visit of one mode. The first task of each side does not count, because it started in another mode.

    `share_s` is the planned duration in seconds. After `limit_s` seconds, fewer than MIN_TASKS tasks suffice.

    If comm could not receive for `starved_s` seconds before, the link has buffered up to `num_stored` batches. They arrive faster
    than the link's rate and do not count. The buffer is empty when comm waits, after `num_stored` batches, or after `starved_s`
    seconds.

    The duration of a batch is the time since the previous one. If comm may starve, time without a batch counts too: the time since
    the last batch if it is longer than every gap before. With at most one batch, the whole visit counts.
    """

    def __init__(self, mode: ModeUnderTest, *, share_s: float, limit_s: float, starved_s: float = 0.0, num_stored: int = 0) -> None:
        self.mode = mode
        self._share_s, self._limit_s, self._starved_s = share_s, limit_s, starved_s
        self._num_stored = num_stored
        self._begun: float | None = None
        self._settled: float | None = None
        self._arrived: float | None = None
        self._forwards: list[float] = []
        self._backwards: list[float] = []
        self._gaps: list[float] = []
        self._num_arrived = 0
        self.comm_cpu_s = 0.0

    def begin(self, time: float) -> None:
        """Start the visit: both sides are in the mode now. Earlier tasks do not count."""
        self._begun = time
        if not (self._starved_s and self._num_stored and self.mode.has_comm):
            self._settled = time

    def task_boundary(self, task: Task, time: float) -> None:
        """Record that training reached the boundary before `task`."""
        (self._forwards if task is Task.FORWARD else self._backwards).append(time)

    def batch(self, ended: float, cpu_s: float) -> None:
        """Record a batch that was complete at `ended` and took `cpu_s` seconds of CPU time of the comm worker."""
        if self._begun is None or ended < self._begun or not self.mode.has_comm:
            return  # a stream of a held comm worker may still finish its chunk, and with it a batch
        before, self._arrived = self._arrived, ended
        if self._settled is None:
            self._num_stored -= 1
            waited = before is not None and cpu_s < QUIET_SHARE * (ended - before)
            if waited or self._num_stored <= 0 or ended - self._begun >= self._starved_s:
                self._settled = ended
        else:
            self._num_arrived += 1
            if before is not None:
                self._gaps.append(ended - before)
                self.comm_cpu_s += cpu_s

    def trouble(self) -> None:
        """Record that the link failed: the duration of the batch in flight does not count."""
        self._arrived = None

    def is_over(self, now: float) -> bool:
        """Return whether enough tasks were seen, or the time is over. If training runs, call it at the start of a cycle.

        Raises WorldError if a side with cores finishes no task in a long time.
        """
        assert self._begun is not None, "begin() comes first"
        elapsed = now - self._begun
        if self._has_seen(MIN_TASKS):
            return now - (self._settled or self._begun) >= self._share_s
        if elapsed < self._limit_s + self._starved_s:
            return False
        if elapsed > _HOPELESS * ROUNDS * (self._limit_s + self._starved_s) and not self._has_seen(1):
            what = "cycle of training" if self.mode.has_comp and not self.num_comp else "batch"
            raise WorldError(f"no complete {what} in mode {self.mode.name} within {elapsed:.0f} s; increase --seconds")
        return self._has_seen(1)

    @property
    def num_comp(self) -> int:
        """Cycles of training that count."""
        return max(len(self._forwards) - 2, 0)

    @property
    def num_comm(self) -> int:
        """Batches that count."""
        return min(self._num_arrived, 1) if self.mode.may_starve and not self._gaps else len(self._gaps)

    @property
    def comm_s(self) -> float:
        """Seconds in which the counted batches were received."""
        if not (self.mode.may_starve and self._forwards and self._begun is not None):
            return sum(self._gaps)
        end = self._forwards[-1]
        if not self._gaps:
            return end - self._begun
        since = end - self._arrived if self._arrived is not None else 0.0
        return sum(self._gaps) + (since if since > max(self._gaps) else 0.0)

    @property
    def comp_s(self) -> float:
        """Seconds of the counted cycles, from boundary to boundary."""
        return self._forwards[-1] - self._forwards[1] if self.num_comp else 0.0

    @property
    def forward_s(self) -> float:
        """Seconds of the counted cycles from the boundary of Forward to that of Backward."""
        counted = slice(1, self.num_comp + 1)
        return sum(self._backwards[counted]) - sum(self._forwards[counted]) if self.num_comp else 0.0

    @property
    def seconds(self) -> float:
        """Seconds from the start of the visit to the last boundary or batch."""
        ends = [*self._forwards[-1:], *([] if self._arrived is None else [self._arrived])]
        return max(ends) - self._begun if ends and self._begun is not None else 0.0

    def _has_seen(self, num_tasks: int) -> bool:
        mode = self.mode
        comm_is_seen = self.num_comm >= num_tasks or not mode.has_comm or (num_tasks == 1 and not mode.has_own_comm_cores)
        return comm_is_seen and (self.num_comp >= num_tasks or not mode.has_comp)


class Device(Protocol):
    """A device, or a fake of one in a test."""

    def stay(self, visit: Visit) -> None:
        """Switch to the visit's mode, report every boundary and batch to it, and return when it is over."""


def measure(
    device: Device,
    modes: Sequence[ModeUnderTest],
    *,
    seconds: float,
    window: int,
    clock: Callable[[], float],
    on_visit: Callable[[str, float], None] = lambda name, spent_s: None,
) -> list[Visit]:
    """Visit all modes in turn for about `seconds`, at least once there and back. `on_visit` is called before every visit.

    Every round goes there and back, so that a device that slows down affects all modes alike. `window` is the number of batches in
    one request, and therefore the most that the link can buffer.
    """
    share_s = seconds / (ROUNDS * len(modes))
    limit_s = seconds / (2 * len(modes))
    visits: list[Visit] = []
    began = left = clock()
    # Start another round if the total is then nearer to `seconds` than it is now.
    while not visits or (clock() - began) + (clock() - left) / 2 < seconds:
        left = clock()
        for mode in (*modes, *reversed(modes)):
            on_visit(mode.name, clock() - began)
            starved_s = min(_starved_s(visits), limit_s) if mode.has_own_comm_cores else 0.0
            visit = Visit(mode, share_s=share_s, limit_s=limit_s, starved_s=starved_s, num_stored=window)
            device.stay(visit)
            visits.append(visit)
    return visits


def _starved_s(visits: Sequence[Visit]) -> float:
    """Return the seconds for which comm has had no cores of its own until now."""
    return sum(visit.seconds for visit in takewhile(lambda visit: not visit.mode.has_own_comm_cores, reversed(visits)))
