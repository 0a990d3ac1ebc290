"""Estimate of the link's rate, separate from the rate of comm's cores.

More cores do not help comm while it waits for bytes. A task that mostly waited therefore measures the link. The estimate holds
until comm is faster than it, or does not wait.
"""

from __future__ import annotations

import math

WAITING = 0.4
"""Share of a task's time spent waiting for bytes above which the link limited the task."""

FLOWING = 0.2
"""Share of a task's time spent waiting for bytes below which the link does not limit comm."""

FASTER = 1.1
"""Factor by which a task must exceed the estimated rate of the link to disprove it."""

FOLLOWING = 0.6
"""Weight of the newest task. The estimate follows a changed link within three tasks."""


class Link:
    """The rate of the link in work per second; infinite while no task was limited by it."""

    def __init__(self) -> None:
        self.rate = math.inf

    @property
    def is_bottleneck(self) -> bool:
        """Whether the link limits comm, by the current estimate."""
        return self.rate < math.inf

    def update(self, *, work: float, seconds: float, busy_s: float) -> float:
        """Learn from a Comm that took `seconds`, and return the seconds in which it waited for bytes.

        `busy_s`: seconds in which it ran or waited for a core.
        """
        waited = max(seconds - busy_s, 0.0)
        seen = work / seconds
        if waited > WAITING * seconds:
            # Average times, not rates, because times add up.
            self.rate = 1 / (FOLLOWING / seen + (1 - FOLLOWING) / self.rate) if self.is_bottleneck else seen
        elif waited < FLOWING * seconds or seen > FASTER * self.rate:
            self.rate = math.inf
        return waited
