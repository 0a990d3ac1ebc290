"""The rates of one side by its share of the cores, fitted to its last tasks by corrections task by task."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

from scheduler.model.checked_json import check_keys, listing, mapping, not_negative, shown
from scheduler.model.state import Allocation, Task

MEMORY = 16
"""Number of recent tasks per side that the rates are fitted to. A share that none of them had keeps its rate."""

MINOR = 0.2
"""Minimum part of a task's time for which a share is corrected by that task. Below it, noise from the rest dominates."""

GAIN = 0.2
"""Part of a task's deviation (log of measured over predicted work) that one correction removes. It averages noise."""

MOST_SURPRISE = math.log(2)
"""Upper bound of a task's deviation. A larger deviation comes from a disturbance and is clipped."""

PARTIAL_TASKS = 3
"""Number of tasks with a share for part of their time after which its rate counts as measured. One whole task suffices.

A side that is always blocked after a moment never keeps a split for a whole task.
"""

EXACT = 1e-9
"""Deviation below which the difference is rounding."""

INCREDIBLE = 1e12
"""Upper bound of rates, times and counts in a checkpoint."""

OWN: Final = "own"
SHARED: Final = "shared"
UNPINNED: Final = "unpinned"

_TERMS = (OWN, SHARED, UNPINNED)


class Share(NamedTuple):
    """The share of the cores that one side had: cores of its own, cores shared with the other side, or unpinned cores."""

    cores: int
    terms: str = OWN  # a string, because shares are dict keys at every event and hashing an enum is slow

    @classmethod
    def of(cls, cores: int, allocation: Allocation) -> Share:
        """Return the share of a side that has `cores` cores of an allocation."""
        if not allocation.pinned:
            return cls(cores, UNPINNED)
        return cls(cores, OWN if allocation.shared is None else SHARED)

    def __str__(self) -> str:
        return f"{self.cores} {self.terms}"

    @classmethod
    def parse(cls, text: str, where: str) -> Share:
        """Parse the output of `str`. Raises ValueError for any other text."""
        cores, _, terms = text.partition(" ")
        if terms not in _TERMS or not (cores.isascii() and cores.isdecimal() and 0 < len(cores) < 6):
            raise ValueError(f"{where}: {shown(text)} is not a share of cores, such as '2 own'")
        return cls(int(cores), terms)


