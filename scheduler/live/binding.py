"""Pins the native threads of the comm worker and of the calling compute worker, and sets their scheduling class.

It can NOT pin a thread before it exists, so it scans again when the set of threads changes. It can NOT resize the OpenMP team of
another process. `restore()` resets masks, thread counts and classes.

It does not import torch: the caller passes the compute worker's team as an object that can be resized.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from typing import Protocol

from scheduler.live.threads import (
    BindingRefusedError,
    ThreadMasks,
    may_leave_idle_priority,
    num_threads_of,
    read_masks,
    set_group_niceness,
    set_idle_priority,
    set_mask,
    threads_of,
)
from scheduler.model.state import LOWEST_PRIORITY

_MAX_SCANS = 5
SCAN_EVERY_S = 0.1
"""Seconds between two scans for new threads while the cores stay the same. Threads change rarely; a scan costs as much as a
decision."""
_CHURN_LIMIT = 3


class ThreadTeam(Protocol):
    """A native thread pool that the calling thread belongs to (OpenMP below torch)."""

    def size(self) -> int:
        """Return the number of threads, the calling thread included."""

    def resize(self, num_threads: int) -> None:
        """Set the number of threads of the calling thread's team, itself included."""


class _IdlePriorities:
    """The idle priority of some processes: the class of their threads, and the niceness of their autogroups.

    A process starts without it, and only changes reach the kernel.
    """

    def __init__(self) -> None:
        self._idle: set[int] = set()
        self._due_niceness: dict[int, int] = {}  # by process id, until the kernel has taken it

    def set(self, pid: int, has_idle_priority: bool) -> None:
        """Give all threads of a process idle priority, or take it back. Raises BindingRefusedError if the kernel refuses."""
        if has_idle_priority == (pid in self._idle):
            return
        for tid in threads_of(pid):
            set_idle_priority(tid, has_idle_priority)
        (self._idle.add if has_idle_priority else self._idle.discard)(pid)
        self._due_niceness[pid] = LOWEST_PRIORITY if has_idle_priority else 0
        self.retry()

    def retry(self) -> None:
        """Set each niceness that the kernel has not taken yet."""
        self._due_niceness = {pid: value for pid, value in self._due_niceness.items() if not set_group_niceness(pid, value)}


class CommBinding:
    """Pins every native thread of the comm worker, gRPC's included, to one shared mask."""

    def __init__(self, pid: int, *, scan_every_s: float = SCAN_EVERY_S) -> None:
        self._pid = pid
        self._scan_every_s = scan_every_s
        self._mask: frozenset[int] | None = None
        self._priorities = _IdlePriorities()
        self._known: frozenset[int] = frozenset()
        self._next_scan = 0.0

    def apply(self, cores: frozenset[int]) -> ThreadMasks:
        """Pin all threads to `cores` (not empty) and return the masks read back; empty if the process has exited."""
        assert cores, "a mask needs a core; a worker is held by a flag, not by a mask"
        self._mask = cores
        for _ in range(_MAX_SCANS):  # a thread that was started before its parent was pinned has the old mask
            before = threads_of(self._pid)
            changed = [tid for tid in before if set_mask(tid, cores)]
            self._known = threads_of(self._pid)
            if not changed and self._known == before:
                break
        return read_masks(self._known)

    def set_idle_priority(self, has_idle_priority: bool) -> None:
        """Put the worker into the class SCHED_IDLE (sched(7)), or back into SCHED_OTHER. Later threads inherit the class.

        Raises BindingRefusedError if the kernel refuses. The way back needs CAP_SYS_NICE or an RLIMIT_NICE of 20.
        """
        self._priorities.set(self._pid, has_idle_priority)

    def pin_new_threads(self) -> ThreadMasks | None:
        """Pin new threads and return all masks; None if the number of threads is unchanged.

        A thread inherits the mask of the thread that starts it. At most one scan happens in `scan_every_s` seconds.
        """
        self._priorities.retry()
        if self._mask is None or time.monotonic() < self._next_scan:
            return None
        self._next_scan = time.monotonic() + self._scan_every_s
        if num_threads_of(self._pid) == len(self._known):
            return None
        return self.apply(self._mask)


