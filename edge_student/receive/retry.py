"""Retry with exponential backoff and jitter until `max_wait_s` seconds pass without progress."""

import time
from collections.abc import Callable
from typing import TypeVar

import tenacity

T = TypeVar("T")


class LinkLostError(ConnectionError):
    """The teacher is unreachable or its stream broke; a retry may succeed."""


class RetryPolicy:
    """Retries an action until nothing has succeeded for `max_wait_s` seconds.

    The time counts from the first failure, so a long batch is not a failure. `before_next(error, attempt)` is called between two
    attempts.
    """

    def __init__(self, max_wait_s: float, before_next: Callable[[str, int], None]) -> None:
        self._max_wait_s = max_wait_s
        self._before_next = before_next
        self._failing_since: float | None = None

    @property
    def has_failed(self) -> bool:
        """Whether an attempt has failed since the last success."""
        return self._failing_since is not None

    def note_success(self) -> None:
        """Record progress: the time limit starts over at the next failure."""
        self._failing_since = None

    def call(self, action: Callable[[], T]) -> T:
        """Call `action` and return its result; retry while it raises LinkLostError.

        Raises LinkLostError when the time is up, and any other exception of `action` at once.
        """
        self._failing_since = None
        try:
            return action()  # the common case: setting up tenacity takes as long as receiving a small batch
        except LinkLostError as error:
            failures = [error]

        def attempt() -> T:
            if failures:
                raise failures.pop()
            return action()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(LinkLostError),
            # The longest pause has jitter too: edges that lost the same teacher must not reconnect in step.
            wait=tenacity.wait_exponential(multiplier=0.2, max=5.0) + tenacity.wait_random(0.0, 0.5),
            stop=self._has_failed_for_too_long,
            before_sleep=self._report,
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

    def _report(self, attempt: tenacity.RetryCallState) -> None:
        error = attempt.outcome.exception() if attempt.outcome else None
        self._before_next(str(error), attempt.attempt_number)
