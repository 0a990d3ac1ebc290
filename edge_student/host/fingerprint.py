"""Which device this is, as far as its rates depend on it; and whether a profile was measured on one like it, for work like this.

Reads files of the kernel and, on a Jetson, asks `nvpmodel` for its mode. It changes nothing, and needs no rights.
"""

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_student.host.environment import spinning_variables
from edge_student.host.provenance import describe_host

_OPENMP = re.compile(r"lib(?:g|i|)omp[-.\w]*\.so[.\d]*")
_ASK_S = 5.0


def fingerprint(cores: Sequence[int], environ: Mapping[str, str], *, root: Path = Path("/")) -> dict[str, Any]:
    """What tells this device from others, as plain JSON values; None where the machine does not say."""
    host = describe_host(tuple(cores))
    return {
        "cpu": host["cpu"],
        "architecture": host["architecture"],
        "cores": list(cores),
        "governor": _of_cores(root, cores, "scaling_governor"),
        "power_mode": power_mode(root),
        "min_khz": _of_cores(root, cores, "scaling_min_freq"),
        "max_khz": _of_cores(root, cores, "scaling_max_freq"),
        "torch": importlib.metadata.version("torch"),
        "openmp": openmp_runtimes(root),
        "spinning": spinning_variables(environ),
    }


def openmp_runtimes(root: Path = Path("/")) -> list[str]:
    """File names of the OpenMP runtimes that this process has loaded."""
    return sorted(set(_OPENMP.findall(_read(root / "proc/self/maps") or "")))


def power_mode(root: Path = Path("/")) -> str | None:
    """A Jetson's power mode, as `nvpmodel -q` words it; None on other machines."""
    if not (root / "etc/nvpmodel.conf").exists():
        return None
    program = shutil.which("nvpmodel") or shutil.which("nvpmodel", path=str(root / "usr/sbin"))
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, "-q"], capture_output=True, text=True, timeout=_ASK_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"NV Power Mode\s*:\s*(.+)", answer.stdout)
    return match[1].strip() if match else None


def _of_cores(root: Path, cores: Sequence[int], name: str) -> list[str | None] | str | None:
    """What cpufreq says of these cores: one value if they agree, one for each if not; None if it says nothing."""
    values = [_read(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}") for core in cores]
    return values[0] if len(set(values)) == 1 else values


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
