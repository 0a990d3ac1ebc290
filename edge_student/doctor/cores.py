"""Check the cores: allowed cores, CPU quota, SMT siblings, and clusters of different speed.

`read_cores` reads the kernel's files below a root folder. The checks of its result are pure functions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edge_student.doctor.finding import Finding, note, ok, problem, unknown, warning
from edge_student.host.counters import Machine
from edgekd.cli.cores import parse_cores

_CPU = "sys/devices/system/cpu"
# Turbo differs by a few per cent between cores of one kind. Cores of two kinds differ by much more.
_SAME_SPEED = 0.9
_UNKNOWN_CLUSTERS = (-1, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """One core as the kernel describes it. Unknown values are None. `siblings` are the threads of its physical core."""

    id: int
    siblings: frozenset[int] | None
    cluster: int | None
    capacity: int | None
    max_khz: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cores:
    """The cores of the machine. `allowed` is the affinity of this process, `requested` the value of --cores, if given.

    `quota` is the CPU limit of the control group in cores, None without a limit.
    """

    allowed: frozenset[int]
    online: frozenset[int] | None
    present: frozenset[int] | None
    requested: frozenset[int] | None
    described: tuple[Core, ...]
    quota: float | None
    is_virtual: bool

    @property
    def chosen(self) -> tuple[int, ...]:
        """Return the cores of a run, sorted. Empty if no requested core is allowed."""
        return tuple(sorted(self.allowed if self.requested is None else self.allowed & self.requested))


def read_cores(machine: Machine, allowed: frozenset[int], requested: str | None) -> Cores:
    """Read the files below the machine's root. Missing files give None."""
    chosen = allowed if requested is None else parse_cores(requested)
    return Cores(
        allowed=allowed,
        online=_core_list(machine, f"{_CPU}/online"),
        present=_core_list(machine, f"{_CPU}/present"),
        requested=None if requested is None else chosen,
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
    if cluster is None or cluster in _UNKNOWN_CLUSTERS:  # kernels without cluster ids report clusters as packages
        cluster = machine.number(f"{folder}/topology/physical_package_id")
    return Core(
        id=core,
        siblings=_core_list(machine, f"{folder}/topology/thread_siblings_list"),
        cluster=None if cluster in _UNKNOWN_CLUSTERS else cluster,
        capacity=machine.number(f"{folder}/cpu_capacity"),
        max_khz=machine.number(f"{folder}/cpufreq/cpuinfo_max_freq"),
    )


def _quota(machine: Machine) -> float | None:
    """Read the CPU limit of this process's control group, in cores. Checks the group's path and the root of a namespace."""
    group = next((line[3:] for line in (machine.text("proc/self/cgroup") or "").splitlines() if line.startswith("0::/")), "/")
    for folder in dict.fromkeys((f"sys/fs/cgroup{group.rstrip('/')}", "sys/fs/cgroup")):
        words = (machine.text(f"{folder}/cpu.max") or "").split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            return int(words[0]) / int(words[1])
    quota, period = (machine.number(f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota is not None and quota > 0 and period else None


def check_cores(cores: Cores) -> Iterator[Finding]:
    """Check allowed cores, quota, SMT siblings and clusters."""
    yield _check_allowed(cores)
    if cores.quota is not None and cores.quota < len(cores.allowed):
        yield warning(
            "cores.quota",
            f"the control group limits this process to the CPU time of {cores.quota:g} cores and pauses it above the limit",
            "give the container whole cores: replace --cpus with --cpuset-cpus=0-3",
            quota_cores=cores.quota,
        )
    if cores.chosen:
        yield _check_smt(cores)
        yield _check_clusters(cores)


def _check_allowed(cores: Cores) -> Finding:
    check, allowed = "cores.allowed", sorted(cores.allowed)
    details = {
        "allowed": allowed,
        "online": None if cores.online is None else sorted(cores.online),
        "present": None if cores.present is None else sorted(cores.present),
        "chosen": list(cores.chosen),
    }
    missing = sorted((cores.requested or frozenset()) - cores.allowed)
    if missing:
        reasons = "; ".join(f"core {core} {_why_missing(core, cores)}" for core in missing)
        return problem(check, f"--cores names unusable cores: {reasons}", _remedy_of_missing(missing, cores), **details)
    text = f"a run can use {_counted(len(cores.chosen))}: {show_cores(cores.chosen)}"
    offline = sorted((cores.present or frozenset()) - cores.online) if cores.online is not None else []
    excluded = sorted(cores.online - cores.allowed) if cores.online is not None else []
    if excluded:
        text += f"; {these(excluded)} excluded by a cpuset, a container or taskset"
    if offline:
        text += f"; {these(offline)} offline"
    remedies = ["to use all cores, start without taskset, or with other --cpuset-cpus"] if excluded else []
    remedies += [f"to enable a core, run `{_enable(offline[0])}`"] if offline else []
    if len(cores.chosen) == 1:
        text += "; one core cannot be split between receiving and training"
        return warning(check, text, "; ".join([*remedies, "with one core, use --policy os-default"]), **details)
    if remedies:
        return note(check, text, "; ".join(remedies), **details)
    return ok(check, f"{text}{'' if cores.online is None else f', of {len(cores.online)} online'}", **details)


def _counted(num_cores: int) -> str:
    return f"{num_cores} core" if num_cores == 1 else f"{num_cores} cores"


def _enable(core: int) -> str:
    return f"echo 1 | sudo tee /{_CPU}/cpu{core}/online"


def these(cores: Sequence[int]) -> str:
    """Return the subject and verb of a sentence about cores: "core 3 is" or "cores 0-2 are"."""
    return f"core {cores[0]} is" if len(cores) == 1 else f"cores {show_cores(cores)} are"


def _why_missing(core: int, cores: Cores) -> str:
    if cores.present is not None and core not in cores.present:
        return "does not exist"
    if cores.online is not None and core not in cores.online:
        return "is offline"
    return "is not allowed for this process"


def _remedy_of_missing(missing: Sequence[int], cores: Cores) -> str:
    offline = [core for core in missing if cores.present and cores.online and core in cores.present - cores.online]
    enable = f", or enable core {offline[0]}: `{_enable(offline[0])}`" if offline else ""
    return f"use --cores {show_cores(sorted(cores.allowed))} or a subset{enable}"


def _check_smt(cores: Cores) -> Finding:
    check = "cores.smt"
    known = [core for core in cores.described if core.siblings is not None]
    details = {"siblings": {str(core.id): sorted(core.siblings or ()) for core in known}, "is_virtual": cores.is_virtual}
    if len(known) < len(cores.described):
        return unknown(
            check,
            "the kernel does not report which cores share a physical core (topology/thread_siblings_list is missing)",
            "run `lscpu --extended`, then list one thread of each physical core with --cores",
            **details,
        )
    shared = [(core.siblings or frozenset()) & set(cores.chosen) for core in known]
    pairs = sorted({tuple(sorted(group)) for group in shared if len(group) > 1})
    if pairs:
        first = sorted({min(group) for group in shared})
        shown = " and ".join(show_cores(pair) for pair in pairs[:4]) + (" and others" if len(pairs) > 4 else "")
        text = f"cores {shown} share a physical core each, so comm on one of them slows training on the other"
        return warning(check, text, f"use one thread of each physical core: --cores {show_cores(first)}", **details)
    if cores.is_virtual:
        return note(
            check,
            "the hypervisor reports that no two of these cores share a physical core, which may be wrong",
            "ask the operator of the host whether these are whole cores; runs record the time taken by other machines (steal)",
            **details,
        )
    return ok(check, "no two of these cores share a physical core", **details)


def _check_clusters(cores: Cores) -> Finding:
    check = "cores.clusters"
    details = {
        str(core.id): {"cluster": core.cluster, "capacity": core.capacity, "max_mhz": core.max_khz and core.max_khz / 1000}
        for core in cores.described
    }
    speeds = _speeds(cores.described)
    if not speeds:
        return unknown(
            check,
            "the kernel does not report the speed of each core (cpu_capacity and cpufreq are missing)",
            "if this processor has two kinds of core, list the cores of one kind with --cores",
            cores=details,
        )
    fastest = max(speeds.values())
    slow = [core for core, speed in speeds.items() if speed < _SAME_SPEED * fastest]
    if slow:
        fast = [core for core in speeds if core not in slow]
        return warning(
            check,
            f"{these(slow)} slower than {show_cores(fast)}; the scheduler assumes equal cores, and all training threads wait for "
            "the slowest one",
            f"use cores of one kind: --cores {show_cores(fast)}",
            cores=details,
        )
    groups = {core.cluster: [other.id for other in cores.described if other.cluster == core.cluster] for core in cores.described}
    # Clusters of one physical core each carry no information.
    if None not in groups and 1 < len(groups) < len({core.siblings for core in cores.described}):
        return note(
            check,
            f"these cores form {len(groups)} clusters of equal speed: {' | '.join(show_cores(group) for group in groups.values())}"
            "; cores of one cluster share a cache",
            "no action is needed; a split at the cluster boundary may be faster than the model predicts",
            cores=details,
        )
    return ok(check, "all these cores are of one kind", cores=details)


def _speeds(cores: Sequence[Core]) -> dict[int, int]:
    """Return the speed of each core in one unit: the kernel's capacity if it differs, else the maximum clock. Empty if unknown."""
    capacities = {core.id: core.capacity for core in cores if core.capacity is not None}
    clocks = {core.id: core.max_khz for core in cores if core.max_khz is not None}
    known = [values for values in (capacities, clocks) if len(values) == len(cores)]
    return next((values for values in known if len(set(values.values())) > 1), known[0] if known else {})


def show_cores(cores: Sequence[int]) -> str:
    """Format core ids in the syntax of --cores: 0-3,6."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][-1] + 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
