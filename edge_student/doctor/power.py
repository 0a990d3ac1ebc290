"""The clock of the cores: who sets it, what the power mode allows, and whether heat or a weak supply takes some of it away.

Reads what a run's sampler reads, before a run instead of around it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_student.doctor.cores import show_cores
from edge_student.doctor.finding import Finding, note, ok, problem, unknown, warning
from edge_student.host.counters import Machine
from edge_student.host.disturbance import FIRMWARE_SINCE_BOOT, firmware_states
from edge_student.host.fingerprint import power_mode

_PERFORMANCE = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_COOL = "give it a fan or a heat sink, let it cool, and measure again"


@dataclass(frozen=True, slots=True, kw_only=True)
class JetsonMode:
    """One mode of /etc/nvpmodel.conf, and the cores that it keeps online; None if it does not say."""

    number: int
    name: str
    cores: frozenset[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What was read. `frequencies` as the sampler has them, with the hardware's own limit; `mode` of a Jetson, empty elsewhere.

    `firmware` are the bits of a Raspberry Pi's get_throttled, `throttle_counts` x86's count per core since boot; None and empty
    where there is no such thing.
    """

    frequencies: Mapping[int, Mapping[str, Any]]
    is_jetson: bool
    mode: str
    modes: tuple[JetsonMode, ...]
    firmware: int | None
    is_raspberry: bool
    throttle_counts: Mapping[int, int]
    temperatures: Mapping[str, float]
    passive_trips: Mapping[str, float]


