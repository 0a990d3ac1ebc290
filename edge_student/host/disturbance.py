"""Computes from two readings of the counters whether other processes disturbed the run between them. Pure arithmetic.

"Others" are all processes except the run's own and the teacher's. Interrupt time is recorded separately and never marks a run as
disturbed, because most interrupts deliver the run's own logits.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_OTHERS_FRACTION = 0.05
MAX_STEAL_FRACTION = 0.05
_MAX_NAMED = 3
_INTERRUPT_THREADS = ("ksoftirqd/", "irq/")

# Bits of the Raspberry Pi firmware's get_throttled. The same states since boot are 16 bits higher.
_FIRMWARE_STATES = ("under-voltage", "frequency capped", "throttled", "temperature limit")
FIRMWARE_SINCE_BOOT = 16


class CoreTicks(NamedTuple):
    """Clock ticks of one core since boot, in the order of /proc/stat (proc_stat(5))."""

    user: int = 0
    nice: int = 0
    system: int = 0
    idle: int = 0
    iowait: int = 0
    irq: int = 0
    softirq: int = 0
    steal: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTime:
    """CPU seconds of one process (`cpu_s`) and of its exited children that it has waited for (`reaped_s`)."""

    pid: int
    parent: int
    created: float
    name: str
    core: int
    cpu_s: float
    reaped_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All counters at one moment. A counter that this machine lacks is None or empty. Units are seconds, except `ticks`."""

    time: float
    tick_s: float
    ticks: Mapping[int, CoreTicks]
    own_pid: int
    own_cpu_s: float
    processes: tuple[ProcessTime, ...]
    interrupts: Mapping[int, int] | None
    nic_interrupts: Mapping[int, int] | None
    softirqs: Mapping[int, int] | None
    pressure_s: float | None
    throttle_counts: Mapping[int, int]
    firmware: int | None
    temperatures: Mapping[str, float]
    frequencies: Mapping[int, Mapping[str, Any]]
    load_average: tuple[float, ...]


def describe(before: Reading, after: Reading, cores: Sequence[int], teacher: Collection[int]) -> dict[str, Any]:
    """Return the disturbance between two readings as plain JSON values.

    Fractions are of the run's core-seconds (duration times number of cores). `teacher` contains the teacher's process ids.
    """
    core_s = (after.time - before.time) * len(cores)
    return {
        "core_s": core_s,
        **_cpu(before, after, cores, teacher, core_s),
        "interrupts": _per_core(before.interrupts, after.interrupts, cores),
        "nic_interrupts": _per_core(before.nic_interrupts, after.nic_interrupts, cores),
        "softirqs": _per_core(before.softirqs, after.softirqs, cores),
        "pressure_s": None if before.pressure_s is None or after.pressure_s is None else after.pressure_s - before.pressure_s,
        "throttled": _throttling(before, after, cores),
        "temperature_c": {zone: [before.temperatures.get(zone), degrees] for zone, degrees in after.temperatures.items()},
        "frequency": {str(core): dict(values) for core, values in after.frequencies.items()},
        "load_average_before": list(before.load_average),
        "busiest_others": _busiest(before, after, cores, teacher),
    }


DISTURBED = "disturbed: "
"""Beginning of a run's note on a finding."""


def findings(disturbance: Mapping[str, Any] | None) -> list[str]:
    """Return one sentence per disturbance of a run; empty if there was none, or if the counters are missing."""
    if disturbance is None:
        return []
    found = []
    others, steal = disturbance["others_fraction"], disturbance["steal_fraction"]
    if others is not None and others > max(MAX_OTHERS_FRACTION, disturbance["others_resolution"]):
        names = ", ".join(f"{process['name']} {process['cpu_s']:.2f} s" for process in disturbance["busiest_others"])
        found.append(f"other processes used {others:.1%} of the run's cores" + (f" ({names})" if names else ""))
    if steal is not None and steal > max(MAX_STEAL_FRACTION, disturbance["steal_resolution"]):
        found.append(f"other virtual machines used {steal:.1%} of the run's cores (steal time)")
    if disturbance["throttled"]:
        found.append(f"the processor was throttled: {', '.join(disturbance['throttled'])}")
    return found


def severity(disturbance: Mapping[str, Any]) -> tuple[bool, float]:
    """Return a sort key, lowest for the least disturbed run: throttling first, then the fraction used by others plus steal time."""
    taken = (disturbance["others_fraction"] or 0.0) + (disturbance["steal_fraction"] or 0.0)
    return bool(disturbance["throttled"]), taken


def firmware_states(bits: int) -> list[str]:
    """Return the names of the current throttling states in a Raspberry Pi's get_throttled bits."""
    return [name for shift, name in enumerate(_FIRMWARE_STATES) if bits >> shift & 1]


