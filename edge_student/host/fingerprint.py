"""Describes the device as far as its rates depend on it: CPU, cores, clock, power mode, torch and OpenMP runtimes.

Reads kernel files and, on a Jetson, runs `nvpmodel -q`. Changes nothing and needs no privileges.
"""

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from edge_student.host.counters import Machine, cpufreq_path
from edge_student.host.environment import spinning_variables
from edge_student.host.provenance import describe_host

_OPENMP = re.compile(r"lib(?:g|i|)omp[-.\w]*\.so[.\d]*")
_NVPMODEL_TIMEOUT_S = 5.0


def fingerprint(cores: Sequence[int], environ: Mapping[str, str], machine: Machine | None = None) -> dict[str, Any]:
    """Return the properties that distinguish this device from others, as plain JSON values. Missing values are None."""
    machine = machine or Machine()
    host = describe_host(tuple(cores))
    return {
        "cpu": host["cpu"],
        "architecture": host["architecture"],
        "cores": list(cores),
        "governor": _of_cores(machine, cores, "scaling_governor"),
        "power_mode": power_mode(machine),
        "min_khz": _of_cores(machine, cores, "scaling_min_freq"),
        "max_khz": _of_cores(machine, cores, "scaling_max_freq"),
        "torch": importlib.metadata.version("torch"),
        "openmp": openmp_runtimes(machine),
        "spinning": spinning_variables(environ),
    }


def openmp_runtimes(machine: Machine | None = None) -> list[str]:
    """Return the file names of the OpenMP runtimes that this process has loaded."""
    return sorted(set(_OPENMP.findall((machine or Machine()).text("proc/self/maps") or "")))


def power_mode(machine: Machine) -> str | None:
    """Return a Jetson's power mode in the wording of `nvpmodel -q`; None on other machines."""
    if machine.text("etc/nvpmodel.conf") is None:
        return None
    program = shutil.which("nvpmodel") or shutil.which("nvpmodel", path=str(machine.root / "usr/sbin"))
    if program is None:
        return None
    try:
        finished = subprocess.run(
            [program, "-q"], capture_output=True, text=True, timeout=_NVPMODEL_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"NV Power Mode\s*:\s*(.+)", finished.stdout)
    return match[1].strip() if match else None


def _of_cores(machine: Machine, cores: Sequence[int], file: str) -> list[str | None] | str | None:
    """Return the content of a cpufreq file: one value if all cores agree, else a list with one value per core."""
    values = [machine.text(cpufreq_path(core, file)) for core in cores]
    return values[0] if len(set(values)) == 1 else values
