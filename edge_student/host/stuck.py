"""Finds processes that neither work nor wait for work: stopped ones, and ones that the kernel keeps waiting for a disk."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

STOPPED = frozenset("Tt")
"""States of /proc/PID/stat (proc_pid_stat(5)): stopped by a signal, or by a debugger."""

_STUCK = STOPPED | {"D"}  # D: waiting for a disk, as a process does that has been swapped out


class Sample(NamedTuple):
    """The state of a process, one letter, and its CPU time in ns."""

    state: str
    cpu_ns: int


def sample(pid: int) -> Sample | None:
    """Read the state of a process and its CPU time; None if it has exited.

    The clock id is that of clock_getcpuclockid(3): the complement of the process id, shifted, with the bits for "sched".
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
        return Sample(state, time.clock_gettime_ns((~pid << 3) | 2))
    except (OSError, IndexError):
        return None


class StuckProcesses:
    """Remembers since when each process has neither worked nor waited. Call `look` about once a second."""

    def __init__(self, limit_s: float, read: Callable[[int], Sample | None] = sample) -> None:
        self._limit_s = limit_s
        self._read = read
        self._since: dict[int, tuple[float, int]] = {}  # process id -> the first moment, and the CPU time then

    def look(self, pids: Iterable[int], now: float) -> dict[int, str]:
        """Return the state of each process that has been stuck for the limit at `now` (seconds), and count again for these."""
        found, former, self._since = {}, self._since, {}
        for pid in pids:
            seen = self._read(pid)
            if seen is None or seen.state not in _STUCK:
                continue
            since, cpu_ns = former.get(pid, (now, seen.cpu_ns))
            if seen.cpu_ns != cpu_ns:
                continue
            if now - since >= self._limit_s:
                found[pid] = seen.state
                since = now
            self._since[pid] = since, cpu_ns
        return found
