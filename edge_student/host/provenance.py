"""Describes the provenance of results: host, software versions and commit. Every result file contains it."""

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
    """Return the header of a benchmark's result file: command line, host and software."""
    return {"command": command_line(argv), "host": describe_host(cores), "software": describe_software()}


def describe_host(cores: tuple[int, ...]) -> dict[str, Any]:
    """Return the current state of the machine and of the cores of this run, as plain JSON values. Missing values are None."""
    machine = Machine()
    firmware = machine.firmware()
    interrupts = machine.interrupts()
    return {
        "cpu": _cpu_model(machine),
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
    """Return the versions of Python and of the main packages, and the commit if this is a git checkout."""
    versions: dict[str, Any] = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **versions, "commit": _commit()}


def command_line(argv: Sequence[str]) -> list[str]:
    """Return the command line that starts this program again with the same flags. `argv` is `sys.argv`."""
    program = Path(argv[0])
    if program.name == "__main__.py":
        return ["python", "-m", program.parent.name, *argv[1:]]
    return [program.name, *argv[1:]]


def _cpu_model(machine: Machine) -> str:
    for line in (machine.text("proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):  # x86; Raspberry Pi
            return value.strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """Return the commit of this checkout, with "-dirty" if files were changed; None when installed from a package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a repository in a parent folder is another project's
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(describe, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
