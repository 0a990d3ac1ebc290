"""What the link brings, told apart from what comm's cores can do.

While comm waits for bytes, more cores would not help it. So its busy part and the rest of a task are looked at apart: a task that
mostly waited tells the link's rate, one that hardly did tells that the link is not what holds comm back.
"""

from __future__ import annotations

import math

WAITING = 0.4
"""A task that spent more than this part of its time without bytes was held back by the link."""

FOLLOWING = 0.6
"""Weight of the newest task: a link that changes is followed within three."""


class Link:
    """The rate that the link allows, work per second; infinite while comm's own cores are what holds it back."""

    def __init__(self) -> None:
        self.rate = math.inf

    @property
    def is_bottleneck(self) -> bool:
        """Whether the last task mostly waited for bytes."""
        return self.rate < math.inf

    def busy_part(self, work: float, seconds: float, busy_s: float) -> float:
        """Take in a Comm that took `seconds`, `busy_s` of them busy. The part of its time that its cores are answerable for."""
        busy = min(busy_s / seconds, 1.0)
        if 1 - busy > WAITING:
            seen = work / seconds
            # The mean is taken of times, not of rates: they are what adds up.
            self.rate = 1 / (FOLLOWING / seen + (1 - FOLLOWING) / self.rate) if self.is_bottleneck else seen
            return max(busy, 1e-6)
        self.rate = math.inf
        return 1.0
