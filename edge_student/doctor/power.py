"""Check the clock of the cores: frequency governor, power mode of a Jetson, and throttling by heat or a weak power supply.

The inputs are those of a run's disturbance sampler, read once before any run.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_student.doctor.cores import show_cores, these
from edge_student.doctor.finding import Finding, note, ok, problem, unknown, warning
from edge_student.host.counters import Machine
from edge_student.host.disturbance import FIRMWARE_SINCE_BOOT, firmware_states
from edge_student.host.fingerprint import power_mode

_PERFORMANCE = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
_COOL = "add a fan or a heat sink, let the board cool down, and measure again"


@dataclass(frozen=True, slots=True, kw_only=True)
class JetsonMode:
    """One mode of /etc/nvpmodel.conf. `cores` are the cores that it keeps online, None if not listed."""

    number: int
    name: str
    cores: frozenset[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Clock, heat and power of the machine.

    `frequencies` has the sampler's values plus the hardware limit. `mode` is the power mode of a Jetson, empty on other machines.
    `firmware` are the bits of get_throttled on a Raspberry Pi, None elsewhere. `throttle_counts` is the count per core since boot
    on x86, empty elsewhere.
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
    """Read the files below the machine's root and the firmware. On a Jetson, run `nvpmodel` too."""
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
    """Parse the modes of /etc/nvpmodel.conf."""
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
    """Return the mode in nvpmodel's status file, which is readable without root. Empty if unknown."""
    saved = re.search(r"\bpmode:(\d+)", machine.text("var/lib/nvpmodel/status") or "")
    return next((mode.name for mode in modes if saved is not None and mode.number == int(saved[1])), "")


def _passive_trips(machine: Machine) -> dict[str, float]:
    """Return the degrees Celsius at which the kernel lowers clocks, by thermal zone. Keys are those of `Machine.temperatures`."""
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


def check_power(power: Power, present: frozenset[int] | None) -> Iterator[Finding]:
    """Check governor, power mode and throttling. `present` are the cores of the machine."""
    yield _check_governor(power)
    if power.is_jetson:
        yield _check_mode(power, present)
    yield _check_throttling(power)


def _check_governor(power: Power) -> Finding:
    check = "power.governor"
    details = {"frequency": {str(core): dict(found) for core, found in power.frequencies.items()}}
    governors = {core: found["governor"] for core, found in power.frequencies.items() if "governor" in found}
    if not governors:
        return unknown(
            check,
            "the frequency governor of these cores is not known: this kernel has no cpufreq, as in most virtual machines",
            "ask the operator of the host to set the governor to performance; with a variable clock, equal work takes unequal time",
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
            f"{these(capped)} capped at {found['max_mhz']:g} MHz; the hardware allows {found['limit_mhz']:g} MHz",
            f"run `sudo cpupower frequency-set --max {found['limit_mhz']:g}MHz`; on a Jetson, change the power mode instead",
            **details,
        )
    others = sorted(core for core, governor in governors.items() if governor != "performance")
    if others:
        names = ", ".join(sorted({governors[core] for core in others}))
        which = "core" if len(others) == 1 else "cores"
        text = (
            f"the governor of {which} {show_cores(others)} is {names}; the clock follows the load, so equal work takes unequal time"
        )
        return warning(check, text, f"run `{_PERFORMANCE}`", **details)
    speeds = sorted({found["max_mhz"] for found in power.frequencies.values() if "max_mhz" in found})
    top = f", at most {' and '.join(f'{speed:g}' for speed in speeds)} MHz" if speeds else ""
    return ok(check, f"the governor of these cores is performance{top}", **details)


def _check_mode(power: Power, present: frozenset[int] | None) -> Finding:
    check = "power.mode"
    details = {"mode": power.mode or None, "modes": {str(mode.number): mode.name for mode in power.modes}}
    if not power.mode:
        return unknown(
            check,
            "the power mode of this Jetson is not known: `nvpmodel -q` and /var/lib/nvpmodel/status do not report it",
            "run `sudo nvpmodel -q`; in a container, run it on the host",
            **details,
        )
    now = next((mode for mode in power.modes if mode.name == power.mode), None)
    most = max((mode for mode in power.modes if mode.cores), key=lambda mode: len(mode.cores or ()), default=None)
    if now is None or now.cores is None or most is None or most.cores is None:
        text = f"the power mode is {power.mode}; /etc/nvpmodel.conf does not list its online cores"
        return note(check, text, "use one power mode for all runs that you compare; a profile is valid for one mode", **details)
    if len(now.cores) < len(most.cores):
        total = len(present or most.cores)
        text = f"the power mode {power.mode} keeps {len(now.cores)} of {total} cores online; {most.name} keeps {len(most.cores)}"
        return warning(check, text, f"run `sudo nvpmodel -m {most.number}`", **details)
    return ok(check, f"the power mode is {power.mode}; no other mode keeps more cores online ({len(now.cores)})", **details)


def _check_throttling(power: Power) -> Finding:
    check = "power.throttling"
    hottest = max(power.temperatures.items(), key=lambda item: item[1], default=None)
    warm = "" if hottest is None else f"; the hottest sensor, {hottest[0]}, is at {hottest[1]:.0f} degrees Celsius"
    details: dict[str, Any] = {"temperature_c": dict(power.temperatures), "throttle_counts": dict(power.throttle_counts)}
    hot = [zone for zone, trip in power.passive_trips.items() if power.temperatures.get(zone, 0.0) >= trip]
    if power.firmware is not None:
        details["firmware"] = f"{power.firmware:#x}"
        now, ever = firmware_states(power.firmware), firmware_states(power.firmware >> FIRMWARE_SINCE_BOOT)
        remedy = "use the power supply made for this board, with a short cable" if "under-voltage" in now + ever else _COOL
        if now:
            return problem(check, f"the firmware is lowering the clock now: {', '.join(now)}{warm}", remedy, **details)
        if ever:
            text = f"the firmware lowered the clock earlier since boot, but not now: {', '.join(ever)}{warm}"
            return warning(check, text, f"{remedy}; a reboot clears this record", **details)
        return ok(check, f"the firmware has not lowered the clock since boot{warm}", **details)
    if hot:
        text = f"{hot[0]} is at or above {power.passive_trips[hot[0]]:.0f} degrees Celsius, so the kernel lowers the clock{warm}"
        return problem(check, text, _COOL, **details)
    if any(power.throttle_counts.values()):
        worst = max(power.throttle_counts, key=lambda core: power.throttle_counts[core])
        text = f"core {worst} was throttled by heat {power.throttle_counts[worst]} times since boot{warm}"
        return warning(check, text, f"{_COOL}; runs record throttling", **details)
    if power.throttle_counts:
        return ok(check, f"no core was throttled by heat since boot{warm}", **details)
    if power.passive_trips and power.temperatures:
        nearest = min(power.passive_trips.items(), key=lambda item: item[1] - power.temperatures.get(item[0], 0.0))
        text = f"no sensor is at the limit for lower clocks (nearest: {nearest[0]}, {nearest[1]:.0f} degrees Celsius){warm}"
        return ok(check, text, **details)
    remedy = "let the board cool before you measure, and compare the first and the last runs; in a virtual machine, check the host"
    if power.is_raspberry:
        remedy = "run `vcgencmd get_throttled` (throttled=0x0 means no throttling); in a container, run it on the host"
    return unknown(check, f"this machine does not report throttling by heat or a weak power supply{warm}", remedy, **details)
