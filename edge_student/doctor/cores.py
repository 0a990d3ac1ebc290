"""The cores: which may be used, which are really two, which are slower, and which of them the network interrupts.

`read_cores` looks, at the kernel's files below a root; what it read is a value, and all that follows from it is pure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_student.doctor.finding import Finding, note, ok, problem, unknown, warning
from edge_student.host.counters import Machine
from edgekd.cli.cores import parse_cores

_CPU = "sys/devices/system/cpu"
# Turbo gives some cores of one kind a few per cent more than others; two kinds of core lie much further apart.
_SAME_SPEED = 0.9
_UNKNOWN_CLUSTERS = (-1, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """One core as the kernel describes it; None is what it does not say. `siblings` are the threads of its physical core."""

    id: int
    siblings: frozenset[int] | None
    cluster: int | None
    capacity: int | None
    max_khz: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """What was read. `allowed` may be used by this process, `wanted` was named by the user, `chosen` are the cores of a run.

    `quota` is how many cores' worth of time the control group has; None if it is not limited.
    """

    allowed: frozenset[int]
    online: frozenset[int] | None
    present: frozenset[int] | None
    wanted: frozenset[int] | None
    described: tuple[Core, ...]
    quota: float | None
    is_virtual: bool

    @property
    def chosen(self) -> tuple[int, ...]:
        """Sorted; empty if none of those that the user named may be used."""
        return tuple(sorted(self.allowed if self.wanted is None else self.allowed & self.wanted))


def read_cores(machine: Machine, allowed: frozenset[int], wanted: str | None) -> Cores:
    """What the files below the machine's root say. Nothing is missed that is not there."""
    chosen = allowed if wanted is None else parse_cores(wanted)
    return Cores(
        allowed=allowed,
        online=_core_list(machine, f"{_CPU}/online"),
        present=_core_list(machine, f"{_CPU}/present"),
        wanted=None if wanted is None else chosen,
        described=tuple(_read_core(machine, core) for core in sorted(chosen & allowed)),
        quota=_quota(machine),
        is_virtual="hypervisor" in (machine.text("proc/cpuinfo") or "").split(),
    )


def _core_list(machine: Machine, path: str) -> frozenset[int] | None:
    text = machine.text(path)
    try:
        return parse_cores(text) if text else None
    except ValueError:
        return None


def _read_core(machine: Machine, core: int) -> Core:
    folder = f"{_CPU}/cpu{core}"
    cluster = machine.number(f"{folder}/topology/cluster_id")
    if cluster is None or cluster in _UNKNOWN_CLUSTERS:  # kernels that do not know clusters show them as packages
        cluster = machine.number(f"{folder}/topology/physical_package_id")
    return Core(
        id=core,
        siblings=_core_list(machine, f"{folder}/topology/thread_siblings_list"),
        cluster=None if cluster in _UNKNOWN_CLUSTERS else cluster,
        capacity=machine.number(f"{folder}/cpu_capacity"),
        max_khz=machine.number(f"{folder}/cpufreq/cpuinfo_max_freq"),
    )


