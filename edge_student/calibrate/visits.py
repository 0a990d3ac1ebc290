"""How a device is measured: which modes, in which order, for how long, and what counts of what is seen there.

The modes take turns (A B C, C B A, A B C, ...), so that a device that warms up or is disturbed for a while treats them alike. There
is no clock here and starts nothing: a `Device` stays in a mode and tells its `Visit` of every boundary and every batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from edgekd.errors import WorldError
from scheduler.model.state import COMPUTE_FIRST, Allocation, Task

ROUNDS = 8
"""Visits of each mode that the time is planned for: four there and back."""

MIN_TASKS = 3
"""Tasks of each side after which a visit may end, if there is time for so many."""

MAX_SPLITS = 8

QUIET_SHARE = 0.7
"""CPU seconds per wall second of the comm worker below which it must have waited for the link."""

_HOPELESS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeUnderTest:
    """A mode that is to be measured."""

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
        """Whether comm has cores that training leaves alone. Otherwise it may starve, while the link fills its stores."""
        return self.has_comm and self.allocation.shared is None

    @property
    def may_starve(self) -> bool:
        """Whether comm runs, but on cores that training has too."""
        return self.has_comm and self.allocation.shared is not None


def modes_under_test(num_cores: int) -> tuple[ModeUnderTest, ...]:
    """The modes to measure on so many cores: of many splits the outermost and some evenly between. ValueError for one core.

    comm-only stands beside comp-only, so that what the link has in store after comm was held is drained on every core.
    """
    if num_cores < 2:
        raise ValueError(f"calibrate measures how cores are divided, and there is {num_cores}; give it 2 or more, see --cores")
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
    """One stay in one mode. Its first task of each side is not counted: it began in another mode.

    `share_s` is the time it is meant to have, `limit_s` that after which fewer than MIN_TASKS must do. If comm was kept from
    receiving for `starved_s` before, the link has up to `num_stored` batches in store, which arrive faster than it brings any: they
    do not count. They are over when comm waits, when there can be no more of them, or when it had as long as it was kept.

    A batch's time is that since the one before. Where comm may starve, a time without a batch counts too: that since the last one
    if it was longer than any before it, and all of the visit if there was one batch or none.
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
        """Both sides have been put into the mode. What happened before does not count."""
        self._begun = time
        if not (self._starved_s and self._num_stored and self.mode.has_comm):
            self._settled = time

    def boundary(self, task: Task, time: float) -> None:
        """Training has come to the boundary before `task`."""
        (self._forwards if task is Task.FORWARD else self._backwards).append(time)

    def batch(self, ended: float, cpu_s: float) -> None:
        """A batch was complete at `ended`, for so many seconds of the comm worker's CPU time."""
        if self._begun is None or ended < self._begun or not self.mode.has_comm:
            return  # where comm is held, each stream may still end the chunk it is at, and with it a batch
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
        """The link failed: the batch that is under way will have taken longer than it takes."""
        self._arrived = None

    def is_over(self, now: float) -> bool:
        """Whether enough was seen, or as much as there is time for. To be asked where training begins a cycle, if it runs.

        WorldError when a side that has cores gets nothing done.
        """
        assert self._begun is not None, "begin() comes first"
        elapsed = now - self._begun
        if self._has_seen(MIN_TASKS):
            return now - (self._settled or self._begun) >= self._share_s
        if elapsed < self._limit_s + self._starved_s:
            return False
        if elapsed > _HOPELESS * ROUNDS * (self._limit_s + self._starved_s) and not self._has_seen(1):
            what = "cycle of training" if self.mode.has_comp and not self.num_comp else "batch"
            raise WorldError(f"in {self.mode.name} no whole {what} within {elapsed:.0f} s: too slow to measure in --seconds")
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
        """Seconds in which they were received."""
        if not (self.mode.may_starve and self._forwards and self._begun is not None):
            return sum(self._gaps)
        end = self._forwards[-1]
        if not self._gaps:
            return end - self._begun
        since = end - self._arrived if self._arrived is not None else 0.0
        return sum(self._gaps) + (since if since > max(self._gaps) else 0.0)

    @property
    def comp_s(self) -> float:
        """Seconds that they took, from boundary to boundary."""
        return self._forwards[-1] - self._forwards[1] if self.num_comp else 0.0

    @property
    def forward_s(self) -> float:
        """Seconds of that from a Forward's boundary to its Backward's."""
        counted = slice(1, self.num_comp + 1)
        return sum(self._backwards[counted]) - sum(self._forwards[counted]) if self.num_comp else 0.0

    @property
    def seconds(self) -> float:
        """From the beginning to the last boundary or batch."""
        ends = [*self._forwards[-1:], *([] if self._arrived is None else [self._arrived])]
        return max(ends) - self._begun if ends and self._begun is not None else 0.0

    def _has_seen(self, num_tasks: int) -> bool:
        mode = self.mode
        comm_is_seen = self.num_comm >= num_tasks or not mode.has_comm or (num_tasks == 1 and not mode.has_own_comm_cores)
        return comm_is_seen and (self.num_comp >= num_tasks or not mode.has_comp)


class Device(Protocol):
    """A device, or what stands for one in a test."""

    def stay(self, visit: Visit) -> None:
        """Go into the visit's mode, tell it everything that happens, and return when it is over."""


def measure(
    device: Device,
    modes: Sequence[ModeUnderTest],
    *,
    seconds: float,
    window: int,
    clock: Callable[[], float],
    on_visit: Callable[[str, float], None] = lambda name, spent_s: None,
) -> list[Visit]:
    """Visit all modes in turns for about `seconds`, once there and back at least; `on_visit` hears of each before it begins.

    Always there and back, or a device that grows slower would be seen later in one mode than in another.
    `window` is how many batches the teacher sends at one request, and so the most that the link can have in store.
    """
    share_s = seconds / (ROUNDS * len(modes))
    limit_s = seconds / (2 * len(modes))
    visits: list[Visit] = []
    began = left = clock()
    # On, as long as the time then spent is nearer to what was asked for than the time spent now.
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
    """For how long comm has been kept from receiving until now."""
    return sum(visit.seconds for visit in takewhile(lambda visit: not visit.mode.has_own_comm_cores, reversed(visits)))
