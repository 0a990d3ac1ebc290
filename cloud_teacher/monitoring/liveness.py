"""Whether this server serves, and whether its event loop still goes round: for health checks, which ask from other threads.

A process whose loop hangs keeps its port open, and the kernel takes connections for it, so that a look from outside tells nothing.
"""

import asyncio
import time
from collections.abc import Callable

BEAT_S = 1.0
HUNG_S = 15.0
"""No step of the loop takes as long: what does runs on threads of its own."""


class Liveness:
    """Begun and ended by the server, asked by others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._is_serving = False
        self._last_beat: float | None = None

    async def beat(self) -> None:
        """Run this on the loop, until it is cancelled."""
        while True:
            self._last_beat = self._clock()
            await asyncio.sleep(BEAT_S)

    def set_serving(self, is_serving: bool) -> None:
        """From now on it serves, or no longer."""
        self._is_serving = is_serving

    @property
    def is_hung(self) -> bool:
        """Whether the loop has not gone round for too long; not before it has begun."""
        return self._last_beat is not None and self._clock() - self._last_beat > HUNG_S

    @property
    def is_serving(self) -> bool:
        """Whether an edge that comes now is served."""
        return self._is_serving and not self.is_hung
