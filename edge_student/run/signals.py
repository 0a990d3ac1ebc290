"""Turns signals into exceptions and defers them while an operation must not be interrupted.

SIGTERM raises Terminated; SIGINT (Ctrl-C) and SIGHUP (lost terminal) raise KeyboardInterrupt. All are raised in the main thread.
Within `deferred()` a signal is stored and raised at the end of the block. Within `allowed()` it is raised at once again.
A signal shortly after another one is the same request: an exception in the handling of the first one could lose results.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SAME_REQUEST_S = 1.0


class Terminated(KeyboardInterrupt):
    """SIGTERM: a request to shut down, which is not a failure."""


class SignalHandler:
    """Handles the signals of a process. Create one per process, in the main thread."""

    def __init__(self) -> None:
        self._is_deferred = False
        self._pending: type[KeyboardInterrupt] | None = None
        self._last_raised = -_SAME_REQUEST_S
        self._raised: type[KeyboardInterrupt] | None = None

    def install(self) -> None:
        """Handle SIGTERM, SIGINT and SIGHUP. SIGHUP stays ignored if it is ignored already, as under nohup."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.handle)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals during the block, and leave them to their former handlers afterwards."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in numbers}
        try:
            self.install()
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed by Python

    def handle(self, number: int, frame: object) -> None:
        """Raise the exception of a signal, or store it if signals are deferred."""
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self._is_deferred:
            self._pending = self._pending or kind
        elif time.monotonic() - self._last_raised >= _SAME_REQUEST_S:
            self._last_raised = time.monotonic()
            self._raised = kind
            raise kind

    def raise_lost(self) -> None:
        """Raise the exception of an earlier signal again. Call it where the exception would have ended the program before.

        Python swallows an exception that a handler raises within a destructor or a weak reference's callback, as imports have.
        """
        if self._raised is not None:
            raise self._raised

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals to the end of the block."""
        was_deferred, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = was_deferred
            self._raise_pending()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raise a pending signal now, and signals within the block at once."""
        was_deferred, self._is_deferred = self._is_deferred, False
        try:
            self._raise_pending()
            yield
        finally:
            self._is_deferred = was_deferred

    def _raise_pending(self) -> None:
        if self._pending is not None and not self._is_deferred:
            kind, self._pending = self._pending, None
            raise kind
