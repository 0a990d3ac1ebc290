"""The rates of one side by its number of cores, fitted to its last tasks by corrections task by task."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from scheduler.model.checked_json import check_keys, listing, mapping, not_negative, shown
from scheduler.model.state import Task

MEMORY = 16
"""Number of recent tasks per side that the rates are fitted to. A number of cores that none of them had keeps its rate."""

MINOR = 0.2
"""Minimum part of a task's time for which the rate of its cores is corrected. Below it, noise from the rest dominates."""

GAIN = 0.2
"""Part of a task's deviation (log of measured over predicted work) that one correction removes. It averages noise."""

MOST_SURPRISE = math.log(2)
"""Upper bound of a task's deviation. A larger deviation comes from a disturbance and is clipped."""

PARTIAL_TASKS = 3
"""Number of tasks with some cores for part of their time after which the rate counts as measured. One whole task suffices.

A side that is always blocked after a moment never keeps a split for a whole task.
"""

EXACT = 1e-9
"""Deviation below which the difference is rounding."""

INCREDIBLE = 1e12
"""Upper bound of rates, times and counts in a checkpoint."""

_MOST_DIGITS = 5
_FORMER_OWN, _FORMER_TERMS = " own", (" shared", " unpinned")
"""Checkpoints of earlier versions have "2 own" for 2 cores, and other rates for cores that both sides used, which are ignored."""


@dataclass(slots=True)
class SideEstimate:
    """The rates of one side. `weights` counts parts of tasks, by the time with these cores; `num_tasks` counts whole tasks."""

    rates: dict[int, float] = field(default_factory=dict)
    weights: dict[int, float] = field(default_factory=dict)
    num_tasks: dict[int, int] = field(default_factory=dict)
    recent: deque[tuple[Task, dict[int, float]]] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def store(self, task: Task, work: float, seconds: dict[int, float]) -> None:
        """Store a task that ran `seconds` by number of cores. A number without a rate, or with 0, gets the task's mean rate."""
        total = sum(seconds.values())
        for cores, spent in seconds.items():
            self.rates[cores] = self.rates.get(cores) or work / total
            self.weights[cores] = self.weights.get(cores, 0.0) + spent / total
            self.num_tasks[cores] = self.num_tasks.get(cores, 0) + 1
        self.recent.append((task, seconds))

    def correct(self, works: Mapping[Task, float]) -> None:
        """Move the rates towards the stored tasks, given the work of each kind of task."""
        for task, seconds in self.recent:
            surprise = math.log(works[task] / self.work_done(seconds))
            if abs(surprise) <= EXACT:
                continue
            factor = math.exp(GAIN * max(-MOST_SURPRISE, min(surprise, MOST_SURPRISE)))
            longest, total = max(seconds.values()), sum(seconds.values())
            for cores, spent in seconds.items():
                if spent >= MINOR * total:
                    self.rates[cores] *= factor ** (spent / longest)

    def work_done(self, seconds: Mapping[int, float]) -> float:
        """Return the work done in these seconds by the current rates. An unknown number of cores counts 0."""
        return sum(self.rates.get(cores, 0.0) * spent for cores, spent in seconds.items())

    def mean_work(self, task: Task) -> float:
        """Return the mean work of the stored tasks of this kind by the current rates, 0 without such tasks."""
        works = [self.work_done(seconds) for kind, seconds in self.recent if kind is task]
        return sum(works) / len(works) if works else 0.0

    def is_measured(self, cores: int, num_tasks: int = 1) -> bool:
        """Return whether the rate with this many cores rests on `num_tasks` tasks."""
        return self.weights.get(cores, 0.0) >= num_tasks - 1e-9 or self.num_tasks.get(cores, 0) >= PARTIAL_TASKS * num_tasks

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
            rates=_by_cores(data["rates"], f"{where}, rates"),
            weights=_by_cores(data["weights"], f"{where}, weights"),
            num_tasks={cores: int(n) for cores, n in _by_cores(data["num_tasks"], f"{where}, num_tasks").items()},
        )
        for entry in listing(data["recent"], f"{where}, recent"):
            task, seconds = listing(entry, f"{where}, recent", length=2)
            if task not in [kind.value for kind in Task]:
                raise ValueError(f"{where}: {shown(task)} is not a kind of task")
            measured = _by_cores(seconds, f"{where}, recent")
            if len(measured) < len(seconds):
                continue
            if not measured or min(measured.values()) <= 0 or side.work_done(measured) <= 0:
                raise ValueError(f"{where}: a task without time or without work: {shown(seconds)}")
            side.recent.append((Task(task), measured))
        return side


def _by_text(values: Mapping[int, float]) -> dict[str, float]:
    return {str(cores): value for cores, value in values.items()}


def _by_cores(data: Any, where: str) -> dict[int, float]:
    values = {}
    for text, value in mapping(data, where).items():
        cores = text.removesuffix(_FORMER_OWN)
        if cores.endswith(_FORMER_TERMS):
            continue
        if not (cores.isascii() and cores.isdecimal() and len(cores) <= _MOST_DIGITS):
            raise ValueError(f"{where}: {shown(text)} is not a number of cores")
        values[int(cores)] = not_negative(value, repr(text), where, "it")
    if max(values.values(), default=0.0) > INCREDIBLE:
        raise ValueError(f"{where}: {max(values.values()):g} is too large, must be at most {INCREDIBLE:g}")
    return values


def by_measured_cores(side: SideEstimate, num_cores: int) -> list[float] | None:
    """Return the side's rates with 1..num_cores cores, or None without any measured rate."""
    measured = [cores for cores in range(1, num_cores + 1) if side.is_measured(cores)]
    if not measured:
        return None
    raw = [side.rates[cores] for cores in measured]
    rates = _non_decreasing(raw, [side.weights[cores] for cores in measured])
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
