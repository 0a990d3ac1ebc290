"""Check memory, page size, the system clock, and the kernel permissions that the scheduler needs.

`read_*` and `try_*` read or test the machine. The checks of their results are pure functions.
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
from scheduler.live.threads import BindingRefusedError, may_leave_idle_priority, set_mask

# Older than this program. A board without a clock battery starts at 1970, or at the date of its file system.
_EARLIEST_DATE = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
_UNSYNCHRONISED = 0x40  # STA_UNSYNC, adjtimex(2)
_USUAL_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory in MiB, None if unknown. `limit_left` is the unused part of the container's memory limit."""

    available: int | None
    total: int | None
    swap_used: int | None
    limit_left: int | None


def read_memory(machine: Machine) -> Memory:
    """Read /proc/meminfo and the files of the control group."""
    rows = [line.split() for line in (machine.text("proc/meminfo") or "").splitlines()]
    kib = {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
    limits = [  # cgroup v2, then v1, which reports "no limit" as a very large number
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


def check_memory(memory: Memory, ring_mib: int, torch_mib: int | None) -> Finding:
    """Check that the ring and torch fit into memory. `torch_mib` is the measured peak of the torch subprocess, None if unknown."""
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
        return unknown(
            check,
            "the available memory is not known, because /proc/meminfo does not report it",
            "run `free -m` to see the available memory",
            **details,
        )
    free, needed = min(known), ring_mib + (torch_mib or 0)
    parts = f"{ring_mib} MiB for --ring-mib" + ("" if torch_mib is None else f" and {torch_mib} MiB for torch")
    if free < needed:
        return problem(
            check,
            f"{free} MiB of memory are available, but a run needs more than {needed} MiB: {parts}",
            "stop other programs, or lower --ring-mib; a small ring slows training only on a slow or unstable link",
            **details,
        )
    if free < 2 * needed:
        text = f"{free} MiB of memory are available, but a run needs {needed} MiB plus model and data: {parts}"
        return warning(check, text, "lower --ring-mib, or watch `free -m` during a first run", **details)
    if memory.swap_used:
        text = f"{free} MiB of memory are available, enough for {parts}; {memory.swap_used} MiB of other programs are in swap"
        return note(check, text, "stop programs that you do not need, because swapping during a run disturbs it", **details)
    return ok(check, f"{free} MiB of memory are available, enough for {parts}", **details)


def check_page_size(page_bytes: int) -> Finding:
    """Check the page size. Some builds of libraries work with 4 KiB pages only."""
    check, kib = "machine.pages", page_bytes // 1024
    if page_bytes == _USUAL_PAGE:
        return ok(check, f"the kernel uses pages of {kib} KiB, which every build supports", page_bytes=page_bytes)
    return note(
        check,
        f"the kernel uses pages of {kib} KiB (a Raspberry Pi 5 uses 16 KiB); libraries or allocators (jemalloc) built for 4 KiB "
        "fail with `Unsupported system page size` or `ELF load command ... not properly aligned`",
        "no action is needed if software.torch is ok; else, on a Raspberry Pi 5, add kernel=kernel8.img to "
        "/boot/firmware/config.txt and reboot",
        page_bytes=page_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """The system clock in seconds since 1970. `is_synchronised` is the NTP state, None if the kernel does not report it."""

    now: float
    is_synchronised: bool | None


class _Timex(ctypes.Structure):
    """The first fields of struct timex (adjtimex(2)), padded to its full size."""

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
    """Read the clock state with adjtimex(2). Mode 0 changes nothing."""
    timex = _Timex()
    try:
        result = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        result = -1
    return Clock(now=time.time(), is_synchronised=None if result < 0 else not timex.status & _UNSYNCHRONISED)


def check_clock(clock: Clock) -> Finding:
    """Check whether the clock is plausible and synchronised. `link.tls` compares it with the certificates."""
    check = "machine.clock"
    when = datetime.fromtimestamp(clock.now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    details = {"now": clock.now, "is_synchronised": clock.is_synchronised}
    remedy = (
        "run `sudo timedatectl set-ntp true`, and wait until `timedatectl` shows a synchronized clock; NTP needs UDP port 123 or a "
        "time server in your network"
    )
    if clock.now < _EARLIEST_DATE:
        text = f"the clock shows {when}, which is wrong, so every certificate appears not yet valid"
        return problem(check, text, remedy, **details)
    if clock.is_synchronised is None:
        return unknown(check, f"the clock shows {when}; the kernel does not report whether it is synchronised", remedy, **details)
    if not clock.is_synchronised:
        text = (
            f"the clock shows {when} and is not synchronised, so certificate checks can fail and logs of two machines can disagree"
        )
        return warning(check, text, f"{remedy}; in a virtual machine, the host may set the clock", **details)
    return ok(check, f"the clock shows {when} and is synchronised", **details)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """Kernel permissions of a thread. `affinity_error` is the reason why sched_setaffinity failed, empty on success."""

    affinity_error: str
    may_leave_idle_priority: bool


def try_permissions(allowed: frozenset[int]) -> Permissions:
    """Test the permissions in short-lived threads, so that this process keeps its affinity and priority."""
    errors: list[str] = []

    def pin() -> None:
        try:
            set_mask(threading.get_native_id(), frozenset([min(allowed)]))
            set_mask(threading.get_native_id(), allowed)
        except BindingRefusedError as error:
            errors.append(error.strerror or str(error))

    thread = threading.Thread(target=pin, name="edgekd-doctor")
    thread.start()
    thread.join()
    return Permissions(affinity_error="".join(errors), may_leave_idle_priority=may_leave_idle_priority())


def check_permissions(permissions: Permissions) -> Iterator[Finding]:
    """Check for kernel permissions that the scheduler needs."""
    if permissions.affinity_error:
        yield problem(
            "kernel.affinity",
            f"threads cannot be pinned: {permissions.affinity_error}; a run would continue unpinned and would not count",
            "allow sched_setaffinity in the seccomp profile or the container settings",
        )
    else:
        yield ok("kernel.affinity", "threads can be pinned and unpinned")
    check = "kernel.idle-priority"
    if permissions.may_leave_idle_priority:
        yield ok(check, "a process can leave the kernel's idle class (SCHED_IDLE) again")
    else:
        yield note(
            check,
            "a process cannot leave the kernel's idle class (SCHED_IDLE) again here, so adaptive holds comm where it would let "
            "training run first, and compute workers keep normal priority beside comm",
            "grant CAP_SYS_NICE or an RLIMIT_NICE of 20: use `docker run --cap-add SYS_NICE`, or LimitNICE=+0 in a systemd unit",
        )


def page_size() -> int:
    """Return the page size in bytes."""
    return os.sysconf("SC_PAGE_SIZE")
