"""The rates of one side, by what it had while it ran: those that explain its last tasks, corrected by them task after task."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

from scheduler.model.checked_json import check_keys, listing, mapping, not_negative, shown
from scheduler.model.state import Allocation, Task

MEMORY = 16
"""Tasks of each side that the rates must explain. A share that none of them had keeps its rate."""

MINOR = 0.2
"""A share that a task had for less than this part of its time is not corrected by it: the noise of the rest would drown it."""

GAIN = 0.2
"""How much of a task's surprise one correction takes back: the newest tasks weigh most, and noise is averaged."""

MOST_SURPRISE = math.log(2)
"""A task that took longer, or less, than by this factor has met a disturbance: it is believed no further than this."""

PARTIAL_TASKS = 3
"""A rate counts as measured after one task's worth of time, or after this many tasks that had it for a part of theirs: where
one side is always blocked after a moment, no task ever keeps a split for the whole of its time.
"""

EXACT = 1e-9
"""A surprise this small, in parts of a task, is rounding."""

INCREDIBLE = 1e12
"""No rate, no time and no count that was ever seen is larger."""

OWN: Final = "own"
SHARED: Final = "shared"
UNPINNED: Final = "unpinned"


_TERMS = (OWN, SHARED, UNPINNED)


class Share(NamedTuple):
    """What one side had while it ran: cores of its own, cores that both sides have by design, or what the kernel gives."""

    cores: int
    terms: str = OWN  # plain words, because shares are looked up at every event, and an enum's hash is slow

    @classmethod
    def of(cls, cores: int, allocation: Allocation) -> Share:
        """A side's share when it has so many cores of an allocation."""
        if not allocation.pinned:
            return cls(cores, UNPINNED)
        return cls(cores, OWN if allocation.shared is None else SHARED)

    def __str__(self) -> str:
        return f"{self.cores} {self.terms}"

    @classmethod
    def parse(cls, text: str, where: str) -> Share:
        """The share that `str` made this of. ValueError if none did."""
        cores, _, terms = text.partition(" ")
        if terms not in _TERMS or not (cores.isascii() and cores.isdecimal() and 0 < len(cores) < 6):
            raise ValueError(f"{where}: {shown(text)} is no share of cores")
        return cls(int(cores), terms)


@dataclass(slots=True)
class SideEstimate:
    """The rates of one side. `weights` counts its tasks by the part of their time, `num_tasks` counts them all."""

    rates: dict[Share, float] = field(default_factory=dict)
    weights: dict[Share, float] = field(default_factory=dict)
    num_tasks: dict[Share, int] = field(default_factory=dict)
    recent: deque[tuple[Task, dict[Share, float]]] = field(default_factory=lambda: deque(maxlen=MEMORY))
    surprises: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def remember(self, task: Task, work: float, seconds: dict[Share, float]) -> None:
        """A task ran `seconds` with each share. A share never seen before is believed as fast as this task was.

        So is one that was said to get nothing done (a profile's rate of 0): this task shows that it does.
        """
        total = sum(seconds.values())
        if all(self.rates.get(share) for share in seconds):
            self.surprises.append(abs(math.log(work / self.work_done(seconds))))
        for share, spent in seconds.items():
            self.rates[share] = self.rates.get(share) or work / total
            self.weights[share] = self.weights.get(share, 0.0) + spent / total
            self.num_tasks[share] = self.num_tasks.get(share, 0) + 1
        self.recent.append((task, seconds))

    def correct(self, works: Mapping[Task, float]) -> None:
        """Bring the rates nearer to the remembered tasks, given the work of each kind."""
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
        """Work that these seconds are worth; a share never seen is worth nothing."""
        return sum(self.rates.get(share, 0.0) * spent for share, spent in seconds.items())

    def mean_work(self, task: Task) -> float:
        """Mean over the remembered tasks of this kind, by the rates; 0 if there are none."""
        works = [self.work_done(seconds) for kind, seconds in self.recent if kind is task]
        return sum(works) / len(works) if works else 0.0

    def is_measured(self, share: Share, num_tasks: int = 1) -> bool:
        """Whether the rate of this share rests on so many tasks."""
        return self.weights.get(share, 0.0) >= num_tasks - 1e-9 or self.num_tasks.get(share, 0) >= PARTIAL_TASKS * num_tasks

    def to_json(self) -> dict[str, Any]:
        """All of it, for `from_json`."""
        return {
            "rates": _by_text(self.rates),
            "weights": _by_text(self.weights),
            "num_tasks": _by_text(self.num_tasks),
            "recent": [[task.value, _by_text(seconds)] for task, seconds in self.recent],
            "surprises": list(self.surprises),
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> SideEstimate:
        """What `to_json` made this of. ValueError for what it cannot have made."""
        check_keys(data, required=("rates", "weights", "num_tasks", "recent", "surprises"), where=where)
        side = cls(
            rates=_by_share(data["rates"], f"{where}, rates"),
            weights=_by_share(data["weights"], f"{where}, weights"),
            num_tasks={share: int(n) for share, n in _by_share(data["num_tasks"], f"{where}, num_tasks").items()},
        )
        for entry in listing(data["recent"], f"{where}, recent"):
            task, seconds = listing(entry, f"{where}, recent", length=2)
            if task not in [kind.value for kind in Task]:
                raise ValueError(f"{where}: {shown(task)} is no task")
            felt = _by_share(seconds, f"{where}, recent")
            if not felt or min(felt.values()) <= 0 or side.work_done(felt) <= 0:
                raise ValueError(f"{where}: a task of which nobody can tell what it did: {shown(seconds)}")
            side.recent.append((Task(task), felt))
        for surprise in listing(data["surprises"], f"{where}, surprises"):
            side.surprises.append(not_negative(surprise, "a surprise", where, "it"))
        return side

    @property
    def scatter(self) -> float:
        """By what part of its time a task differs from what the rates said, typically; 0 where that is rounding."""
        typical = statistics.median(self.surprises) if self.surprises else 0.0
        return typical if typical > EXACT else 0.0


def _by_text(values: Mapping[Share, float]) -> dict[str, float]:
    return {str(share): value for share, value in values.items()}


def _by_share(data: Any, where: str) -> dict[Share, float]:
    values = {
        Share.parse(text, where): not_negative(value, repr(text), where, "it") for text, value in mapping(data, where).items()
    }
    if max(values.values(), default=0.0) > INCREDIBLE:
        raise ValueError(f"{where}: {max(values.values()):g} is more than any device does")
    return values


def by_measured_cores(side: SideEstimate, num_cores: int) -> list[float] | None:
    """The side's rates with 1..num_cores cores of its own; None if none of them is known."""
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
    return list(accumulate(result, max))  # a line through equal values may sink by a rounding


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
