"""Run a command confined as by a unit of deploy/systemd/, on a machine without systemd as its first process.

    python confined.py UNIT COMMAND ...

What comes from the unit: the system call filter (its groups are asked of systemd-analyze), address families, RestrictRealtime=,
RestrictNamespaces=, no new privileges, no capabilities, LimitNICE=. What does not: users, mounts and devices. The filters are built
with libseccomp as systemd builds them, after src/shared/seccomp-util.c of systemd 252.
"""

import ctypes
import errno
import functools
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
EQUAL, GREATER = 4, 6
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 23, 24, 38
SCHED_IDLE = 5
CAP_SYS_NICE = 23


class Compare(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp_rule_add(3)."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64), ("datum_b", ctypes.c_uint64))


def settings(unit: Path, section: str = "Service") -> dict[str, list[str]]:
    """Return every value of every key of one section, in order."""
    found: dict[str, list[str]] = {}
    inside = ""
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            inside = line.strip("[]")
        elif inside == section and line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@functools.cache
def group(name: str) -> frozenset[str]:
    """Return the system calls of one of systemd's groups, nested groups included."""
    listing = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True).stdout
    words = [word for line in listing.splitlines()[1:] if (word := line.strip()) and not word.startswith("#")]
    return expand(words)


def expand(words: list[str]) -> frozenset[str]:
    return frozenset().union(*(group(word) if word.startswith("@") else {word} for word in words))


def allowed_calls(unit: Path) -> frozenset[str]:
    """Return the calls that SystemCallFilter= allows: an allow list first, then lists with ~ that remove calls."""
    first, *others = settings(unit)["SystemCallFilter"]
    assert not first.startswith("~"), "the first list says what is allowed"
    allowed = expand(first.split()) | group("@default")  # which systemd adds to every allow list
    for line in others:
        words = expand(line.removeprefix("~").split())
        allowed = allowed - words if line.startswith("~") else allowed | words
    return allowed


class Filter:
    """One seccomp filter: a default action, then rules."""

    def __init__(self, otherwise: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(otherwise)))

    def add(self, action: int, call: str, *compares: Compare) -> None:
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:  # another architecture's
            return
        array = (Compare * len(compares))(*compares)
        self._check(self._library.seccomp_rule_add_array(self._context, ctypes.c_uint32(action), number, len(compares), array))

    def load(self) -> None:
        self._check(self._library.seccomp_load(self._context))

    def _check(self, status: int) -> None:
        if status < 0:
            raise OSError(-status, os.strerror(-status))


def filters(unit: Path) -> list[Filter]:
    """Return the unit's seccomp filters, ready to be loaded."""
    output = settings(unit)
    assert output["SystemCallErrorNumber"] == ["EPERM"]
    assert output["RestrictRealtime"] == output["RestrictNamespaces"] == ["yes"]
    calls = Filter(ERRNO | errno.EPERM)
    for call in sorted(allowed_calls(unit)):
        calls.add(ALLOW, call)
    families = Filter(ALLOW)
    known = {int(getattr(socket, name)) for name in output["RestrictAddressFamilies"][0].split()}
    for family in set(range(64)) - known:
        families.add(ERRNO | errno.EAFNOSUPPORT, "socket", Compare(0, EQUAL, family, 0))
    realtime = Filter(ALLOW)
    for policy in (1, 2, 4):  # FIFO, RR, and a gap
        realtime.add(ERRNO | errno.EPERM, "sched_setscheduler", Compare(1, EQUAL, policy, 0))
    realtime.add(ERRNO | errno.EPERM, "sched_setscheduler", Compare(1, GREATER, SCHED_IDLE, 0))
    namespaces = Filter(ALLOW)
    namespaces.add(ERRNO | errno.ENOSYS, "clone3")  # whose flags no filter can see; the C library falls back to clone
    for call in ("unshare", "setns"):
        namespaces.add(ERRNO | errno.EPERM, call)
    return [calls, families, realtime, namespaces]


def confine(unit: Path) -> None:
    """Confine this process and its children as the unit does."""
    ready = filters(unit)
    kept = set()
    for limit in settings(unit).get("LimitNICE", []):
        try:
            resource.setrlimit(resource.RLIMIT_NICE, (int(limit), int(limit)))
        except (
            ValueError
        ):  # without CAP_SYS_RESOURCE no process raises a limit; the filters are tried all the same, with a capability instead
            kept.add(CAP_SYS_NICE)
    libc: Any = ctypes.CDLL(None, use_errno=True)
    for capability in set(range(64)) - kept:
        if libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    # The first filter may refuse what the loading of the next one takes, so it comes last.
    for each in reversed(ready):
        each.load()


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
