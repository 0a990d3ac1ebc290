"""Liveness of the server for health checks: does it serve, and does its event loop still run?

A check from outside cannot detect a hung event loop: the port stays open, and the kernel still accepts connections.
"""

import asyncio
import time
from collections.abc import Callable

BEAT_S = 1.0
HUNG_S = 15.0
"""Longer than any step of the event loop, because long work runs on threads of its own."""


class Liveness:
    """State that the server updates on its event loop and health checks read from other threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_serving = False
        self._last_beat: float | None = None

    async def beat(self) -> None:
        """Record the time every `BEAT_S` seconds. Run this on the event loop until it is cancelled."""
        while True:
            self._last_beat = self._clock()
            await asyncio.sleep(BEAT_S)

    def set_serving(self, is_serving: bool) -> None:
        """Record whether the server accepts streams."""
        self._is_serving = is_serving

    @property
    def is_hung(self) -> bool:
        """Whether the last beat is older than `HUNG_S`. False before the first beat."""
        return self._last_beat is not None and self._clock() - self._last_beat > HUNG_S

    @property
    def is_serving(self) -> bool:
        """Whether the server accepts streams and its event loop runs."""
        return self._is_serving and not self.is_hung
