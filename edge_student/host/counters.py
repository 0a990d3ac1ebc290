"""Reads CPU, interrupt, temperature and frequency counters from /proc, /sys and psutil.

Counters are read before and after a run. A reader that ran during the run would use CPU time on the scheduled cores.

/proc and /sys are read directly for values per core: psutil lists cores by position, which is wrong when a core is offline.
A counter that the machine lacks is absent or None, never estimated.
"""

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from edge_student.host.disturbance import CoreTicks, ProcessTime
from edge_student.host.listeners import listening_at

_PROCESS_FIELDS = ["pid", "ppid", "name", "cpu_times", "create_time", "cpu_num"]


def own_cpu_s() -> float:
    """Return the CPU seconds of this process, including exited threads and children already waited for."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + reaped.ru_utime + reaped.ru_stime


def all_processes() -> tuple[ProcessTime, ...]:
    """Return all visible processes, zombies included."""
    found = []
    for process in psutil.process_iter(_PROCESS_FIELDS):
        info = process.info
        if None in (info["cpu_times"], info["ppid"], info["create_time"]):  # it exited, or is not readable
            continue
        times = info["cpu_times"]
        found.append(
            ProcessTime(
                pid=info["pid"],
                parent=info["ppid"],
                created=info["create_time"],
                name=info["name"] or "",
                core=-1 if info["cpu_num"] is None else info["cpu_num"],
                cpu_s=times.user + times.system,
                reaped_s=times.children_user + times.children_system,
            )
        )
    return tuple(found)


def ask_firmware() -> str | None:
    """Return the output of a Raspberry Pi's `vcgencmd get_throttled`, for example throttled=0x50000; None on other machines."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        return subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Sources of the counters: files below `root` and functions. The defaults read this machine; tests replace them."""

    root: Path = Path("/")
    clock: Callable[[], float] = time.monotonic
    own_cpu_s: Callable[[], float] = own_cpu_s
    processes: Callable[[], tuple[ProcessTime, ...]] = all_processes
    ask_firmware: Callable[[], str | None] = ask_firmware
    listening_at: Callable[[str], Collection[int]] = listening_at
    own_pid: int | None = None

    def text(self, path: str) -> str | None:
        """Return the stripped content of `root`/`path`; None if the file is missing or unreadable."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """Return the content of `root`/`path` as an integer; None if it is missing or not an integer."""
        text = self.text(path)
        return int(text) if text is not None and text.removeprefix("-").isdigit() else None

    def firmware(self) -> int | None:
        """Return the bits of a Raspberry Pi's get_throttled; None on other machines."""
        output = self.ask_firmware() or self.text("sys/devices/platform/soc/soc:firmware/get_throttled") or ""
        try:
            return int(output.strip().removeprefix("throttled="), 16)
        except ValueError:
            return None

    def frequency(self, core: int) -> dict[str, Any]:
        """Return the governor and the frequencies in MHz of one core; empty without cpufreq."""
        found: dict[str, Any] = {"governor": self.text(cpufreq_path(core, "scaling_governor"))}
        for name, file in (("current", "scaling_cur_freq"), ("min", "scaling_min_freq"), ("max", "scaling_max_freq")):
            khz = self.number(cpufreq_path(core, file))
            found[f"{name}_mhz"] = None if khz is None else khz / 1000
        return {name: value for name, value in found.items() if value is not None}

    def interrupts(self, file: str = "interrupts", names: Iterable[str] | None = None) -> dict[int, int] | None:
        """Return the interrupts per core since boot, from /proc/`file`; with `names`, only those of these devices."""
        return parse_interrupts(self.text(f"proc/{file}") or "", None if names is None else tuple(names))

    def nic_names(self) -> list[str]:
        """Return the names that network hardware can have in /proc/interrupts, for example eth0 or virtio3."""
        folders = [folder for folder in sorted(self.root.glob("sys/class/net/*")) if (folder / "device").exists()]
        return [name for folder in folders for name in (folder.name, (folder / "device").resolve().name)]

    def temperatures(self) -> dict[str, float]:
        """Return degrees Celsius by thermal zone."""
        found = {}
        for folder in sorted(self.root.glob("sys/class/thermal/thermal_zone*")):
            degrees = self.number(f"{folder.relative_to(self.root)}/temp")
            if degrees is not None:
                found[f"{folder.name} {self.text(f'{folder.relative_to(self.root)}/type') or ''}".strip()] = degrees / 1000
        return found


def cpufreq_path(core: int, file: str) -> str:
    """Return the path, below the root, of one cpufreq file of a core."""
    return f"sys/devices/system/cpu/cpu{core}/cpufreq/{file}"


def parse_stat(text: str) -> dict[int, CoreTicks]:
    """Return the clock ticks of each core, by core id, from the content of /proc/stat."""
    rows = [line.split() for line in text.splitlines() if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): CoreTicks(*(int(field) for field in row[1:9])) for row in rows}


class InterruptRow(NamedTuple):
    """One line of /proc/interrupts: number or name, count per core since boot, and the remaining words of the line."""

    label: str
    counts: dict[int, int]
    words: tuple[str, ...]


def parse_interrupt_rows(text: str) -> list[InterruptRow]:
    """Return the lines of /proc/interrupts or /proc/softirqs with a count per core; skip ERR and MIS, which have one total."""
    lines = text.splitlines()
    heads = [word.removeprefix("CPU") for word in lines[0].split()] if lines else []
    if not heads or not all(head.isdecimal() for head in heads):
        return []
    cores = [int(head) for head in heads]
    rows = []
    for line in lines[1:]:
        label, _, row = line.partition(":")
        counts, words = row.split()[: len(cores)], row.split()[len(cores) :]
        if len(counts) == len(cores) and all(count.isdigit() for count in counts):
            rows.append(InterruptRow(label.strip(), dict(zip(cores, map(int, counts), strict=True)), tuple(words)))
    return rows


def parse_interrupts(text: str, names: Collection[str] | None = None) -> dict[int, int] | None:
    """Return sums per core of /proc/interrupts or /proc/softirqs, of the rows named in `names` if given; None without such rows."""
    rows = parse_interrupt_rows(text)
    if names is not None:
        rows = [
            row
            for row in rows
            if any(row.words[-1:] == (name,) or (row.words and row.words[-1].startswith(f"{name}-")) for name in names)
        ]
    return {core: sum(row.counts[core] for row in rows) for core in rows[0].counts} if rows else None


def parse_pressure(text: str) -> float | None:
    """Return the seconds since boot in which some task waited for a core, from /proc/pressure/cpu; None without that line."""
    some = [line for line in text.splitlines() if line.startswith("some ")]
    return int(some[0].rpartition("total=")[2]) / 1e6 if some else None


def parse_load(text: str) -> tuple[float, ...]:
    """Return the three load averages of /proc/loadavg."""
    return tuple(float(word) for word in text.split()[:3])