def read_power(machine: Machine, chosen: Sequence[int]) -> Power:
    """What the files below the machine's root and its firmware say; on a Jetson `nvpmodel` is asked too."""
    frequencies = {}
    for core in chosen:
        limit = machine.number(f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq")
        driver = machine.text(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_driver")
        extra = {"driver": driver, "limit_mhz": None if limit is None else limit / 1000}
        frequencies[core] = {**machine.frequency(core), **{name: value for name, value in extra.items() if value is not None}}
    counts = {core: machine.number(f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count") for core in chosen}
    conf = machine.text("etc/nvpmodel.conf")
    modes = parse_nvpmodel(conf or "")
    return Power(
        frequencies={core: found for core, found in frequencies.items() if found},
        is_jetson=conf is not None,
        mode=power_mode(machine) or _saved_mode(machine, modes),
        modes=modes,
        firmware=machine.firmware(),
        is_raspberry="Raspberry Pi" in (machine.text("proc/device-tree/model") or ""),
        throttle_counts={core: count for core, count in counts.items() if count is not None},
        temperatures=machine.temperatures(),
        passive_trips=_passive_trips(machine),
    )


def parse_nvpmodel(text: str) -> tuple[JetsonMode, ...]:
    """The modes of an /etc/nvpmodel.conf."""
    modes = []
    for block in re.split(r"^<\s*(?=POWER_MODEL\b)", text, flags=re.MULTILINE)[1:]:
        head = re.match(r"POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", block)
        if head is not None:
            body = re.split(r"^<", block, flags=re.MULTILINE)[0]
            online = {
                int(core): state == "1" for core, state in re.findall(r"^CPU_ONLINE\s+CORE_(\d+)\s+([01])\b", body, re.MULTILINE)
            }
            cores = frozenset(core for core, is_online in online.items() if is_online) if online else None
            modes.append(JetsonMode(number=int(head[1]), name=head[2], cores=cores))
    return tuple(modes)


def _saved_mode(machine: Machine, modes: Sequence[JetsonMode]) -> str:
    """The mode that nvpmodel has left in its own file, which may be read where it may not be asked; empty if unknown."""
    saved = re.search(r"\bpmode:(\d+)", machine.text("var/lib/nvpmodel/status") or "")
    return next((mode.name for mode in modes if saved is not None and mode.number == int(saved[1])), "")


def _passive_trips(machine: Machine) -> dict[str, float]:
    """By thermal zone, the degrees Celsius from which the kernel lowers clocks; named as `Machine.temperatures` names them."""
    found: dict[str, float] = {}
    for kind in sorted(machine.root.glob("sys/class/thermal/thermal_zone*/trip_point_*_type")):
        zone = kind.parent.relative_to(machine.root)
        if machine.text(str(kind.relative_to(machine.root))) != "passive":
            continue
        degrees = machine.number(f"{zone}/{kind.name.removesuffix('_type')}_temp")
        if degrees is not None and degrees > 0:
            name = f"{zone.name} {machine.text(f'{zone}/type') or ''}".strip()
            found[name] = min(degrees / 1000, found.get(name, degrees / 1000))
    return found


def find_power(power: Power, present: frozenset[int] | None) -> Iterator[Finding]:
    """All that follows from what was read; `present` are the cores that the machine has."""
    yield _governor(power)
    if power.is_jetson:
        yield _mode(power, present)
    yield _throttling(power)


def _governor(power: Power) -> Finding:
    check = "power.governor"
    details = {"frequency": {str(core): dict(found) for core, found in power.frequencies.items()}}
    governors = {core: found["governor"] for core, found in power.frequencies.items() if "governor" in found}
    if not governors:
        return unknown(
            check,
            "who sets the clock of these cores is not known: the kernel has no cpufreq here, as in most virtual machines",
            "ask whoever runs the host; a clock that follows the load makes the same work take different times",
            **details,
        )
    capped = [
        core
        for core, found in power.frequencies.items()
        if "max_mhz" in found and "limit_mhz" in found and found["max_mhz"] < found["limit_mhz"]
    ]
    if capped:
        found = power.frequencies[capped[0]]
        return warning(
            check,
            f"core {show_cores(capped)} may clock up to {found['max_mhz']:g} MHz of {found['limit_mhz']:g}: it is capped",
            "`sudo cpupower frequency-set --max` takes it off; on a Jetson the power mode sets it",
            **details,
        )
    others = sorted(core for core, governor in governors.items() if governor != "performance")
    if others:
        names = ", ".join(sorted({governors[core] for core in others}))
        text = (
            f"the governor of core {show_cores(others)} is {names}: the clock follows the load, so equal work takes unequal times"
        )
        return warning(check, text, f"`{_PERFORMANCE}`", **details)
    speeds = sorted({found["max_mhz"] for found in power.frequencies.values() if "max_mhz" in found})
    top = f", up to {' and '.join(f'{speed:g}' for speed in speeds)} MHz" if speeds else ""
    return ok(check, f"the governor of these cores is performance{top}", **details)


def _mode(power: Power, present: frozenset[int] | None) -> Finding:
    check = "power.mode"
    details = {"mode": power.mode or None, "modes": {str(mode.number): mode.name for mode in power.modes}}
    if not power.mode:
        return unknown(
            check,
            "this is a Jetson, and neither `nvpmodel -q` nor /var/lib/nvpmodel/status tells its power mode",
            "`sudo nvpmodel -q` tells it; in a container look on the host",
            **details,
        )
    now = next((mode for mode in power.modes if mode.name == power.mode), None)
    most = max((mode for mode in power.modes if mode.cores), key=lambda mode: len(mode.cores or ()), default=None)
    if now is None or now.cores is None or most is None or most.cores is None:
        text = f"the power mode is {power.mode}; which cores it keeps online is not in /etc/nvpmodel.conf"
        return note(check, text, "use the same mode for all that is to be compared; a profile is for one mode", **details)
    if len(now.cores) < len(most.cores):
        total = len(present or most.cores)
        text = f"the power mode {power.mode} keeps {len(now.cores)} of {total} cores online, and {most.name} {len(most.cores)}"
        return warning(check, text, f"`sudo nvpmodel -m {most.number}`", **details)
    return ok(check, f"the power mode is {power.mode}, and no mode has more cores online ({len(now.cores)})", **details)


def _throttling(power: Power) -> Finding:
    check = "power.throttling"
    hottest = max(power.temperatures.items(), key=lambda item: item[1], default=None)
    warm = "" if hottest is None else f"; the hottest sensor, {hottest[0]}, has {hottest[1]:.0f} degrees"
    details: dict[str, Any] = {"temperature_c": dict(power.temperatures), "throttle_counts": dict(power.throttle_counts)}
    hot = [zone for zone, trip in power.passive_trips.items() if power.temperatures.get(zone, 0.0) >= trip]
    if power.firmware is not None:
        details["firmware"] = f"{power.firmware:#x}"
        now, ever = firmware_states(power.firmware), firmware_states(power.firmware >> FIRMWARE_SINCE_BOOT)
        supply = "use the power supply made for this board, and a short cable" if "under-voltage" in now + ever else _COOL
        if now:
            return problem(check, f"the firmware lowers the clock now: {', '.join(now)}{warm}", supply, **details)
        if ever:
            text = f"the firmware has lowered the clock since boot, though not now: {', '.join(ever)}{warm}"
            return warning(check, text, f"{supply}; a reboot clears what it remembers", **details)
        return ok(check, f"the firmware has not lowered the clock since boot{warm}", **details)
    if hot:
        text = f"{hot[0]} is at or above {power.passive_trips[hot[0]]:.0f} degrees, where the kernel lowers the clock{warm}"
        return problem(check, text, _COOL, **details)
    if any(power.throttle_counts.values()):
        worst = max(power.throttle_counts, key=lambda core: power.throttle_counts[core])
        text = f"heat has slowed core {worst} {power.throttle_counts[worst]} times since boot{warm}"
        return warning(check, text, f"{_COOL}; a run marks itself if it happens meanwhile", **details)
    if power.throttle_counts:
        return ok(check, f"heat has slowed no core since boot{warm}", **details)
    if power.passive_trips and power.temperatures:
        nearest = min(power.passive_trips.items(), key=lambda item: item[1] - power.temperatures.get(item[0], 0.0))
        text = f"no sensor is as hot as where the kernel lowers the clock ({nearest[0]}: {nearest[1]:.0f} degrees){warm}"
        return ok(check, text, **details)
    remedy = "measure on a board that has cooled, and compare first and last runs; a virtual machine's heat is its host's"
    if power.is_raspberry:
        remedy = "`vcgencmd get_throttled` tells it (throttled=0x0 is well); in a container look on the host"
    return unknown(check, f"nothing on this machine tells whether heat or its supply lowers the clock{warm}", remedy, **details)
