"""Measures the busy time of this process: seconds in which its threads ran or were runnable without a core.

The source is /proc/PID/task/TID/schedstat (proc(5), "schedstat": time on the CPU and time on a run queue, in ns). psutil has the
CPU time only. The rest of a task's time is a wait for something else; in the comm worker it is a wait for bytes.
"""

import contextlib
import os

_READS_PER_SCAN = 64
_TASKS = "/proc/self/task"

SAMPLE_INTERVAL_S = 0.005
"""Least number of seconds between two samples."""


class ThreadTimes:
    """Busy time of all threads together. `is_known` is False if the kernel keeps no such statistics.

    A read costs about a microsecond per thread: files stay open, and only every 64th read scans for new threads.
    """

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._ended_s = 0.0  # of threads that have exited
        self._last: dict[str, float] = {}
        self._num_reads = 0
        self.is_known = os.path.exists(f"{_TASKS}/{os.getpid()}/schedstat")

    def busy_s(self) -> float:
        """Return the seconds on a core or on a run queue, summed over all threads, each since its first read."""
        if self._num_reads % _READS_PER_SCAN == 0:
            self._open_new()
        self._num_reads += 1
        for tid, file in list(self._files.items()):
            try:
                on_cpu, on_queue = os.pread(file, 64, 0).split()[:2]
            except (OSError, ValueError):  # the thread has exited
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
    """Estimates the busy time of any interval from periodic samples of `ThreadTimes`.

    A sample costs 1.5 microseconds per thread, and a small batch takes little longer, so not every batch is sampled.
    """

    def __init__(self, now: float) -> None:
        self._times = ThreadTimes()
        self._sampled = now
        self._busy_s = self._times.busy_s()
        self._share: float | None = None

    def between(self, since: float, now: float) -> float | None:
        """Return the busy seconds from `since` to `now`, both on the monotonic clock.

        The value is exact if `now` takes a sample, else it assumes the busy share of the last sample. None before the first sample,
        or without kernel statistics.
        """
        if self._times.is_known and now - self._sampled >= SAMPLE_INTERVAL_S:
            busy_s = self._times.busy_s()
            self._share = (busy_s - self._busy_s) / (now - self._sampled)
            self._sampled, self._busy_s = now, busy_s
        return None if self._share is None else self._share * (now - since)
