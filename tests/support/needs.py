"""What some tests need beyond what pip installs: how each thing is looked for, and how to get it.

`@pytest.mark.needs("openssl", "root")` skips a test where one of them is absent. EDGEKD_TESTS_BARE=1 makes all of them count as
absent and takes their commands out of PATH: so a machine that has them shows that the other tests do without.
"""

import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgekd.data.sources import DEBIAN_FASHION_MNIST

BARE = os.environ.get("EDGEKD_TESTS_BARE") == "1"
CPUSETS = Path("/sys/fs/cgroup/cpuset")


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Something that a machine has or lacks. `commands` are looked for in PATH, the rest by `is_here`."""

    remedy: str
    package: str = ""
    """The Debian package that gives it; empty if none does, as with a privilege."""
    commands: tuple[str, ...] = ()
    is_here: Callable[[], bool] = lambda: True


def _package(name: str, *commands: str, is_here: Callable[[], bool] = lambda: True) -> Need:
    return Need(remedy=f"apt-get install {name}", package=name, commands=commands, is_here=is_here)


def _has_libseccomp() -> bool:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    return True


def _may_make_namespaces() -> bool:
    return shutil.which("ip") is not None and (
        subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, check=False).returncode == 0
    )


def _may_make_cpusets() -> bool:
    probe = CPUSETS / f"edgekd-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return (CPUSETS / "cpuset.cpus").exists()


def _has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError:
        return False
    return True


NEEDS = {
    "chromium": _package("chromium", "chromium"),
    "fashion-mnist": _package("dataset-fashion-mnist", is_here=DEBIAN_FASHION_MNIST.is_dir),
    "ip": _package("iproute2", "ip", "tc"),
    "libseccomp": _package("libseccomp2", is_here=_has_libseccomp),
    "openssl": _package("openssl", "openssl"),
    "shellcheck": _package("shellcheck", "shellcheck"),
    "systemd": _package("systemd", "systemd-analyze", "systemd-sysusers"),
    "cpuset": Need(remedy=f"cgroup v1, and the right to make a cpuset below {CPUSETS}", is_here=_may_make_cpusets),
    "ipv6": Need(remedy="a kernel with IPv6", is_here=_has_ipv6),
    "network-namespaces": Need(remedy="CAP_NET_ADMIN and CAP_SYS_ADMIN", is_here=_may_make_namespaces),
    "root": Need(remedy="to run as root", is_here=lambda: os.geteuid() == 0),
}


@cache
def is_here(name: str) -> bool:
    """Whether this machine has it, and the tests may use it."""
    need = NEEDS[name]
    return not BARE and all(shutil.which(command) is not None for command in need.commands) and need.is_here()


def hide_commands(folder: Path) -> str:
    """A PATH without the commands of the needs: `folder`, with a link to every other one of today's PATH."""
    hidden = {command for need in NEEDS.values() for command in need.commands}
    for place in map(Path, os.get_exec_path()):
        for program in place.iterdir() if place.is_dir() else ():
            if program.name not in hidden and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)
