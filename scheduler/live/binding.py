"""Pins the native threads of the comm worker, and those of the calling compute worker, and says which of them yield.

What it can NOT do: bind a thread that does not exist yet (it looks again when the set of threads changes), or size another process'
OpenMP team. `restore()` puts masks, thread counts and classes back.

It knows nothing of torch: the compute worker's thread team comes as an object that can be resized and exercised.
"""

import contextlib
import os
import time
from collections.abc import Collection, Iterable
from typing import Protocol

from scheduler.live.threads import (
    BindingRefusedError,
    ThreadMasks,
    cpu_ns,
    may_stop_yielding,
    num_threads_of,
    read_masks,
    set_mask,
    set_yielding,
    threads_of,
)

_MAX_LOOKS = 5
LOOK_EVERY_S = 0.1
"""Threads come and go rarely, and to ask whether they did takes as long as a decision: so often is enough where nothing moves."""
_CHURN_LIMIT = 3


class ThreadTeam(Protocol):
    """A native thread pool whose master is the calling thread (OpenMP under torch)."""

    def size(self) -> int:
        """Number of threads, master included."""

    def resize(self, num_threads: int) -> None:
        """Change the number of threads, master included, of the calling thread's team."""

    def exercise(self) -> None:
        """Run one short parallel operation on every thread of the team, so that all of them exist and burn CPU time."""


