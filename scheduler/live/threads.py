"""Core masks and scheduling classes of native threads, through /proc and sched(7). No other module of the edge sets a mask.

`sched_setaffinity(2)` changes one thread, not a process, so every function works thread by thread over /proc/PID/task. A mask
cannot exceed the cores that the kernel allows. The kernel silently intersects a partly allowed mask. Masks are therefore read
back, and the masks that were read are reported.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterable

ThreadMasks = dict[int, tuple[int, ...]]
"""Native thread id -> sorted core ids it may run on, as read back from the kernel."""


class BindingRefusedError(OSError):
    """The kernel refused a mask or a scheduling class (seccomp, rules of a container). The run may continue unpinned."""


class CoresGoneError(BindingRefusedError):
    """A core of the mask is gone: offline, or taken away by a cpuset or a power mode."""


def allowed_cores() -> frozenset[int]:
    """Return the cores that the calling thread may use, from `sched_getaffinity`. Containers and cpusets restrict them."""
    return frozenset(os.sched_getaffinity(0))


def usable_of(cores: frozenset[int]) -> frozenset[int]:
    """Return the subset of `cores` on which the kernel lets a thread of this process run now; may be empty.

    The calling thread gets that mask, so call it in a thread whose mask does not matter. A cpuset also reduces the mask of the
    calling thread, so an unchanged set of cores costs one system call.
    """
    try:
        if os.sched_getaffinity(0) == cores:
            return cores
        os.sched_setaffinity(0, cores)
    except OSError as error:
        if error.errno == errno.EINVAL:  # all of them are gone
            return frozenset()
    return frozenset(os.sched_getaffinity(0)) & cores


def confine_process(cores: frozenset[int]) -> None:
    """Pin every thread of this process to `cores`; later threads inherit the mask. Raises BindingRefusedError."""
    for tid in threads_of(os.getpid()):
        set_mask(tid, cores)


def threads_of(pid: int) -> frozenset[int]:
    """Return the native thread ids of a process; empty if it has exited."""
    try:
        return frozenset(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return frozenset()


def num_threads_of(pid: int) -> int:
    """Return the number of threads of a process, 0 if it has exited. One system call: a folder's link count includes its
    folders."""
    try:
        return os.stat(f"/proc/{pid}/task").st_nlink - 2
    except FileNotFoundError:
        return 0


def set_idle_priority(tid: int, is_idle: bool) -> None:
    """Put one thread into the class SCHED_IDLE (sched(7)), or back into SCHED_OTHER. Threads that it starts inherit the class.

    A thread that has exited is ignored. Raises BindingRefusedError if the kernel refuses.
    """
    wanted = os.SCHED_IDLE if is_idle else os.SCHED_OTHER
    try:
        if os.sched_getscheduler(tid) != wanted:
            os.sched_setscheduler(tid, wanted, os.sched_param(0))
    except ProcessLookupError:
        return
    except OSError as error:
        raise BindingRefusedError(
            error.errno, f"the kernel refused to change the scheduling class of thread {tid}: {error.strerror}"
        ) from error


def set_group_niceness(pid: int, niceness: int) -> bool:
    """Set the niceness of a process's autogroup, 0 to 19, and return whether the kernel has taken it.

    The kernel puts every session into an autogroup of its own (sched(7)). The classes and the niceness of threads then count within
    their session only, and this value counts between sessions. Without privilege one change in 0.1 s is allowed. Where the kernel
    has no autogroups there is nothing to set.
    """
    try:
        with open(f"/proc/{pid}/autogroup", "w") as file:
            file.write(str(niceness))
    except OSError as error:
        return error.errno != errno.EAGAIN
    return True


def may_leave_idle_priority() -> bool:
    """Return whether this process may leave SCHED_IDLE again, which needs CAP_SYS_NICE or an RLIMIT_NICE of 20.

    A short-lived thread tries it.
    """
    has_returned = threading.Event()

    def go_and_return() -> None:
        with contextlib.suppress(BindingRefusedError):
            set_idle_priority(threading.get_native_id(), True)
            set_idle_priority(threading.get_native_id(), False)
            has_returned.set()

    thread = threading.Thread(target=go_and_return, name="edgekd-probe")
    thread.start()
    thread.join()
    return has_returned.is_set()


def set_mask(tid: int, cores: frozenset[int]) -> bool:
    """Pin one thread, and return whether its mask changed. A thread that has exited is ignored.

    Raises CoresGoneError if a core is gone, else BindingRefusedError if the kernel refuses.
    """
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
    if given != cores:  # the kernel silently drops cores that a cpuset or a power mode has taken away
        raise CoresGoneError(errno.EINVAL, f"the kernel gave thread {tid} cores {sorted(given)} instead of {sorted(cores)}")
    return True


def read_masks(tids: Iterable[int]) -> ThreadMasks:
    """Read the masks of threads from the kernel. Threads that have exited are left out."""
    masks: ThreadMasks = {}
    for tid in sorted(tids):
        with contextlib.suppress(ProcessLookupError):
            masks[tid] = tuple(sorted(os.sched_getaffinity(tid)))
    return masks


def name_this_thread(name: str) -> int:
    """Name the calling thread for /proc and top (at most 15 bytes), and return its native id."""
    tid = threading.get_native_id()
    with contextlib.suppress(OSError), open(f"/proc/self/task/{tid}/comm", "w") as file:
        file.write(name[:15])
    return tid
