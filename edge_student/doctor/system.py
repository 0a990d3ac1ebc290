"""Memory, pages, the time of day, and what the kernel lets the scheduler do.

What was read is a value; what follows from it is pure.
"""

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from edge_student.doctor.finding import Finding, note, ok, problem, unknown, warning
from edge_student.host.counters import Machine
from scheduler.live.threads import BindingRefusedError, may_stop_yielding, set_mask

# Before this program was written: a board without a battery begins at 1970, or where its file system was made.
_BEFORE_US = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
_UNSYNCHRONISED = 0x40  # STA_UNSYNC, adjtimex(2)
_USUAL_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """MiB; None is what the kernel does not say. `limit_left` is what a container's limit leaves."""

    available: int | None
    total: int | None
    swap_used: int | None
    limit_left: int | None


def read_memory(machine: Machine) -> Memory:
    """From /proc/meminfo and the control group's own files."""
    rows = [line.split() for line in (machine.text("proc/meminfo") or "").splitlines()]
    kib = {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    limits = [  # of the second and the first version of control groups; the first's "no limit" is a very large number
        (machine.number("sys/fs/cgroup/memory.max"), machine.number("sys/fs/cgroup/memory.current")),
        (
            machine.number("sys/fs/cgroup/memory/memory.limit_in_bytes"),
            machine.number("sys/fs/cgroup/memory/memory.usage_in_bytes"),
        ),
    ]
    left = [max(0, limit - used) >> 20 for limit, used in limits if limit is not None and used is not None]
    return Memory(
        available=kib["MemAvailable"] >> 10 if "MemAvailable" in kib else None,
        total=kib["MemTotal"] >> 10 if "MemTotal" in kib else None,
        swap_used=(kib["SwapTotal"] - kib["SwapFree"]) >> 10 if {"SwapTotal", "SwapFree"} <= kib.keys() else None,
        limit_left=min(left, default=None),
    )


def find_memory(memory: Memory, ring_mib: int, torch_mib: int | None) -> Finding:
    """Whether the ring and torch fit; `torch_mib` is what a process with torch and one small step really took, if that is known."""
    check = "machine.memory"
    known = [value for value in (memory.available, memory.limit_left) if value is not None]
    details = {
        "available_mib": memory.available,
        "total_mib": memory.total,
        "swap_used_mib": memory.swap_used,
        "limit_left_mib": memory.limit_left,
        "ring_mib": ring_mib,
        "torch_mib": torch_mib,
    }
    if not known:
        return unknown(check, "/proc/meminfo does not say how much memory is available", "look with `free -m`", **details)
    free, needed = min(known), ring_mib + (torch_mib or 0)
    parts = f"--ring-mib {ring_mib}" + (
        "" if torch_mib is None else f" and {torch_mib} MiB that torch took here for one small step"
    )
    if free < needed:
        return problem(
            check,
            f"{free} MiB of memory are available, and a run takes more than {needed}: {parts}",
            "end other programs, or give less to --ring-mib; a small one holds training up only where the link does",
            **details,
        )
    if free < 2 * needed:
        text = f"{free} MiB of memory are available, and a run takes {needed} before model and data: {parts}"
        return warning(check, text, "give less to --ring-mib, or look with `free -m` while a first run trains", **details)
    if memory.swap_used:
        text = f"{free} MiB of memory are available, enough for {parts}; {memory.swap_used} MiB of others are swapped out"
        return note(check, text, "end what is not needed: what swaps while a run trains disturbs it", **details)
    return ok(check, f"{free} MiB of memory are available, enough for {parts}", **details)


def find_page_size(page_bytes: int) -> Finding:
    """Which pages the kernel has, and what some builds make of others than 4 KiB."""
    check, kib = "machine.pages", page_bytes // 1024
    if page_bytes == _USUAL_PAGE:
        return ok(check, f"the kernel has pages of {kib} KiB, as every build expects", page_bytes=page_bytes)
    return note(
        check,
        f"the kernel has pages of {kib} KiB, as a Raspberry Pi 5's has 16: a library or an allocator (jemalloc) that was built for "
        "4 KiB ends there with `Unsupported system page size` or `ELF load command ... not properly aligned`",
        "nothing, if torch runs (software.torch); else, on a Pi 5, add kernel=kernel8.img to /boot/firmware/config.txt and reboot",
        page_bytes=page_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The time of day, in seconds since 1970, and whether somebody keeps it right; None if the kernel does not tell."""

    now: float
    is_synchronised: bool | None


class _Timex(ctypes.Structure):
    """The head of struct timex (adjtimex(2)), with room for all that follows."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_long * 40),
    )


def read_clock() -> Clock:
    """Ask the kernel (adjtimex(2), which changes nothing without modes)."""
    answer = _Timex()
    try:
        said = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(answer))
    except (OSError, AttributeError):
        said = -1
    return Clock(now=time.time(), is_synchronised=None if said < 0 else not answer.status & _UNSYNCHRONISED)


