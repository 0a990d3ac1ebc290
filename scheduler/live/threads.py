"""Native threads one by one, through /proc and sched(7): the one door to their masks and classes.

`sched_setaffinity(2)` moves one thread, not a process, so everything works thread by thread over /proc/PID/task. It cannot widen
what the kernel allows. A mask that is only partly allowed is silently intersected by the kernel; masks are therefore read back,
and what was read is what is reported.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterable

ThreadMasks = dict[int, tuple[int, ...]]
"""Native thread id -> sorted core ids it may run on, as read back from the kernel."""


class BindingRefusedError(OSError):
    """The kernel refused a mask or a class (seccomp, a container's rules). The run may go on, but unpinned."""


class CoresGoneError(BindingRefusedError):
    """A core of the mask is no longer there for us: offline, or taken away by a cpuset or a power mode."""


def allowed_cores() -> frozenset[int]:
    """The cores that the calling thread may use, from `sched_getaffinity`: containers and cpusets make it less than the machine."""
    return frozenset(os.sched_getaffinity(0))


def usable_of(cores: frozenset[int]) -> frozenset[int]:
    """Those of `cores` on which the kernel would let a thread of this process run now; none if it would let none.

    The calling thread gets that mask, so it must be one that needs none of its own. What a cpuset takes from a process it takes
    from this mask too, so where nothing has changed this costs one system call.
    """
    try:
        if os.sched_getaffinity(0) == cores:
            return cores
        os.sched_setaffinity(0, cores)
    except OSError as error:
        if error.errno == errno.EINVAL:  # every one of them is gone
            return frozenset()
    return frozenset(os.sched_getaffinity(0)) & cores


def confine_process(cores: frozenset[int]) -> None:
    """Give every thread of this process, and so all that come, the mask `cores`. BindingRefusedError if the kernel says no."""
    for tid in threads_of(os.getpid()):
        set_mask(tid, cores)


def threads_of(pid: int) -> frozenset[int]:
    """Native thread ids of a process; empty if it is gone."""
    try:
        return frozenset(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return frozenset()


def num_threads_of(pid: int) -> int:
    """How many threads a process has, 0 if it is gone, for the price of one system call: a folder's links count its folders."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2
    except FileNotFoundError:
        return 0


def set_yielding(tid: int, is_yielding: bool) -> None:
    """Have one thread yield to everybody, in the kernel's class for that (SCHED_IDLE, sched(7)), or be like everybody again.

    Threads that it starts inherit it. BindingRefusedError where the kernel says no; a thread that has ended has no class.
    """
    wanted = os.SCHED_IDLE if is_yielding else os.SCHED_OTHER
    try:
        if os.sched_getscheduler(tid) != wanted:
            os.sched_setscheduler(tid, wanted, os.sched_param(0))
    except ProcessLookupError:
        return
    except OSError as error:
        raise BindingRefusedError(error.errno, f"the kernel keeps the class of thread {tid}: {error.strerror}") from error


def may_stop_yielding() -> bool:
    """Whether a thread of ours that yields could be like everybody again: with CAP_SYS_NICE or an RLIMIT_NICE of 20 it could.

    A thread that lives only for this tries it.
    """
    has_returned = threading.Event()

    def go_and_return() -> None:
        with contextlib.suppress(BindingRefusedError):
            set_yielding(threading.get_native_id(), True)
            set_yielding(threading.get_native_id(), False)
            has_returned.set()

    thread = threading.Thread(target=go_and_return, name="edgekd-probe")
    thread.start()
    thread.join()
    return has_returned.is_set()


def set_mask(tid: int, cores: frozenset[int]) -> bool:
    """Pin one thread; True if its mask had to change. A thread that has ended needs no mask."""
    try:
        if os.sched_getaffinity(tid) == cores:
            return False
        os.sched_setaffinity(tid, cores)
        given = os.sched_getaffinity(tid)
    except ProcessLookupError:
        return False
    except OSError as error:
        kind = CoresGoneError if error.errno == errno.EINVAL else BindingRefusedError
        raise kind(error.errno, f"the kernel refused cores {sorted(cores)} for thread {tid}: {error.strerror}") from error
    if given != cores:  # a cpuset or a power mode has taken some away, and the kernel leaves those out without a word
        raise CoresGoneError(errno.EINVAL, f"the kernel gave thread {tid} cores {sorted(given)} instead of {sorted(cores)}")
    return True


def read_masks(tids: Iterable[int]) -> ThreadMasks:
    """Masks as the kernel has them; threads that have ended are left out."""
    masks: ThreadMasks = {}
    for tid in sorted(tids):
        with contextlib.suppress(ProcessLookupError):
            masks[tid] = tuple(sorted(os.sched_getaffinity(tid)))
    return masks


def cpu_ns(tid: int) -> int:
    """CPU time of one thread of this process in ns, up to this moment even while it runs; 0 if it has ended.

    The clock id is the one of pthread_getcpuclockid(3): the complement of the id, shifted, with the bits for "thread" and "sched".
    """
    try:
        return time.clock_gettime_ns((~tid << 3) | 6)
    except OSError:
        return 0


def name_this_thread(name: str) -> int:
    """Give the calling thread a name that /proc and top show (at most 15 bytes) and return its native id."""
    tid = threading.get_native_id()
    with contextlib.suppress(OSError), open(f"/proc/self/task/{tid}/comm", "w") as file:
        file.write(name[:15])
    return tid
