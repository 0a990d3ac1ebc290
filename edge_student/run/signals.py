"""Signals as exceptions, but never in the middle of something that must be whole.

SIGTERM raises Terminated, Ctrl-C and a lost terminal KeyboardInterrupt, in the main thread and wherever it is. What a signal must
not tear is done in `deferred()`: it is raised when that ends. Inside, `allowed()` lets it through again.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Terminated(KeyboardInterrupt):
    """Somebody in charge of this machine wants the process to end, by SIGTERM: that is no failure."""


class Interruption:
    """Whether a signal may be raised now. One for a process, made in its main thread."""

    def __init__(self) -> None:
        self._is_deferred = False
        self._pending: type[KeyboardInterrupt] | None = None

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP; the last not if it is ignored, as nohup has it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.hear)

    def hear(self, number: int, frame: object) -> None:
        """A signal has come."""
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self._is_deferred:
            self._pending = self._pending or kind
        else:
            raise kind

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Whatever comes meanwhile is raised at the end."""
        was_deferred, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = was_deferred
            self._raise_pending()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Whatever has come is raised now, and what comes meanwhile at once."""
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
