"""How long this process' threads ran, and how long they were ready to run but had no core: /proc/PID/task/TID/schedstat.

What is left of a task's time was spent waiting for something else, in the comm worker for bytes. psutil has the CPU time, but not
the other one (proc(5), "schedstat": time on the CPU and time on a run queue, in ns).
"""

import contextlib
import os

_LOOK_AGAIN = 64
_TASKS = "/proc/self/task"


LOOK_EVERY_S = 0.005
"""Seconds between two looks, at least."""


class ThreadTimes:
    """Sums over all threads. `read()` costs about a microsecond a thread: files stay open, and new threads are looked for rarely.

    Where the kernel keeps no such statistics, `is_known` is False.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._ended_s = 0.0  # of threads that are gone
        self._last: dict[str, float] = {}
        self._num_reads = 0
        self.is_known = os.path.exists(f"{_TASKS}/{os.getpid()}/schedstat")

    def busy_s(self) -> float:
        """Seconds on a core or waiting for one, of all threads together, since each was first seen."""
        if self._num_reads % _LOOK_AGAIN == 0:
            self._open_new()
        self._num_reads += 1
        for tid, file in list(self._files.items()):
            try:
                on_cpu, on_queue = os.pread(file, 64, 0).split()[:2]
            except (OSError, ValueError):  # the thread has ended
                self._forget(tid)
                continue
            self._last[tid] = (int(on_cpu) + int(on_queue)) * 1e-9
        return self._ended_s + sum(self._last.values())

    def close(self) -> None:
        """Close all files."""
        for tid in list(self._files):
            self._forget(tid)

    def _open_new(self) -> None:
        for tid in os.listdir(_TASKS):
            if tid not in self._files:
                with contextlib.suppress(OSError):
                    self._files[tid] = os.open(f"{_TASKS}/{tid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def _forget(self, tid: str) -> None:
        os.close(self._files.pop(tid))
        self._ended_s += self._last.pop(tid, 0.0)


class Busy:
    """What part of its time this process, all threads together, ran or waited for a core: looked at now and then, because a look
    costs a microsecond and a half a thread, and small batches take little more than that.
    """

    def __init__(self, now: float) -> None:
        self._times = ThreadTimes()
        self._looked = now
        self._busy_s = self._times.busy_s()
        self._share: float | None = None

    def between(self, since: float, now: float) -> float | None:
        """Busy seconds from `since` to `now`, both of the monotonic clock: exact where that is long enough for a look of its own,
        else at the share of the last look. None before the first one, and where the kernel does not tell.
        """
        if self._times.is_known and now - self._looked >= LOOK_EVERY_S:
            busy_s = self._times.busy_s()
            self._share = (busy_s - self._busy_s) / (now - self._looked)
            self._looked, self._busy_s = now, busy_s
        return None if self._share is None else self._share * (now - since)