def _quota(machine: Machine) -> float | None:
    """Of the control group that this process sees as its root, or, without a namespace, is in."""
    group = next((line[3:] for line in (machine.text("proc/self/cgroup") or "").splitlines() if line.startswith("0::/")), "/")
    for folder in dict.fromkeys((f"sys/fs/cgroup{group.rstrip('/')}", "sys/fs/cgroup")):
        words = (machine.text(f"{folder}/cpu.max") or "").split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            return int(words[0]) / int(words[1])
    quota, period = (machine.number(f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota is not None and quota > 0 and period else None


def find_cores(cores: Cores) -> Iterator[Finding]:
    """All that follows from what was read."""
    yield _allowed(cores)
    if cores.quota is not None and cores.quota < len(cores.allowed):
        yield warning(
            "cores.quota",
            f"the control group limits this process to {cores.quota:g} cores' worth of time, and stops it in between",
            "in a container give it whole cores instead: --cpuset-cpus=0-3 in place of --cpus",
            quota_cores=cores.quota,
        )
    if cores.chosen:
        yield _threads_of_one_core(cores)
        yield _clusters(cores)


def _allowed(cores: Cores) -> Finding:
    check, allowed = "cores.allowed", sorted(cores.allowed)
    details = {
        "allowed": allowed,
        "online": None if cores.online is None else sorted(cores.online),
        "present": None if cores.present is None else sorted(cores.present),
        "chosen": list(cores.chosen),
    }
    missing = sorted((cores.wanted or frozenset()) - cores.allowed)
    if missing:
        why = "; ".join(f"core {core} {_why_missing(core, cores)}" for core in missing)
        return problem(check, f"--cores asks for more than may be used: {why}", _way_back(missing, cores), **details)
    text = f"a run would have {len(cores.chosen)} {'core' if len(cores.chosen) == 1 else 'cores'}, {show_cores(cores.chosen)}"
    away = sorted((cores.present or frozenset()) - cores.online) if cores.online is not None else []
    kept = sorted(cores.online - cores.allowed) if cores.online is not None else []
    if kept:
        text += f"; {these(kept)} kept from this process by a cpuset, a container or taskset"
    if away:
        text += f"; {these(away)} offline"
    ways = ["if that is not on purpose, start it without taskset, or with other --cpuset-cpus"] if kept else []
    ways += [f"`echo 1 | sudo tee /{_CPU}/cpu{away[0]}/online` brings one back"] if away else []
    if len(cores.chosen) == 1:
        ways.append("with one core use --policy os-default, which divides nothing")
        text += ": there is nothing to divide between receiving and training"
        return warning(check, text, "; ".join(ways), **details)
    if ways:
        return note(check, text, "; ".join(ways), **details)
    return ok(check, f"{text}{'' if cores.online is None else f', of {len(cores.online)} online'}", **details)


def these(cores: Sequence[int]) -> str:
    """The beginning of a sentence about some cores."""
    return f"core {cores[0]} is" if len(cores) == 1 else f"cores {show_cores(cores)} are"


def _why_missing(core: int, cores: Cores) -> str:
    if cores.present is not None and core not in cores.present:
        return "does not exist"
    if cores.online is not None and core not in cores.online:
        return "is offline"
    return "is not allowed to this process"


def _way_back(missing: Sequence[int], cores: Cores) -> str:
    offline = [core for core in missing if cores.present and cores.online and core in cores.present - cores.online]
    wake = f", or wake it: `echo 1 | sudo tee /{_CPU}/cpu{offline[0]}/online`" if offline else ""
    return f"use --cores {show_cores(sorted(cores.allowed))} or some of these{wake}"


def _threads_of_one_core(cores: Cores) -> Finding:
    check = "cores.smt"
    known = [core for core in cores.described if core.siblings is not None]
    details = {"siblings": {str(core.id): sorted(core.siblings or ()) for core in known}, "is_virtual": cores.is_virtual}
    if len(known) < len(cores.described):
        return unknown(
            check,
            "the kernel does not say which cores are threads of one physical core (no topology/thread_siblings_list)",
            "look with `lscpu --extended`, and name one thread of each physical core with --cores",
            **details,
        )
    shared = [(core.siblings or frozenset()) & set(cores.chosen) for core in known]
    pairs = sorted({tuple(sorted(group)) for group in shared if len(group) > 1})
    if pairs:
        first = sorted({min(group) for group in shared})
        what = " and ".join(show_cores(pair) for pair in pairs[:4]) + (" and so on" if len(pairs) > 4 else "")
        text = f"cores {what} are threads of one physical core each: what comm does on one slows training on the other"
        return warning(check, text, f"use one thread of each: --cores {show_cores(first)}", **details)
    if cores.is_virtual:
        return note(
            check,
            "no two of these cores share a physical one, says the hypervisor, which need not be true",
            "ask whoever runs the host whether these are whole cores; a run marks itself if neighbours take their time (steal)",
            **details,
        )
    return ok(check, "no two of these cores are threads of one physical core", **details)


def _clusters(cores: Cores) -> Finding:
    check = "cores.clusters"
    details = {
        str(core.id): {"cluster": core.cluster, "capacity": core.capacity, "max_mhz": core.max_khz and core.max_khz / 1000}
        for core in cores.described
    }
    speeds = _speeds(cores.described)
    if not speeds:
        return unknown(
            check,
            "the kernel does not say how fast each core is (neither cpu_capacity nor cpufreq)",
            "if this processor has two kinds of core, name those of one kind with --cores",
            cores=details,
        )
    fastest = max(speeds.values())
    slow = [core for core, speed in speeds.items() if speed < _SAME_SPEED * fastest]
    if slow:
        fast = [core for core in speeds if core not in slow]
        return warning(
            check,
            f"{these(slow)} slower than {show_cores(fast)}: the scheduler takes all cores for equal, and one slow core holds up "
            "a whole team of training threads",
            f"use cores of one kind: --cores {show_cores(fast)}",
            cores=details,
        )
    groups = {core.cluster: [other.id for other in cores.described if other.cluster == core.cluster] for core in cores.described}
    # A cluster of one physical core is only another word for it.
    if None not in groups and 1 < len(groups) < len({core.siblings for core in cores.described}):
        return note(
            check,
            f"these cores are in {len(groups)} clusters, {' | '.join(show_cores(group) for group in groups.values())}, and equally "
            "fast; cores of one cluster share a cache",
            "nothing needs to be done; a split along that border may do better than its number of cores says",
            cores=details,
        )
    return ok(check, "these cores are all of one kind", cores=details)


def _speeds(cores: Sequence[Core]) -> dict[int, int]:
    """What each core can do, in one unit: the kernel's capacity where that differs, else its highest clock; empty if unknown."""
    capacities = {core.id: core.capacity for core in cores if core.capacity is not None}
    clocks = {core.id: core.max_khz for core in cores if core.max_khz is not None}
    known = [values for values in (capacities, clocks) if len(values) == len(cores)]
    return next((values for values in known if len(set(values.values())) > 1), known[0] if known else {})


def show_cores(cores: Sequence[int]) -> str:
    """Core ids as --cores takes them: 0-3,6."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