class ComputeWorkers(Protocol):
    """The processes that compute, one for each shard."""

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids, in the order of shards. A worker that was killed is replaced."""


class WorkersBinding:
    """Pins compute workers of one thread each. It can be called from any thread at any moment, also in the middle of a task.

    With a core for each, every worker is pinned to one: the kernel moves a worker late to a core that has been added to its mask.
    With fewer, all workers share all cores, and the kernel balances them. A worker of idle priority may use all cores, so that it
    moves to one where another worker has finished its part.
    """

    moves_at_once = True

    def __init__(self, workers: ComputeWorkers) -> None:
        self._workers = workers
        self._given: Iterable[int] | None = None
        self._cores: tuple[int, ...] = ()
        self._num_idle = 0
        self._may_set_idle = may_leave_idle_priority()
        self._priorities = _IdlePriorities()
        self._pids: tuple[int, ...] = ()
        self._original = frozenset(os.sched_getaffinity(0))

    def leave_alone(self, tid: int) -> None:
        """Do nothing: no thread of this process is bound."""

    def apply(self, cores: Iterable[int], num_idle: int = 0) -> ThreadMasks:
        """Run the workers on exactly these cores, the first worker on the highest, the last `num_idle` workers at idle priority.

        Return the masks read back; empty if nothing has changed. Without the right to leave idle priority again
        (`may_leave_idle_priority`) all workers keep normal priority.
        """
        self._priorities.retry()
        pids = self._workers.pids
        # By identity first: this runs at every event, and a placement is the same object until a policy changes its choice.
        if cores is self._given and num_idle == self._num_idle and pids is self._pids:
            return {}
        requested = tuple(sorted(cores, reverse=True))
        assert requested, "compute without cores waits at its boundary and is not bound"
        if (requested, num_idle, pids) == (self._cores, self._num_idle, self._pids):
            return {}
        first_idle = len(pids) - min(num_idle, len(pids) - 1)
        own = requested[: max(len(requested) - num_idle, 1)]  # of the workers of normal priority
        masks: ThreadMasks = {}
        for n, pid in enumerate(pids):
            is_idle = n >= first_idle
            mask = requested if is_idle else own if first_idle > len(own) else own[n : n + 1]
            masks |= _pin_process(pid, frozenset(mask))
            if self._may_set_idle:
                self._priorities.set(pid, is_idle)
        self._given, self._cores, self._num_idle, self._pids = cores, requested, num_idle, pids
        return masks

    def hold(self) -> None:
        """Stop the workers where they are, until `release`."""
        self._send(signal.SIGSTOP)

    def release(self) -> None:
        """Let the workers run on."""
        self._send(signal.SIGCONT)

    def forget(self) -> None:
        """Forget the masks, because the kernel may have changed them: the next `apply` sets them again."""
        self._given, self._cores = None, ()

    def restore(self) -> ThreadMasks:
        """Let the workers run on all cores again, and return the masks read back. A mask that the kernel refuses stays as it is."""
        masks: ThreadMasks = {}
        if self._pids:
            for pid in self._workers.pids:
                with contextlib.suppress(BindingRefusedError):
                    masks |= _pin_process(pid, self._original)
                    if self._may_set_idle:
                        self._priorities.set(pid, False)
        self._given, self._cores, self._pids = None, (), ()
        return masks

    def _send(self, number: signal.Signals) -> None:
        for pid in self._workers.pids:
            with contextlib.suppress(ProcessLookupError):  # killed, and about to be replaced
                os.kill(pid, number)


def _pin_process(pid: int, cores: frozenset[int]) -> ThreadMasks:
    """Pin all threads of a process and return the masks read back; empty if it has exited."""
    tids = threads_of(pid)
    for tid in tids:
        set_mask(tid, cores)
    return read_masks(tids)


class TeamBinding:
    """Gives one team of threads its cores: a thread for each core, and one mask for all threads of this process.

    Create it and call `apply` only in the thread that runs the parallel code, between two tasks. Threads that start later have the
    mask of the thread that starts them.
    """

    moves_at_once = False

    def __init__(self, team: ThreadTeam, *, max_threads: int) -> None:
        self._team = team
        self._max_threads = max_threads
        self._foreign: set[int] = set()
        self._cores: frozenset[int] = frozenset()
        self._is_touched = False  # true from the first change on, including a change that the kernel refused halfway
        self._original_masks = {tid: frozenset(mask) for tid, mask in read_masks(threads_of(os.getpid())).items()}
        self._original_size = team.size()

    def hold(self) -> None:
        """Do nothing: the calling thread waits between two tasks."""

    def release(self) -> None:
        """Do nothing, see `hold`."""

    def leave_alone(self, tid: int) -> None:
        """Never change this thread of our process."""
        self._foreign.add(tid)

    def apply(self, cores: Iterable[int], num_idle: int = 0) -> ThreadMasks:
        """Run compute on exactly these cores, with at most one thread per core. Return the masks read back.

        The result is empty if nothing has changed.
        """
        requested = frozenset(cores)
        assert requested, "compute without cores waits at its boundary and is not bound"
        assert not num_idle, "a team of threads has one priority"
        if requested == self._cores:
            return {}
        num_threads = min(len(requested), self._max_threads)
        self._is_touched = True
        if num_threads < self._team.size():
            self._team.resize(num_threads)  # before the mask shrinks, so that threads that spin do not share a core
        own = threads_of(os.getpid()) - self._foreign
        for tid in own:
            set_mask(tid, requested)
        if num_threads > self._team.size():
            self._team.resize(num_threads)
        self._cores = requested
        return read_masks(own)

    def forget(self) -> None:
        """Forget the masks, because the kernel may have changed them: the next `apply` sets them again."""
        self._cores = frozenset()

    def restore(self) -> ThreadMasks:
        """Restore the original masks and thread count, and return the masks read back. Call it in the compute thread.

        Threads that started since get the original mask of the main thread. A mask that the kernel refuses now (cores were taken
        away) stays as it is.
        """
        if not self._is_touched:
            return {}
        own = threads_of(os.getpid()) - self._foreign
        for tid in own:
            with contextlib.suppress(BindingRefusedError):
                set_mask(tid, self._original_masks.get(tid, self._original_masks[os.getpid()]))
        self._team.resize(self._original_size)
        self._cores, self._is_touched = frozenset(), False
        return read_masks(own)