@dataclass(slots=True)
class SideEstimate:
    """The rates of one side. `weights` counts tasks by the part of their time with a share, `num_tasks` counts whole tasks."""

    rates: dict[Share, float] = field(default_factory=dict)
    weights: dict[Share, float] = field(default_factory=dict)
    num_tasks: dict[Share, int] = field(default_factory=dict)
    recent: deque[tuple[Task, dict[Share, float]]] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def store(self, task: Task, work: float, seconds: dict[Share, float]) -> None:
        """Store a task that ran `seconds` with each share. A new share, or a share with rate 0, gets the mean rate of the task."""
        total = sum(seconds.values())
        for share, spent in seconds.items():
            self.rates[share] = self.rates.get(share) or work / total
            self.weights[share] = self.weights.get(share, 0.0) + spent / total
            self.num_tasks[share] = self.num_tasks.get(share, 0) + 1
        self.recent.append((task, seconds))

    def correct(self, works: Mapping[Task, float]) -> None:
        """Move the rates towards the stored tasks, given the work of each kind of task."""
        for task, seconds in self.recent:
            surprise = math.log(works[task] / self.work_done(seconds))
            if abs(surprise) <= EXACT:
                continue
            factor = math.exp(GAIN * max(-MOST_SURPRISE, min(surprise, MOST_SURPRISE)))
            longest, total = max(seconds.values()), sum(seconds.values())
            for share, spent in seconds.items():
                if spent >= MINOR * total:
                    self.rates[share] *= factor ** (spent / longest)

    def work_done(self, seconds: Mapping[Share, float]) -> float:
        """Return the work done in these seconds by the current rates. An unknown share counts 0."""
        return sum(self.rates.get(share, 0.0) * spent for share, spent in seconds.items())

    def mean_work(self, task: Task) -> float:
        """Return the mean work of the stored tasks of this kind by the current rates, 0 without such tasks."""
        works = [self.work_done(seconds) for kind, seconds in self.recent if kind is task]
        return sum(works) / len(works) if works else 0.0

    def is_measured(self, share: Share, num_tasks: int = 1) -> bool:
        """Return whether the rate of this share rests on `num_tasks` tasks."""
        return self.weights.get(share, 0.0) >= num_tasks - 1e-9 or self.num_tasks.get(share, 0) >= PARTIAL_TASKS * num_tasks

    def to_json(self) -> dict[str, Any]:
        """Return all fields, for `from_json`."""
        return {
            "rates": _by_text(self.rates),
            "weights": _by_text(self.weights),
            "num_tasks": _by_text(self.num_tasks),
            "recent": [[task.value, _by_text(seconds)] for task, seconds in self.recent],
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> SideEstimate:
        """Restore the output of `to_json`. Raises ValueError for anything else."""
        check_keys(data, required=("rates", "weights", "num_tasks", "recent"), optional=("surprises",), where=where)
        side = cls(
            rates=_by_share(data["rates"], f"{where}, rates"),
            weights=_by_share(data["weights"], f"{where}, weights"),
            num_tasks={share: int(n) for share, n in _by_share(data["num_tasks"], f"{where}, num_tasks").items()},
        )
        for entry in listing(data["recent"], f"{where}, recent"):
            task, seconds = listing(entry, f"{where}, recent", length=2)
            if task not in [kind.value for kind in Task]:
                raise ValueError(f"{where}: {shown(task)} is not a kind of task")
            measured = _by_share(seconds, f"{where}, recent")
            if not measured or min(measured.values()) <= 0 or side.work_done(measured) <= 0:
                raise ValueError(f"{where}: a task without time or without work: {shown(seconds)}")
            side.recent.append((Task(task), measured))
        return side


def _by_text(values: Mapping[Share, float]) -> dict[str, float]:
    return {str(share): value for share, value in values.items()}


def _by_share(data: Any, where: str) -> dict[Share, float]:
    values = {
        Share.parse(text, where): not_negative(value, repr(text), where, "it") for text, value in mapping(data, where).items()
    }
    if max(values.values(), default=0.0) > INCREDIBLE:
        raise ValueError(f"{where}: {max(values.values()):g} is too large, must be at most {INCREDIBLE:g}")
    return values


def by_measured_cores(side: SideEstimate, num_cores: int) -> list[float] | None:
    """Return the side's rates with 1..num_cores cores of its own, or None without any measured rate."""
    measured = [cores for cores in range(1, num_cores + 1) if side.is_measured(Share(cores))]
    if not measured:
        return None
    raw = [side.rates[Share(cores)] for cores in measured]
    rates = _non_decreasing(raw, [side.weights[Share(cores)] for cores in measured])
    result = []
    for cores in range(1, num_cores + 1):
        if cores <= measured[0] or len(measured) == 1:
            result.append(rates[0] * min(cores / measured[0], 1.0))
            continue
        right = next((n for n in range(1, len(measured)) if measured[n] >= cores), len(measured) - 1)
        x0, x1 = measured[right - 1], measured[right]
        y0, y1 = rates[right - 1], rates[right]
        result.append(y0 + (y1 - y0) * (cores - x0) / (x1 - x0))
    return list(accumulate(result, max))  # rounding may break the order by one bit


def _non_decreasing(values: list[float], weights: list[float]) -> list[float]:
    """Return the non-decreasing sequence nearest to `values` (weighted least squares, pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, count
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, mass, count = pools.pop()
            joint = mass + pool[1]
            pool = ((mean * mass + pool[0] * pool[1]) / joint, joint, count + pool[2])
        pools.append(pool)
    return [mean for mean, _, count in pools for _ in range(count)]