def find_clock(clock: Clock) -> Finding:
    """Whether certificates can be judged by it. Whether it fits the teacher's certificate is `link.tls`."""
    check = "machine.clock"
    when = datetime.fromtimestamp(clock.now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    details = {"now": clock.now, "is_synchronised": clock.is_synchronised}
    remedy = (
        "`sudo timedatectl set-ntp true`, and wait until `timedatectl` says yes; it needs UDP port 123, or a server of your own"
    )
    if clock.now < _BEFORE_US:
        text = f"the clock says {when}, long before this program was written: every certificate looks as if it were not valid yet"
        return problem(check, text, remedy, **details)
    if clock.is_synchronised is None:
        return unknown(check, f"the clock says {when}; the kernel does not tell whether anybody keeps it right", remedy, **details)
    if not clock.is_synchronised:
        text = f"the clock says {when}, and nothing keeps it right: certificates are judged by it, and logs of two machines differ"
        return warning(check, text, f"{remedy}; in a virtual machine the host may keep it", **details)
    return ok(check, f"the clock says {when}, and is synchronised", **details)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What the kernel let a thread of ours do. `refusal` says why it kept a mask, empty if it did not."""

    refusal: str
    may_stop_yielding: bool


def try_permissions(allowed: frozenset[int]) -> Permissions:
    """Try it in threads that live only for this, so that nothing of this process is changed."""
    refusals: list[str] = []

    def pin() -> None:
        try:
            set_mask(threading.get_native_id(), frozenset([min(allowed)]))
            set_mask(threading.get_native_id(), allowed)
        except BindingRefusedError as error:
            refusals.append(error.strerror or str(error))

    thread = threading.Thread(target=pin, name="edgekd-doctor")
    thread.start()
    thread.join()
    return Permissions(refusal="".join(refusals), may_stop_yielding=may_stop_yielding())


def find_permissions(permissions: Permissions) -> Iterator[Finding]:
    """What the scheduler will have to do without."""
    if permissions.refusal:
        yield problem(
            "kernel.affinity",
            f"threads cannot be pinned: {permissions.refusal}; a run would go on unpinned, and be marked, and not count",
            "allow sched_setaffinity: it is a rule of the container or a seccomp profile that forbids it",
        )
    else:
        yield ok("kernel.affinity", "threads can be pinned, and given back all cores")
    check = "kernel.yielding"
    if permissions.may_stop_yielding:
        yield ok(check, "a thread that yields to all others may be like them again")
    else:
        yield note(
            check,
            "this process may put a thread into the kernel's idle class and not take it out again, so training threads without a "
            "core spin on those of the others for milliseconds",
            "give it CAP_SYS_NICE or an RLIMIT_NICE of 20: `docker run --cap-add SYS_NICE`, or LimitNICE=+0 in a systemd unit",
        )


def page_size() -> int:
    """Bytes of a page."""
    return os.sysconf("SC_PAGE_SIZE")
