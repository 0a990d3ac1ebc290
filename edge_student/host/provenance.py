"""Where a number comes from: the host, the versions and the commit that go into every file of results."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from edge_student.host.counters import Machine
from edge_student.host.disturbance import firmware_states

_PACKAGES = ("edgekd", "torch", "numpy", "grpcio", "protobuf")


def describe_measurement(argv: Sequence[str], cores: tuple[int, ...]) -> dict[str, Any]:
    """What stands at the head of a benchmark's file: how to run it again, and on what it ran."""
    return {"command": command_line(argv), "host": describe_host(cores), "software": describe_software()}


def describe_host(cores: tuple[int, ...]) -> dict[str, Any]:
    """The machine and the cores of this run, as found now, as plain JSON values; None is what it does not have."""
    machine = Machine()
    firmware = machine.firmware()
    interrupts = machine.interrupts()
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores_used": list(cores),
        "cores_online": psutil.cpu_count(),
        "memory_mib": psutil.virtual_memory().total >> 20,
        "kernel": platform.release(),
        "governor": machine.frequency(cores[0]).get("governor"),
        "frequency": {str(core): found for core in cores if (found := machine.frequency(core))},
        "throttled": None if firmware is None else firmware_states(firmware),
        "interrupts": None if interrupts is None else {str(core): interrupts.get(core) for core in cores},
        "load_average": list(os.getloadavg()),
    }


def describe_software() -> dict[str, Any]:
    """Versions of what computed it, and the commit if this is a checkout."""
    versions: dict[str, Any] = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions, "commit": _commit()}


def command_line(argv: Sequence[str]) -> list[str]:
    """The words that start this program again, with the same flags. `argv` is `sys.argv`."""
    program = Path(argv[0])
    if program.name == "__main__.py":
        return ["python", "-m", program.parent.name, *argv[1:]]
    return [program.name, *argv[1:]]


def _cpu_model() -> str:
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):  # x86; Raspberry Pi
            return value.strip()
    return platform.processor() or "unknown"


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _commit() -> str | None:
    """The commit of our own checkout, with "-dirty" if files were changed; None when installed from a package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a repository further up is somebody else's
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