class CommBinding:
    """Pins every native thread of the comm worker, gRPC's included, to one shared mask."""

    def __init__(self, pid: int, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._pid = pid
        self._look_every_s = look_every_s
        self._mask: frozenset[int] | None = None
        self._known: frozenset[int] = frozenset()
        self._next_look = 0.0

    def apply(self, cores: frozenset[int]) -> ThreadMasks:
        """Pin all threads to `cores` (not empty) and return the masks read back. A process that is gone has no threads."""
        assert cores, "a mask needs a core; holding a worker is not done by masks"
        self._mask = cores
        for _ in range(_MAX_LOOKS):  # a thread born by one not yet pinned has the old mask: look until nothing changes
            before = threads_of(self._pid)
            changed = [tid for tid in before if set_mask(tid, cores)]
            self._known = threads_of(self._pid)
            if not changed and self._known == before:
                break
        return read_masks(self._known)

    def set_idle_priority(self, has_idle_priority: bool) -> None:
        """Have the worker yield to everybody, in the kernel's class for that (SCHED_IDLE, sched(7)), or be like everybody again.

        Threads born later inherit it. Back is only for who may: BindingRefusedError without CAP_SYS_NICE or an RLIMIT_NICE of 20.
        """
        for tid in threads_of(self._pid):
            set_yielding(tid, has_idle_priority)

    def look_again(self) -> ThreadMasks | None:
        """Pin threads that came since; None if there are as many as before. A thread born by a pinned one is pinned already.

        Asked again within `look_every_s` it does not look.
        """
        if self._mask is None or time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + self._look_every_s
        if num_threads_of(self._pid) == len(self._known):
            return None
        return self.apply(self._mask)


class CompBinding:
    """Sizes and pins the OpenMP team of the calling thread, one thread to one core.

    Make one, and call `apply`, only in the thread that runs the parallel code, at a task boundary. Who is in the team is found out
    when it is made, while nothing else runs, and again only when threads have come or gone: it takes a parallel operation, which
    on cores that are still busy can take 20 ms.

    What a team of two or more leaves out, libgomp ends with its next parallel operation, and for a team that grows it makes new
    threads. One thread alone runs no parallel operation: then all others are kept, and spin on for milliseconds, waiting for work,
    on cores where others have some. Where the kernel allows it (`may_stop_yielding`) they yield to everybody meanwhile.
    """

    def __init__(self, team: ThreadTeam, *, max_threads: int, look_every_s: float = LOOK_EVERY_S) -> None:
        self._team = team
        self._look_every_s = look_every_s
        self._max_threads = max_threads
        self._pid = os.getpid()
        self._master = os.getpid()  # the main thread's native id is the process id
        self._foreign: set[int] = set()
        self._cores: tuple[int, ...] = ()
        self._is_forgotten = False
        self._is_touched = False  # from the first change on, also one that the kernel refused halfway
        self._original_masks = {tid: frozenset(mask) for tid, mask in read_masks(threads_of(self._pid)).items()}
        self._original_size = team.size()
        self._num_churned = 0
        self._may_yield = may_stop_yielding()
        self._yielding: set[int] = set()
        self._next_look = 0.0
        self._pool = self._find_members(team.size())
        self._members = self._pool
        self._known = threads_of(self._pid)
        self._num_known = len(self._known)

    def leave_alone(self, tid: int) -> None:
        """Never touch this thread of our process."""
        self._foreign.add(tid)

    def apply(self, cores: Iterable[int]) -> ThreadMasks:
        """Run compute on exactly these cores, highest first, with at most one thread per core; return the masks read back."""
        wanted = tuple(sorted(cores, reverse=True))
        assert wanted, "compute with no cores is held at its boundary, not bound"
        if wanted == self._cores and not self._is_forgotten:
            if time.monotonic() < self._next_look:
                return {}
            self._next_look = time.monotonic() + self._look_every_s
            if not self._has_new_threads():
                return {}
        num_threads = min(len(wanted), self._max_threads)
        self._is_touched, self._is_forgotten = True, False
        if num_threads < self._team.size():
            self._team.resize(num_threads)  # fewer threads before fewer cores: spinning threads must never share one
        self._pin([self._master], wanted)
        if num_threads > self._team.size():
            self._team.resize(num_threads)
        self._let_yield(self._pool if num_threads == 1 else ())
        # Where all share one mask it no longer matters who is in the team, and looking is not free.
        members = self._members if self._num_churned >= _CHURN_LIMIT else self._members_of(num_threads)
        if wanted == self._cores and set(members) != set(self._members):
            self._num_churned += 1
        self._members = members
        self._pin_all(wanted)
        self._cores = wanted
        return read_masks(self._known - self._foreign)

    def forget(self) -> None:
        """Masks may no longer be what was asked for: the next `apply` sets them anew, whatever one that is at work does now."""
        self._is_forgotten = True

    @property
    def team(self) -> list[int]:
        """Native ids of the OpenMP team at the last `apply`, master first."""
        return [self._master, *self._members]

    @property
    def num_churned(self) -> int:
        """How often threads of the team were replaced behind our back (oneDNN shrinks the team for small work)."""
        return self._num_churned

    def restore(self) -> ThreadMasks:
        """Put back the masks and the thread count that were found at first; return the masks read back.

        Call it in the compute thread.

        Threads born since get what the master had. A mask or a class that the kernel refuses now (cores were taken away) stays.
        """
        if not self._is_touched:
            return {}
        for tid in threads_of(self._pid) - self._foreign:
            with contextlib.suppress(BindingRefusedError):
                set_mask(tid, self._original_masks.get(tid, self._original_masks[self._master]))
        with contextlib.suppress(BindingRefusedError):
            self._let_yield(())
        self._team.resize(self._original_size)
        self._cores = ()
        self._is_touched = False
        return read_masks(threads_of(self._pid) - self._foreign)

    def _let_yield(self, tids: Collection[int]) -> None:
        """Have these threads yield to everybody, and nobody else of ours."""
        if not self._may_yield:
            return
        for tid in self._yielding.symmetric_difference(tids):
            set_yielding(tid, tid in tids)
        self._yielding = set(tids)

    def _has_new_threads(self) -> bool:
        # A team of two runs an operation together or not at all; only larger ones lose and get threads at an unchanged count.
        if len(self._members) <= 1 and num_threads_of(self._pid) == self._num_known:
            return False
        everybody = threads_of(self._pid)
        self._num_known = len(everybody)
        return not everybody - self._foreign <= self._known

    def _members_of(self, num_threads: int) -> list[int]:
        """The team's threads besides the master: the first of the pool, as libgomp takes them, if all are still the same.

        The pool is what libgomp keeps. A thread that ends may be seen for long, where it finds no core to end on.
        """
        pool = sorted(threads_of(self._pid).intersection(self._pool))
        if self._has_new_threads() or len(pool) < num_threads - 1:
            pool = self._find_members(num_threads)
        self._pool = pool if num_threads == 1 else pool[: num_threads - 1]
        return pool[: num_threads - 1]

    def _find_members(self, num_threads: int) -> list[int]:
        """The threads whose CPU clock advances during a parallel operation, in the order of their birth; without the master."""
        if num_threads == 1:
            return []
        grown: dict[int, int] = {}
        for _ in range(_MAX_LOOKS):
            before = {tid: cpu_ns(tid) for tid in threads_of(self._pid)}
            self._team.exercise()
            for tid in threads_of(self._pid) - self._foreign - {self._master}:
                grown[tid] = grown.get(tid, 0) + cpu_ns(tid) - before.get(tid, 0)  # one born meanwhile began at 0
            busy = [tid for tid, spent in grown.items() if spent > 0]
            if len(busy) >= num_threads - 1:
                return sorted(sorted(busy, key=lambda tid: -grown[tid])[: num_threads - 1])
        return sorted(tid for tid, spent in grown.items() if spent > 0)

    def _pin_all(self, cores: tuple[int, ...]) -> None:
        team = self.team
        if self._num_churned >= _CHURN_LIMIT:
            # Threads are born with the mask of the master. Where they keep being replaced, one core each would pile the new ones
            # onto the master's core, which is far worse than a shared mask.
            self._pin(team, cores)
        else:
            for tid, core in zip(team, cores, strict=False):
                self._pin([tid], (core,))
        everybody = threads_of(self._pid)
        self._num_known = len(everybody)
        self._known = everybody - self._foreign
        self._pin(self._known - set(team), cores)  # idle pools: they must not wake up on comm's cores

    def _pin(self, tids: Iterable[int], cores: tuple[int, ...]) -> None:
        for tid in tids:
            set_mask(tid, frozenset(cores))
