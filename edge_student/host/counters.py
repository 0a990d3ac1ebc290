"""Reads the machine's counters before and after one run, and nothing in between: that would be a guest on the cores we schedule.

psutil where it has the thing. /proc and /sys themselves where it does not: its lists per core are by position, and with a core
offline, position 2 is not core 2. What a machine does not have is absent, never guessed.
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
    """CPU seconds of this process, of threads that ended too, and of the children that it has waited for."""
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + reaped.ru_utime + reaped.ru_stime


def all_processes() -> tuple[ProcessTime, ...]:
    """All processes that may be seen, those that ended and still wait for their parent included."""
    found = []
    for process in psutil.process_iter(_PROCESS_FIELDS):
        info = process.info
        if None in (info["cpu_times"], info["ppid"], info["create_time"]):  # it went away, or may not be seen
            continue
        times = info["cpu_times"]
        found.append(
            ProcessTime(
                pid=info["pid"],
                parent=info["ppid"],
                born=info["create_time"],
                name=info["name"] or "",
                core=-1 if info["cpu_num"] is None else info["cpu_num"],
                cpu_s=times.user + times.system,
                reaped_s=times.children_user + times.children_system,
            )
        )
    return tuple(found)


def ask_firmware() -> str | None:
    """What a Raspberry Pi's `vcgencmd get_throttled` says, like throttled=0x50000; None elsewhere."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        return subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=2, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where the counters are read: this machine, or in a test a folder of files and functions that answer by heart."""

    root: Path = Path("/")
    clock: Callable[[], float] = time.monotonic
    own_cpu_s: Callable[[], float] = own_cpu_s
    processes: Callable[[], tuple[ProcessTime, ...]] = all_processes
    ask_firmware: Callable[[], str | None] = ask_firmware
    listening_at: Callable[[str], Collection[int]] = listening_at
    own_pid: int | None = None

    def text(self, path: str) -> str | None:
        """The content of /`path`; None where there is no such file, or it cannot be read now."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The same as a number."""
        text = self.text(path)
        return int(text) if text is not None and text.removeprefix("-").isdigit() else None

    def firmware(self) -> int | None:
        """The bits of a Raspberry Pi's get_throttled."""
        said = self.ask_firmware() or self.text("sys/devices/platform/soc/soc:firmware/get_throttled") or ""
        try:
            return int(said.strip().removeprefix("throttled="), 16)
        except ValueError:
            return None

    def frequency(self, core: int) -> dict[str, Any]:
        """Governor and MHz of one core; empty without cpufreq."""
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        found: dict[str, Any] = {"governor": self.text(f"{folder}/scaling_governor")}
        for name, file in (("current", "scaling_cur_freq"), ("min", "scaling_min_freq"), ("max", "scaling_max_freq")):
            khz = self.number(f"{folder}/{file}")
            found[f"{name}_mhz"] = None if khz is None else khz / 1000
        return {name: value for name, value in found.items() if value is not None}

    def interrupts(self, file: str = "interrupts", names: Iterable[str] | None = None) -> dict[int, int] | None:
        """Interrupts per core since boot, from /proc/`file`; with `names`, those of devices with these names."""
        return parse_interrupts(self.text(f"proc/{file}") or "", None if names is None else tuple(names))

    def nic_names(self) -> list[str]:
        """Names under which network interfaces with a device may stand in /proc/interrupts: eth0, virtio3."""
        folders = [folder for folder in sorted(self.root.glob("sys/class/net/*")) if (folder / "device").exists()]
        return [name for folder in folders for name in (folder.name, (folder / "device").resolve().name)]

    def temperatures(self) -> dict[str, float]:
        """Degrees Celsius by thermal zone."""
        found = {}
        for folder in sorted(self.root.glob("sys/class/thermal/thermal_zone*")):
            degrees = self.number(f"{folder.relative_to(self.root)}/temp")
            if degrees is not None:
                found[f"{folder.name} {self.text(f'{folder.relative_to(self.root)}/type') or ''}".strip()] = degrees / 1000
        return found


def parse_stat(text: str) -> dict[int, CoreTicks]:
    """Ticks of each core, by its id, from /proc/stat."""
    rows = [line.split() for line in text.splitlines() if line.startswith("cpu") and line[3:4].isdigit()]
    return {int(row[0][3:]): CoreTicks(*(int(field) for field in row[1:9])) for row in rows}


class InterruptRow(NamedTuple):
    """One line of /proc/interrupts: its number or name, how often it came on each core since boot, and what follows of it."""

    label: str
    counts: dict[int, int]
    words: tuple[str, ...]


def parse_interrupt_rows(text: str) -> list[InterruptRow]:
    """The lines of /proc/interrupts or /proc/softirqs with a count for every core; ERR and MIS have one sum for all cores."""
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
    """Sums per core of /proc/interrupts or /proc/softirqs; None if `names` are wanted and none is there."""
    rows = parse_interrupt_rows(text)
    if names is not None:
        rows = [
            row
            for row in rows
            if any(row.words[-1:] == (name,) or (row.words and row.words[-1].startswith(f"{name}-")) for name in names)
        ]
    return {core: sum(row.counts[core] for row in rows) for core in rows[0].counts} if rows else None


def parse_pressure(text: str) -> float | None:
    """Seconds since boot in which some task waited for a core, from /proc/pressure/cpu."""
    some = [line for line in text.splitlines() if line.startswith("some ")]
    return int(some[0].rpartition("total=")[2]) / 1e6 if some else None


def parse_load(text: str) -> tuple[float, ...]:
    """The three load averages of /proc/loadavg."""
    return tuple(float(word) for word in text.split()[:3])
