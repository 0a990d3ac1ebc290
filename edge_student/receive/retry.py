"""How often and how long something is tried again that a lost link has broken. It does not know what."""

import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

T = TypeVar("T")


class LinkLostError(ConnectionError):
    """The teacher cannot be reached, or its stream broke off; another attempt may succeed."""


class RetryPolicy:
    """Tries again until nothing has succeeded for `max_wait_s` seconds, counted from the first failure: a long batch is none.

    `before_next(error, attempt)` is called between two attempts.
    """

    def __init__(self, max_wait_s: float, before_next: Callable[[str, int], None]) -> None:
        self._max_wait_s = max_wait_s
        self._before_next = before_next
        self._failing_since: float | None = None

    @property
    def has_failed(self) -> bool:
        """Whether something has failed, and nothing succeeded since."""
        return self._failing_since is not None

    def note_success(self) -> None:
        """It gets on."""
        self._failing_since = None

    def insist(self, action: Callable[[], T]) -> T:
        """Do it, again and again while it raises LinkLostError; raises that when the time is up, and anything else at once."""
        self._failing_since = None
        try:
            return action()  # nearly always: to set up the retrying takes as long as to receive a small batch
        except LinkLostError as error:
            failures = [error]

        def attempt() -> T:
            if failures:
                raise failures.pop()
            return action()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(LinkLostError),
            # Jitter on top of the longest pause too, or a fleet that lost its teacher would come back in step.
            wait=tenacity.wait_exponential(multiplier=0.2, max=5.0) + tenacity.wait_random(0.0, 0.5),
            stop=self._has_failed_for_too_long,
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except LinkLostError as error:
            raise LinkLostError(f"gave up after {self._max_wait_s:g} s without success: {error}") from error

    def _has_failed_for_too_long(self, attempt: tenacity.RetryCallState) -> bool:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        return time.monotonic() - self._failing_since >= self._max_wait_s

    def _tell(self, attempt: tenacity.RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        self._before_next(str(error), attempt.attempt_number)
