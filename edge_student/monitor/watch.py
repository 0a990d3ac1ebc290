"""Watches a run while it trains: workers that are stuck, and other programs that use its cores.

It has a thread of its own, because the training thread and the scheduler thread wait for the workers that it watches.
"""

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping

from edge_student.host.disturbance import findings
from edge_student.host.sampler import DisturbanceSampler
from edge_student.host.stuck import STOPPED, StuckProcesses

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_SAMPLE_S = 5.0
"""Seconds between two samples of the machine's counters. A sample takes some ms on a machine with hundreds of processes."""

_FIRST_SAMPLE_S = 2.0
_AGAIN = 10


class Watch:
    """Use as a context manager while a run trains. `workers` returns the names of the processes to watch by process id.

    A worker that has been stuck for `max_silence_s` seconds is continued (SIGCONT). If it is stuck again soon after, within _AGAIN
    times as many seconds, it is killed.
    """

    def __init__(
        self,
        *,
        workers: Callable[[], Mapping[int, str]],
        sampler: DisturbanceSampler,
        max_silence_s: float,
        sample_s: float = _SAMPLE_S,
    ) -> None:
        self._workers = workers
        self._sampler = sampler
        self._max_silence_s = max_silence_s
        self._sample_s = sample_s
        self._stuck = StuckProcesses(max_silence_s)
        self._continued: dict[int, float] = {}  # process id -> the last moment
        self._is_disturbed = False
        self._disturbed_s = 0.0
        self._first_disturbance: list[str] = []
        self.notes: list[str] = []
        """A text for every worker that was stuck."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgekd-watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def disturbances(self) -> list[str]:
        """The first disturbance by other programs in this run, with the seconds of all of them; empty if there was none."""
        return [f"for about {self._disturbed_s:.0f} s {found}" for found in self._first_disturbance]

    def _run(self) -> None:
        poll_s = min(_POLL_S, self._max_silence_s / 2)
        sampled = time.monotonic()
        next_sample = sampled + min(_FIRST_SAMPLE_S, self._sample_s)
        try:
            while not self._stopping.wait(poll_s):
                now = time.monotonic()
                self._end_silence(now)
                if now >= next_sample:
                    self._sample(now - sampled)
                    sampled, next_sample = now, now + self._sample_s
        except Exception as error:  # the run does not depend on the watch
            self.notes.append(f"the run was not watched after a failure of the watch: {type(error).__name__}: {error}")
            logger.exception("the watch of the run has failed; the run goes on")

    def _end_silence(self, now: float) -> None:
        names = self._workers()
        for pid, state in self._stuck.look(names, now).items():
            what = "stopped by a signal or a debugger" if state in STOPPED else "waiting for a disk (state D)"
            is_again = now - self._continued.get(pid, -math.inf) < _AGAIN * self._max_silence_s
            signal_number = signal.SIGKILL if is_again else signal.SIGCONT
            self._continued[pid] = now
            self._note(f"{names[pid]} (process {pid}) was {what} for {self._max_silence_s:g} s; it got {signal_number.name}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)

    def _sample(self, seconds: float) -> None:
        """Log when other programs begin to disturb the run, and when they have stopped."""
        found = findings(self._sampler.since_last())
        if found:
            self._disturbed_s += seconds
            self._first_disturbance = self._first_disturbance or found
        if bool(found) != self._is_disturbed:
            self._is_disturbed = bool(found)
            logger.info("the run is %sdisturbed%s", "" if found else "no longer ", f": {'; '.join(found)}" if found else "")

    def _note(self, text: str) -> None:
        if text not in self.notes:  # a worker in state D stays there, whatever signal it gets
            self.notes.append(text)
            logger.warning(text)
