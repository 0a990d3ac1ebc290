"""Requirements of some tests beyond the packages of pip: how each one is detected and installed.

`@pytest.mark.needs("openssl", "root")` skips a test if one of them is absent. EDGEKD_TESTS_BARE=1 treats all of them as
absent and removes their commands from PATH, which checks that the other tests do not use them.
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
    """A requirement that a machine meets or lacks. `commands` are searched in PATH, other requirements are checked by `is_here`."""

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
    """Return whether this machine meets the requirement and the tests may use it."""
    need = NEEDS[name]
    return not BARE and all(shutil.which(command) is not None for command in need.commands) and need.is_here()


def hide_commands(folder: Path) -> str:
    """Return a PATH without the commands of the needs: `folder`, with a link to every other command of the present PATH."""
    hidden = {command for need in NEEDS.values() for command in need.commands}
    for place in map(Path, os.get_exec_path()):
        for program in place.iterdir() if place.is_dir() else ():
            if program.name not in hidden and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return str(folder)
