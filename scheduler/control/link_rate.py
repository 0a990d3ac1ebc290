"""What the link brings, told apart from what comm's cores can do.

While comm waits for bytes, more cores would not help it. So a task that mostly waited tells the link's rate, and that rate is
believed until comm is seen to go faster, or to have cores of its own and not to wait.
"""

from __future__ import annotations

import math

WAITING = 0.4
"""A task that spent more than this part of its time without bytes was held back by the link."""

FLOWING = 0.2
"""Comm that has cores of its own and waits less than this part of that time is not held back by the link."""

FASTER = 1.1
"""A task faster than the link was believed to be, by this factor, disproves it."""

FOLLOWING = 0.6
"""Weight of the newest task: a link that changes is followed within three."""


class Link:
    """The rate that the link allows, work per second; infinite as long as nothing speaks for a limit."""

    def __init__(self) -> None:
        self.rate = math.inf

    @property
    def is_bottleneck(self) -> bool:
        """Whether the link is believed to limit comm."""
        return self.rate < math.inf

    def take_in(self, *, work: float, seconds: float, own_s: float, busy_s: float) -> float:
        """A Comm took `seconds`, for `own_s` of them with cores of its own; it ran, or waited for a core, for `busy_s`.

        Returns the seconds in which it waited for bytes.
        """
        waited = max(seconds - busy_s, 0.0)
        seen = work / seconds
        if waited > WAITING * seconds:
            # The mean is taken of times, not of rates: they are what adds up.
            self.rate = 1 / (FOLLOWING / seen + (1 - FOLLOWING) / self.rate) if self.is_bottleneck else seen
        elif (own_s > FLOWING * seconds and waited < FLOWING * own_s) or seen > FASTER * self.rate:
            self.rate = math.inf
        return waited
