"""Pins the native threads of the comm worker and of the calling compute worker, and sets their scheduling class.

It can NOT pin a thread before it exists, so it scans again when the set of threads changes. It can NOT resize the OpenMP team of
another process. `restore()` resets masks, thread counts and classes.

It does not import torch: the caller passes the compute worker's team as an object that can be resized and exercised.
"""

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable
from typing import Protocol

from scheduler.live.threads import (
    BindingRefusedError,
    ThreadMasks,
    cpu_ns,
    may_leave_idle_priority,
    num_threads_of,
    read_masks,
    set_idle_priority,
    set_mask,
    threads_of,
)

_MAX_SCANS = 5
SCAN_EVERY_S = 0.1
"""Seconds between two scans for new threads while the cores stay the same. Threads change rarely; a scan costs as much as a
decision."""
_CHURN_LIMIT = 3


class ThreadTeam(Protocol):
    """A native thread pool whose master is the calling thread (OpenMP below torch)."""

    def size(self) -> int:
        """Return the number of threads, master included."""

    def resize(self, num_threads: int) -> None:
        """Set the number of threads of the calling thread's team, master included."""

    def exercise(self) -> None:
        """Run one short parallel operation on every thread of the team, so that every thread exists and uses CPU time."""


class CommBinding:
    """Pins every native thread of the comm worker, gRPC's included, to one shared mask."""

    def __init__(self, pid: int, *, scan_every_s: float = SCAN_EVERY_S) -> None:
        self._pid = pid
        self._scan_every_s = scan_every_s
        self._mask: frozenset[int] | None = None
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
        for tid in threads_of(self._pid):
            set_idle_priority(tid, has_idle_priority)

    def pin_new_threads(self) -> ThreadMasks | None:
        """Pin new threads and return all masks; None if the number of threads is unchanged.

        A thread inherits the mask of the thread that starts it. At most one scan happens in `scan_every_s` seconds.
        """
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

    With a core for each, every worker is pinned to one. With fewer, all workers share all cores, and the kernel balances them.
    """

    num_churned = 0
    moves_at_once = True

    def __init__(self, workers: ComputeWorkers) -> None:
        self._workers = workers
        self._cores: tuple[int, ...] = ()
        self._pids: tuple[int, ...] = ()
        self._original = frozenset(os.sched_getaffinity(0))

    def leave_alone(self, tid: int) -> None:
        """Do nothing: no thread of this process is bound."""

    def apply(self, cores: Iterable[int]) -> ThreadMasks:
        """Run the workers on exactly these cores, the first worker on the highest. Return the masks read back.

        The result is empty if nothing has changed.
        """
        requested, pids = tuple(sorted(cores, reverse=True)), self._workers.pids
        assert requested, "compute without cores waits at its boundary and is not bound"
        if (requested, pids) == (self._cores, self._pids):
            return {}
        shared = frozenset(requested)
        masks: ThreadMasks = {}
        for n, pid in enumerate(pids):
            masks |= _pin_process(pid, frozenset({requested[n]}) if len(requested) >= len(pids) else shared)
        self._cores, self._pids = requested, pids
        return masks

    def hold(self) -> None:
        """Stop the workers where they are, until `release`."""
        self._send(signal.SIGSTOP)

    def release(self) -> None:
        """Let the workers run on."""
        self._send(signal.SIGCONT)

    def forget(self) -> None:
        """Forget the masks, because the kernel may have changed them: the next `apply` sets them again."""
        self._cores = ()

    def restore(self) -> ThreadMasks:
        """Let the workers run on all cores again, and return the masks read back. A mask that the kernel refuses stays as it is."""
        masks: ThreadMasks = {}
        if self._pids:
            for pid in self._workers.pids:
                with contextlib.suppress(BindingRefusedError):
                    masks |= _pin_process(pid, self._original)
        self._cores, self._pids = (), ()
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


class CompBinding:
    """Resizes the OpenMP team of the calling thread and pins it, one thread to one core.

    Create it and call `apply` only in the thread that runs the parallel code, at a task boundary. The members of the team are
    found at creation, while nothing else runs, and again only when threads have started or exited. Finding them needs a parallel
    operation, which can take 20 ms on busy cores.

    libgomp ends surplus threads of a team of two or more at the next parallel operation, and starts new threads for a team that
    grows. A team of one thread runs no parallel operation. Its surplus threads stay and spin for milliseconds on cores that other
    threads need. If the kernel allows it (`may_leave_idle_priority`), they get the class SCHED_IDLE meanwhile.
    """

    moves_at_once = False

    def __init__(self, team: ThreadTeam, *, max_threads: int, scan_every_s: float = SCAN_EVERY_S) -> None:
        self._team = team
        self._scan_every_s = scan_every_s
        self._max_threads = max_threads
        self._pid = os.getpid()
        self._master = os.getpid()  # the main thread's native id is the process id
        self._foreign: set[int] = set()
        self._cores: tuple[int, ...] = ()
        self._is_forgotten = False
        self._is_touched = False  # true from the first change on, including a change that the kernel refused halfway
        self._original_masks = {tid: frozenset(mask) for tid, mask in read_masks(threads_of(self._pid)).items()}
        self._original_size = team.size()
        self._num_churned = 0
        self._may_set_idle = may_leave_idle_priority()
        self._idle: set[int] = set()
        self._next_scan = 0.0
        self._pool = self._find_members(team.size())
        self._members = self._pool
        self._known = threads_of(self._pid)
        self._num_known = len(self._known)

    def hold(self) -> None:
        """Do nothing: the calling thread holds itself at its next layer or task."""

    def release(self) -> None:
        """Do nothing, see `hold`."""

    def leave_alone(self, tid: int) -> None:
        """Never change this thread of our process."""
        self._foreign.add(tid)

    def apply(self, cores: Iterable[int]) -> ThreadMasks:
        """Run compute on exactly these cores, highest first, with at most one thread per core. Return the masks read back.

        The result is empty if nothing has changed.
        """
        requested = tuple(sorted(cores, reverse=True))
        assert requested, "compute without cores waits at its boundary and is not bound"
        if requested == self._cores and not self._is_forgotten:
            if time.monotonic() < self._next_scan:
                return {}
            self._next_scan = time.monotonic() + self._scan_every_s
            if not self._has_new_threads():
                return {}
        num_threads = min(len(requested), self._max_threads)
        self._is_touched, self._is_forgotten = True, False
        if num_threads < self._team.size():
            self._team.resize(num_threads)  # before the mask shrinks: spinning threads must never share a core
        self._pin([self._master], requested)
        if num_threads > self._team.size():
            self._team.resize(num_threads)
        self._set_idle_priority(self._pool if num_threads == 1 else ())
        # With one shared mask the members of the team no longer matter, and finding them is not free.
        members = self._members if self._num_churned >= _CHURN_LIMIT else self._members_of(num_threads)
        if requested == self._cores and set(members) != set(self._members):
            self._num_churned += 1
        self._members = members
        self._pin_all(requested)
        self._cores = requested
        return read_masks(self._known - self._foreign)

    def forget(self) -> None:
        """Forget the masks, because the kernel may have changed them: the next `apply` sets them again."""
        self._is_forgotten = True

    @property
    def team(self) -> list[int]:
        """Native thread ids of the OpenMP team at the last `apply`, master first."""
        return [self._master, *self._members]

    @property
    def num_churned(self) -> int:
        """Number of times the runtime replaced threads of the team (oneDNN shrinks the team for small work)."""
        return self._num_churned

    def restore(self) -> ThreadMasks:
        """Restore the original masks and thread count, and return the masks read back. Call it in the compute thread.

        Threads that started since get the original mask of the master. A mask or class that the kernel refuses now (cores were
        taken away) stays as it is.
        """
        if not self._is_touched:
            return {}
        for tid in threads_of(self._pid) - self._foreign:
            with contextlib.suppress(BindingRefusedError):
                set_mask(tid, self._original_masks.get(tid, self._original_masks[self._master]))
        with contextlib.suppress(BindingRefusedError):
            self._set_idle_priority(())
        self._team.resize(self._original_size)
        self._cores = ()
        self._is_touched = False
        return read_masks(threads_of(self._pid) - self._foreign)

    def _set_idle_priority(self, tids: Collection[int]) -> None:
        """Put exactly these threads of ours into SCHED_IDLE."""
        if not self._may_set_idle:
            return
        for tid in self._idle.symmetric_difference(tids):
            set_idle_priority(tid, tid in tids)
        self._idle = set(tids)

    def _has_new_threads(self) -> bool:
        # Only a team of more than two threads can lose and gain threads while their number stays the same.
        if len(self._members) <= 1 and num_threads_of(self._pid) == self._num_known:
            return False
        current = threads_of(self._pid)
        self._num_known = len(current)
        return not current - self._foreign <= self._known

    def _members_of(self, num_threads: int) -> list[int]:
        """Return the team's threads without the master: the first ones of libgomp's pool, if the pool is unchanged.

        A thread that is exiting may stay visible for long if it gets no core to exit on.
        """
        pool = sorted(threads_of(self._pid).intersection(self._pool))
        if self._has_new_threads() or len(pool) < num_threads - 1:
            pool = self._find_members(num_threads)
        self._pool = pool if num_threads == 1 else pool[: num_threads - 1]
        return pool[: num_threads - 1]

    def _find_members(self, num_threads: int) -> list[int]:
        """Return the threads whose CPU clock advances during a parallel operation, oldest first, without the master."""
        if num_threads == 1:
            return []
        grown: dict[int, int] = {}
        for _ in range(_MAX_SCANS):
            before = {tid: cpu_ns(tid) for tid in threads_of(self._pid)}
            self._team.exercise()
            for tid in threads_of(self._pid) - self._foreign - {self._master}:
                grown[tid] = grown.get(tid, 0) + cpu_ns(tid) - before.get(tid, 0)  # a new thread started at 0
            busy = [tid for tid, spent in grown.items() if spent > 0]
            if len(busy) >= num_threads - 1:
                return sorted(sorted(busy, key=lambda tid: -grown[tid])[: num_threads - 1])
        return sorted(tid for tid, spent in grown.items() if spent > 0)

    def _pin_all(self, cores: tuple[int, ...]) -> None:
        team = self.team
        if self._num_churned >= _CHURN_LIMIT:
            # A new thread inherits the mask of the master. If threads keep being replaced, one core per thread would put the new
            # ones onto the master's core, which is far worse than a shared mask.
            self._pin(team, cores)
        else:
            for tid, core in zip(team, cores, strict=False):
                self._pin([tid], (core,))
        current = threads_of(self._pid)
        self._num_known = len(current)
        self._known = current - self._foreign
        self._pin(self._known - set(team), cores)  # idle pools must not wake up on comm's cores

    def _pin(self, tids: Iterable[int], cores: tuple[int, ...]) -> None:
        for tid in tids:
            set_mask(tid, frozenset(cores))
