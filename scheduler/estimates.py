"""How fast each side runs with so many cores, learnt from tasks as they finish.

A task that ran with one number of cores all the way tells that rate exactly. One that ran with several tells only how much
they did together; what it says about each is weighted by the time it had. All rates are work per second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from scheduler.cost import RateTable

Share: TypeAlias = tuple[int, bool]
"""What one side had while it ran: its number of cores, and whether it was pinned to them."""

GAIN = 0.2
"""Weight of the newest whole task in a rate, once several are known (exponential weighting)."""

PARTIAL_TASKS = 3
"""A rate counts as measured after one task's worth of time, or after this many tasks that had it for a part of theirs: where
one side is always forced after a moment, no task ever has a split for the whole of its time, and hardly anything depends on it.
"""


@dataclass(slots=True)
class SideEstimate:
    """The rates of one side. `weights` counts tasks by the part of their time; `num_tasks` counts them all."""

    rates: dict[Share, float] = field(default_factory=dict)
    weights: dict[Share, float] = field(default_factory=dict)
    num_tasks: dict[Share, int] = field(default_factory=dict)

    def learn(self, work: float, seconds: Mapping[Share, float]) -> None:
        """A task of `work` ran `seconds` with each share. Rates change by factors, so they stay positive."""
        total = sum(seconds.values())
        if total <= 0:
            return  # it finished at the instant it started: the clock is too coarse to tell
        for share in seconds:
            self.rates.setdefault(share, work / total)
        surprise = work / sum(self.rates[share] * spent for share, spent in seconds.items())
        for share, spent in seconds.items():
            part, weight = spent / total, self.weights.get(share, 0.0)
            self.rates[share] *= surprise ** (part * max(GAIN, 1 / (1 + weight)))
            self.weights[share] = weight + part
            self.num_tasks[share] = self.num_tasks.get(share, 0) + 1

    def work_done(self, seconds: Mapping[Share, float]) -> float:
        """Work that these seconds are worth; a share never seen is worth nothing."""
        return sum(self.rates.get(share, 0.0) * spent for share, spent in seconds.items())

    def is_measured(self, cores: int) -> bool:
        """Whether the rate of this many pinned cores rests on enough tasks."""
        share = (cores, True)
        return self.weights.get(share, 0.0) >= 1 - 1e-9 or self.num_tasks.get(share, 0) >= PARTIAL_TASKS


@dataclass(slots=True)
class Estimates:
    """Both sides' rates, and the table of a device that they imply."""

    comm: SideEstimate = field(default_factory=SideEstimate)
    comp: SideEstimate = field(default_factory=SideEstimate)

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
