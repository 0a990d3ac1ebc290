"""Gives up a call that lives and says nothing: a peer may answer pings, which its kernel and gRPC do alone, and hang itself.

Who waits tells it when the wait begins and ends; a thread of its own looks from time to time. It knows nothing of what is waited
for, nor what happens next.
"""

import threading
import time
from typing import Protocol

_LOOKS_PER_LIMIT = 8


class Cancellable(Protocol):
    """What can be given up while another thread waits for it."""

    def cancel(self) -> bool:
        """Have the wait end now, with an error."""


class Watchdog:
    """Cancels the call that is waited for once that takes longer than `limit_s` seconds. For one thread that waits."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.has_bitten = False
        """Whether the last wait ended by being cancelled here."""
        self._call: Cancellable | None = None
        self._since: float | None = None
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, call: Cancellable) -> None:
        """A wait for `call` begins. Cheap: it comes with every chunk."""
        with self._lock:
            self._call, self.has_bitten = call, False
            self._since = time.monotonic()
        if self._thread is None:
            self._is_over = threading.Event()
            # A daemon: a process that ends must not wait for the next look.
            self._thread = threading.Thread(target=self._look, args=(self._is_over,), name="watchdog", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """The wait is over, one way or the other."""
        self._since = None

    def close(self) -> None:
        """End the thread. The next `begin` starts another."""
        self._since = self._call = self._thread = None
        self._is_over.set()

    def _look(self, is_over: threading.Event) -> None:
        while not is_over.wait(self.limit_s / _LOOKS_PER_LIMIT):
            with self._lock:
                call, since = self._call, self._since
                is_over_the_limit = since is not None and time.monotonic() - since > self.limit_s
                if is_over_the_limit:
                    self._since, self.has_bitten = None, True
            if is_over_the_limit and call is not None:
                # The chunk may come at this very moment: then a stream that works is asked for once more, and nothing is lost.
                call.cancel()