def _cpu(before: Reading, after: Reading, cores: Sequence[int], teacher: Collection[int], core_s: float) -> dict[str, float | None]:
    """Return CPU seconds by user (run, teacher, others, interrupts, steal) with their resolution.

    /proc/stat is truncated to ticks, and most kernels fill it by sampling the running task at each tick. The resolution is
    therefore one tick for each counter that changed, plus two standard errors of that sample.
    """
    own = own_cpu_s(after) - own_cpu_s(before)
    used = _used(before, after)
    teacher_s = sum(seconds for process, seconds in used if process.pid in teacher) if teacher else None
    known = {"own_cpu_s": own, "teacher_cpu_s": teacher_s}
    names = ("others_cpu_s", "others_fraction", "others_resolution", "steal_fraction", "steal_resolution", "interrupts_cpu_s")
    if core_s <= 0 or not all(core in before.ticks and core in after.ticks for core in cores):
        return {**known, **dict.fromkeys(names)}
    moved = [CoreTicks(*(now - then for then, now in zip(before.ticks[core], after.ticks[core], strict=True))) for core in cores]
    programs = [count for ticks in moved for count in (ticks.user, ticks.nice, ticks.system)]
    threads = sum(seconds for process, seconds in used if process.core in cores and process.name.startswith(_INTERRUPT_THREADS))
    others = max(0.0, sum(programs) * after.tick_s - own - (teacher_s or 0.0) - threads)
    num_samples = core_s / after.tick_s
    shares = [min(1.0, (ticks.user + ticks.nice + ticks.system) * len(cores) / num_samples) for ticks in moved]
    variance = sum(num_samples / len(cores) * share * (1 - share) for share in shares)
    noise = sum(count > 0 for count in programs) + 2 * math.sqrt(variance)
    values = (
        others,
        others / core_s,
        noise / num_samples,
        sum(ticks.steal for ticks in moved) / num_samples,
        len(cores) / num_samples,
        sum(ticks.irq + ticks.softirq for ticks in moved) * after.tick_s + threads,
    )
    return {**known, **dict(zip(names, values, strict=True))}


def own_cpu_s(reading: Reading) -> float:
    """Return the CPU seconds of the reading process and all its descendants, exited ones included."""
    family = _family(reading)
    alive = sum(process.cpu_s + process.reaped_s for process in reading.processes if process.pid in family)
    return reading.own_cpu_s + alive


def _family(reading: Reading) -> set[int]:
    """Return the process ids of all descendants of the reading process."""
    family: set[int] = set()
    parents = {reading.own_pid}
    while parents:
        parents = {process.pid for process in reading.processes if process.parent in parents} - family
        family |= parents
    return family


def _used(before: Reading, after: Reading) -> list[tuple[ProcessTime, float]]:
    """Return each process of the second reading with its CPU seconds since the first. Creation time tells reused ids apart."""
    then = {(process.pid, process.created): process.cpu_s for process in before.processes}
    return [(process, process.cpu_s - then.get((process.pid, process.created), 0.0)) for process in after.processes]


def _busiest(before: Reading, after: Reading, cores: Sequence[int], teacher: Collection[int]) -> list[dict[str, Any]]:
    """Return the other processes that used most CPU and last ran on the run's cores. Processes that have exited are unknown."""
    excluded = {after.own_pid, *_family(after), *teacher}
    used = [
        (seconds, process)
        for process, seconds in _used(before, after)
        if seconds > 0 and process.pid not in excluded and process.core in cores and not process.name.startswith(_INTERRUPT_THREADS)
    ]
    top = sorted(used, key=lambda entry: (-entry[0], entry[1].pid))[:_MAX_NAMED]
    return [{"name": process.name, "pid": process.pid, "cpu_s": round(seconds, 2)} for seconds, process in top]


def _per_core(before: Mapping[int, int] | None, after: Mapping[int, int] | None, cores: Sequence[int]) -> dict[str, int] | None:
    if before is None or after is None:
        return None
    return {str(core): after[core] - before[core] for core in cores if core in before and core in after}


def _throttling(before: Reading, after: Reading, cores: Sequence[int]) -> list[str] | None:
    """Return the causes of throttling during the run; None on a machine that does not report throttling.

    A Raspberry Pi reports current states and states since boot. A state that had occurred before the run is not detected again
    if it starts and ends within the run.
    """
    counts = {core: count for core, count in after.throttle_counts.items() if core in cores and core in before.throttle_counts}
    if after.firmware is None and not counts:
        return None
    hot = [f"core {core} too hot" for core, count in sorted(counts.items()) if count > before.throttle_counts[core]]
    then, now = before.firmware or 0, after.firmware or 0
    return hot + firmware_states(then | now | (now & ~then) >> FIRMWARE_SINCE_BOOT)
