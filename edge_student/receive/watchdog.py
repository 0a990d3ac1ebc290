"""Watchdog: cancels a call that stays connected but delivers nothing.

The kernel and gRPC of a peer answer pings even if its program hangs. The waiting thread marks the start and the end of each wait; a
second thread checks the elapsed time. The watchdog is independent of the data and of error handling.
"""

import threading
import time
from typing import Protocol

_CHECKS_PER_LIMIT = 8


class Cancellable(Protocol):
    """A call that another thread can cancel while one thread waits for it."""

    def cancel(self) -> bool:
        """End the wait now, with an error."""


class Watchdog:
    """Cancels a call when one wait for it takes longer than `limit_s` seconds. Supports one waiting thread."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.has_fired = False
        """Whether the watchdog cancelled the last wait."""
        self._call: Cancellable | None = None
        self._since: float | None = None
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, call: Cancellable) -> None:
        """Mark the start of a wait for `call`. Must be cheap: it runs for every chunk."""
        with self._lock:
            self._call, self.has_fired = call, False
            self._since = time.monotonic()
        if self._thread is None:
            self._is_closed = threading.Event()
            # A daemon thread: process exit must not wait for the next check.
            self._thread = threading.Thread(target=self._check, args=(self._is_closed,), name="watchdog", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Mark the end of the wait, with a result or an error."""
        self._since = None

    def close(self) -> None:
        """Stop the thread. The next `begin` starts a new one."""
        self._since = self._call = self._thread = None
        self._is_closed.set()

    def _check(self, is_closed: threading.Event) -> None:
        while not is_closed.wait(self.limit_s / _CHECKS_PER_LIMIT):
            with self._lock:
                call, since = self._call, self._since
                is_over_the_limit = since is not None and time.monotonic() - since > self.limit_s
                if is_over_the_limit:
                    self._since, self.has_fired = None, True
            if is_over_the_limit and call is not None:
                # A chunk may arrive at this moment. A working stream is then requested once more, and no data is lost.
                call.cancel()
