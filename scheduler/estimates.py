"""How fast each side runs with so many cores, and what part of a cycle Forward is, learnt from tasks as they finish.

A task that ran with one number of cores all the way tells that rate exactly. Many do not: where one side is soon blocked, the
other has its split for a moment only, and then every core. Such a task tells one equation, the sum over its shares of rate
times seconds being its work. So the rates are those that explain the last tasks together, found by correcting them by factors,
task after task, the newest last (the multiplicative algebraic reconstruction of tomography). All rates are work per second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from scheduler.cost import RateTable, Workload
from scheduler.state import Task

Share: TypeAlias = tuple[int, bool]
"""What one side had while it ran: its number of cores, and whether it was pinned to them."""

MEMORY = 16
"""Tasks of each side that the rates must explain. A share that none of them had keeps its rate."""

SWEEPS = 3
"""Corrections by every remembered task for each that has finished."""

GAIN = 0.2
"""How much of a task's surprise one correction takes back: the newest tasks weigh most, and noise is averaged."""

CLOCK_S = 1e-9
"""Seconds that no clock of a kernel resolves: less is rounding, and no time to learn from."""

PARTIAL_TASKS = 3
"""A rate counts as measured after one task's worth of time, or after this many tasks that had it for a part of theirs: where
one side is always blocked after a moment, no task ever keeps a split for the whole of its time.
"""


@dataclass(slots=True)
class SideEstimate:
    """The rates of one side. `weights` counts its tasks by the part of their time, `num_tasks` counts them all."""

    rates: dict[Share, float] = field(default_factory=dict)
    weights: dict[Share, float] = field(default_factory=dict)
    num_tasks: dict[Share, int] = field(default_factory=dict)
    recent: deque[tuple[Task, dict[Share, float]]] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def remember(self, task: Task, work: float, seconds: dict[Share, float]) -> None:
        """A task ran `seconds` with each share. A share never seen before is believed as fast as this task was."""
        total = sum(seconds.values())
        for share, spent in seconds.items():
            self.rates.setdefault(share, work / total)
            self.weights[share] = self.weights.get(share, 0.0) + spent / total
            self.num_tasks[share] = self.num_tasks.get(share, 0) + 1
        self.recent.append((task, seconds))

    def correct(self, works: Mapping[Task, float]) -> None:
        """Bring the rates nearer to the remembered tasks, given the work of each kind."""
        for task, seconds in self.recent:
            surprise = works[task] / self.work_done(seconds)
            longest = max(seconds.values())
            for share, spent in seconds.items():
                self.rates[share] *= surprise ** (GAIN * spent / longest)

    def work_done(self, seconds: Mapping[Share, float]) -> float:
        """Work that these seconds are worth; a share never seen is worth nothing."""
        return sum(self.rates.get(share, 0.0) * spent for share, spent in seconds.items())

    def mean_work(self, task: Task) -> float:
        """Mean over the remembered tasks of this kind, by the rates; 0 if there are none."""
        works = [self.work_done(seconds) for kind, seconds in self.recent if kind is task]
        return sum(works) / len(works) if works else 0.0

    def is_measured(self, cores: int) -> bool:
        """Whether the rate of this many pinned cores rests on enough tasks."""
        share = (cores, True)
        return self.weights.get(share, 0.0) >= 1 - 1e-9 or self.num_tasks.get(share, 0) >= PARTIAL_TASKS


class Estimates:
    """Both sides' rates, the work of a cycle, and the table of a device that they imply.

    Without a known workload, a Comm task is 1 unit, and Forward and Backward add up to 1: halves until both have been seen,
    then in the proportion of their durations, had they run on the same cores.
    """

    def __init__(self, workload: Workload | None = None) -> None:
        self._is_workload_known = workload is not None
        self.workload = workload or Workload(forward=0.5, backward=0.5, comm=1.0)
        self.comm = SideEstimate()
        self.comp = SideEstimate()
        self._num_pending = 0  # tasks remembered since the rates were last corrected

    def finish(self, task: Task, seconds: Mapping[Share, float]) -> None:
        """Learn from one finished task. One too short for the clock tells nothing."""
        felt = {share: spent for share, spent in seconds.items() if spent > CLOCK_S}
        if not felt:
            return
        side = self.comm if task is Task.COMM else self.comp
        side.remember(task, self._works()[task], felt)
        self._num_pending += 1

    def refresh(self) -> None:
        """Correct the rates by all remembered tasks, once for each that came since. Whoever reads rates calls it; most policies
        never do, and it costs more than a decision."""
        for _ in range(min(self._num_pending, MEMORY)):
            for side in (self.comm, self.comp):
                side.correct(self._works())
            if not self._is_workload_known:
                self._learn_proportion()
        self._num_pending = 0

    def _works(self) -> dict[Task, float]:
        work = self.workload
        return {Task.COMM: work.comm, Task.FORWARD: work.forward, Task.BACKWARD: work.backward}

    def _learn_proportion(self) -> None:
        forward, backward = self.comp.mean_work(Task.FORWARD), self.comp.mean_work(Task.BACKWARD)
        if forward > 0 and backward > 0:
            part = forward / (forward + backward)
            self.workload = Workload(forward=part, backward=1 - part, comm=1.0)

    def untried_split(self, num_cores: int) -> int | None:
        """The next split to measure before `table` can tell, out of at most three; None when all are."""
        for c in dict.fromkeys((num_cores // 2, 1, num_cores - 1)):
            if not (self.comm.is_measured(c) and self.comp.is_measured(num_cores - c)):
                return c
        return None

    def table(self, num_cores: int) -> RateTable | None:
        """Rates of every split of `num_cores` (3 or more), or None while a split is untried.

        Linear between measured splits and beyond the outermost, and monotone: more cores never slow a side down.
        """
        if self.untried_split(num_cores) is not None:
            return None
        self.refresh()
        comm = _by_cores(self.comm, num_cores)
        comp = _by_cores(self.comp, num_cores)
        return RateTable(comm=(0.0, *comm), comp=(*reversed(comp), 0.0))


def _by_cores(side: SideEstimate, num_cores: int) -> list[float]:
    """The side's rates with 1..num_cores cores of its own."""
    measured = [cores for cores in range(1, num_cores + 1) if side.is_measured(cores)]
    raw = [side.rates[cores, True] for cores in measured]
    rates = _non_decreasing(raw, [side.weights[cores, True] for cores in measured])
    result = []
    for cores in range(1, num_cores + 1):
        right = next((n for n in range(1, len(measured)) if measured[n] >= cores), len(measured) - 1)
        x0, x1 = measured[right - 1], measured[right]
        y0, y1 = rates[right - 1], rates[right]
        result.append(y0 + (y1 - y0) * (cores - x0) / (x1 - x0))
    return result


def _non_decreasing(values: list[float], weights: list[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` (weighted least squares, pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, mass, count = pools.pop()
            joint = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / joint, joint, count + pool[2])
        pools.append(pool)
    return [mean for mean, _, count in pools for _ in range(count)]
