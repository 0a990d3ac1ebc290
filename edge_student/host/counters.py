"""Reads the machine's counters before and after one run, and nothing in between: that would be a guest on the cores we schedule.

psutil where it has the thing. /proc and /sys themselves where it does not: its lists per core are by position, and with a core
offline, position 2 is not core 2. What a machine does not have is absent, never guessed.
"""

import contextlib
import os
import resource
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from edge_student.host.disturbance import CoreTicks, ProcessTime, Reading, describe
from edgekd.cli.address import parse_addresses

_LISTENING = "0A"
_MAPPED = "::ffff:"  # an IPv6 socket that listens for IPv4, as gRPC's do
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


def listening_at(address: str) -> frozenset[int]:
    """Ids of the processes of this machine that listen at HOST:PORT, or one of several: teachers, or near ends of tunnels."""
    addresses = parse_addresses(address, flag="--teacher", lowest_port=1)
    return frozenset[int]().union(*(_listening(host, port) for host, port in addresses))


def _listening(host: str, port: int) -> frozenset[int]:
    host = "127.0.0.1" if host == "localhost" else host
    try:
        ours = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries}
        if host not in ours and not host.startswith("127."):
            return listening_elsewhere(host, port)
        sockets = psutil.net_connections(kind="tcp")
    except (OSError, psutil.Error):
        return frozenset()
    return frozenset(
        entry.pid
        for entry in sockets
        if entry.pid is not None and entry.status == psutil.CONN_LISTEN and entry.laddr
        if entry.laddr.port == port and entry.laddr.ip.removeprefix(_MAPPED) in (host, "0.0.0.0", "::")
    )


def listening_elsewhere(host: str, port: int) -> frozenset[int]:
    """The same for the other network namespaces of this machine, as containers have them, where /proc lets us look into them.

    psutil knows only our own namespace.
    """
    members: dict[str, list[int]] = {}  # by namespace
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            members.setdefault(os.readlink(f"/proc/{pid}/ns/net"), []).append(pid)
    members.pop(os.readlink("/proc/self/ns/net"), None)
    found: set[int] = set()
    for pids in members.values():
        if host not in _addresses(pids[0]):
            continue
        wanted = {f"socket:[{inode}]" for inode in _listening_sockets(pids[0], host, port)}
        found.update(pid for pid in pids if wanted and not wanted.isdisjoint(_open_files(pid)))
    return frozenset(found)


def _addresses(pid: int) -> set[str]:
    """IP addresses of the namespace of a process, as its routing tables have them."""
    found = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/net/fib_trie", encoding="ascii") as file:
        leaf = ""
        for line in file:
            if "|--" in line:
                leaf = line.split()[-1]
            elif "host LOCAL" in line:
                found.add(leaf)
    with contextlib.suppress(OSError), open(f"/proc/{pid}/net/if_inet6", encoding="ascii") as file:
        found.update(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])) for line in file)
    return found


def _listening_sockets(pid: int, host: str, port: int) -> Iterator[str]:
    """Inodes of the TCP sockets that listen at HOST:PORT, or at every address, in the namespace of a process (proc_net(5))."""
    for version, family, everywhere in ((4, socket.AF_INET, "0.0.0.0"), (6, socket.AF_INET6, "::")):
        try:
            with open(f"/proc/{pid}/net/tcp{'6' if version == 6 else ''}", encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except OSError:
            continue
        for row in rows:
            address, _, at = row[1].partition(":")
            words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]  # each as this CPU would read it
            name = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words)).removeprefix(_MAPPED)
            if row[3] == _LISTENING and int(at, 16) == port and name in (host, everywhere):
                yield row[9]


def _open_files(pid: int) -> set[str]:
    """What the descriptors of a process point to."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry.path))
    return found


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


class Witness:
    """Of one run on `cores`, with its teacher at HOST:PORT: call `before()`, run, and have `after()` say what else went on."""

    def __init__(self, cores: Sequence[int], *, teacher: str | None = None, machine: Machine | None = None) -> None:
        self._cores = tuple(cores)
        self._address = teacher
        self._machine = machine or Machine()
        self._before: Reading | None = None
        self._teacher: frozenset[int] = frozenset()

    def before(self) -> None:
        """Take the first reading."""
        if self._address is not None:
            self._teacher = frozenset(self._machine.listening_at(self._address))
        slow = self._read_slow()
        self._before = Reading(**slow, **self._read_fast())

    def after(self) -> dict[str, Any]:
        """Take the second reading; what lies between both, as `disturbance.describe` has it."""
        assert self._before is not None, "before() comes first"
        fast = self._read_fast()
        return describe(self._before, Reading(**fast, **self._read_slow()), self._cores, self._teacher)

    def _read_fast(self) -> dict[str, Any]:
        """What must be read at the run's very edge, all at once, so that reading the rest is no part of the run."""
        machine = self._machine
        return {
            "time": machine.clock(),
            "ticks": parse_stat(machine.text("proc/stat") or ""),
            "own_cpu_s": machine.own_cpu_s(),
        }

    def _read_slow(self) -> dict[str, Any]:
        machine = self._machine
        nics = machine.nic_names()
        counts = {
            core: machine.number(f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count") for core in self._cores
        }
        frequencies = {core: machine.frequency(core) for core in self._cores}
        return {
            "tick_s": 1 / os.sysconf("SC_CLK_TCK"),
            "own_pid": os.getpid() if machine.own_pid is None else machine.own_pid,
            "processes": machine.processes(),
            "interrupts": machine.interrupts(),
            "nic_interrupts": machine.interrupts(names=nics) if nics else None,
            "softirqs": machine.interrupts("softirqs"),
            "pressure_s": parse_pressure(machine.text("proc/pressure/cpu") or ""),
            "throttle_counts": {core: count for core, count in counts.items() if count is not None},
            "firmware": machine.firmware(),
            "temperatures": machine.temperatures(),
            "frequencies": {core: found for core, found in frequencies.items() if found},
            "load_average": parse_load(machine.text("proc/loadavg") or ""),
        }


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
