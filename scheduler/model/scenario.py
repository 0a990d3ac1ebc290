"""Read device profiles and scenarios to simulate from JSON.

Both give the rates of the cores in the same way: by the paper's formulas ("cost": {"a1", "a2", "b1", "b2", "b3"}), or as
measured rates ("modes": [{"name", "comm_rate", "comp_rate"}, ...]). A mode may have the quality of its measurement, and a
profile its origin. These fields are validated here but not used. Every error is a ValueError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from scheduler.model.checked_json import check_keys, not_negative, number, read_json, shown, whole
from scheduler.model.cost import CostModel, Mode, RateTable, Workload
from scheduler.model.optimum import lower_bound
from scheduler.model.state import COMPUTE_FIRST

WorkArray: TypeAlias = npt.NDArray[np.float64]
"""The work of one kind of task in every cycle: float64 [cycles], read-only."""

MAX_CYCLES = 10_000_000
MAX_CORES = 4096
MAX_SIZE = 1e30
"""Limit of works and rates, and its inverse: products of larger or smaller numbers would leave the range of floats."""

_TASKS = ("forward", "backward", "comm")
_COMP_ONLY, _COMM_ONLY = "comp-only", "comm-only"
_INTERVALS, _COUNTS, _SHARES = ("comm_interval", "comp_interval"), ("num_comm", "num_comp"), ("comm_cpu_share", "interval_level")
_MEASURED = (*_INTERVALS, *_COUNTS, *_SHARES)
_ORIGIN = ("fingerprint", "settings", "samples", "fit", "software", "command", "seconds", "notes")
_MOST_NAMED = 8
_SPLIT = re.compile(r"split(?::(?=\d+$)|\((?=\d+\)$))(\d{1,4})\)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A calibrated device: its number of cores, the work of a cycle, and the rates of every split."""

    cores: int
    workload: Workload
    rates: RateTable

    def __post_init__(self) -> None:
        if self.rates.num_cores != self.cores:
            raise ValueError(f"the profile has {self.cores} cores, but rates for {self.rates.num_cores}")

    def check_cores(self, num_cores: int) -> None:
        """Raise ValueError unless the profile was measured on this number of cores."""
        if self.cores != num_cores:
            raise ValueError(
                f"the profile is of {self.cores} cores, and this run has {num_cores}; run on {self.cores} cores, or calibrate again"
            )

    @classmethod
    def from_json(cls, data: Any) -> Profile:
        """Read {"cores", "forward", "backward", "comm"}, each work a number, and "cost" or "modes".

        The other keys that `calibrate` writes (host, settings and time of the measurement) are optional and not read here.
        Raises ValueError.
        """
        where = "profile"
        check_keys(data, required=("cores", *_TASKS), optional=("cost", "modes", *_ORIGIN), where=where)
        cores = whole(data, "cores", where, least=1, most=MAX_CORES)
        workload = Workload(**{task: number(data, task, where) for task in _TASKS})
        rates, _ = _rates_and_cost(data, cores, where)
        for mode in rates.shared:
            if mode.name != COMPUTE_FIRST:
                names = ", ".join((*(_name(c, cores) for c in range(cores + 1)), COMPUTE_FIRST))
                raise ValueError(f"{where}: mode {mode.name!r} is not one of {names}, which a live run can use")
        return cls(cores=cores, workload=workload, rates=rates)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskWorks:
    """The work of every task of a run: float64 [cycles] each, read-only."""

    forward: WorkArray
    backward: WorkArray
    comm: WorkArray

    @classmethod
    def equal(cls, work: Workload, cycles: int) -> TaskWorks:
        """Build works that are the same in every cycle."""
        return cls(**{task: _frozen(np.full(cycles, getattr(work, task))) for task in _TASKS})

    def tasks(self, first: int, last: int) -> tuple[list[float], list[float]]:
        """Return the works of cycles `first` to `last` - 1: of Comm [n], and of F, B, F, B, ... [2n]."""
        comp = np.stack([self.forward[first:last], self.backward[first:last]], axis=1)
        return self.comm[first:last].tolist(), comp.ravel().tolist()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """One run to simulate: the number of cores, their rates, and the work of every task."""

    cores: int
    works: TaskWorks
    prefetch: int | None
    rates: RateTable
    cost: CostModel | None
    """The formulas that give `rates`; None if the rates were measured."""

    @property
    def cycles(self) -> int:
        """N."""
        return len(self.works.comm)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Every mode of the rate table."""
        return self.rates.modes()

    def lower_bound(self) -> float:
        """Return T* in seconds: no schedule ends earlier (`optimum.lower_bound`)."""
        works = self.works
        return lower_bound(
            modes=self.modes, forward=works.forward, backward=works.backward, comm=works.comm, prefetch=self.prefetch
        )

    def in_shards(self, num_shards: int) -> Scenario:
        """Return this scenario with every Comm and Backward in `num_shards` equal parts, each Backward part after its Comm part.

        A part is a cycle of its own, and only the first part of a batch has its Forward. A slot of the prefetch buffer becomes free
        part by part. Raises ValueError for more than MAX_CYCLES parts, and for parts whose work leaves the range of sizes.
        """
        if self.cycles * num_shards > MAX_CYCLES:
            raise ValueError(f"{self.cycles} cycles in {num_shards} shards are too many parts, must be at most {MAX_CYCLES}")
        forward = np.zeros((self.cycles, num_shards))
        forward[:, 0] = self.works.forward
        parts = TaskWorks(
            forward=_frozen(forward.ravel()),
            backward=_frozen(np.repeat(self.works.backward / num_shards, num_shards)),
            comm=_frozen(np.repeat(self.works.comm / num_shards, num_shards)),
        )
        _check_sizes(parts, self.rates, "scenario")
        return replace(self, works=parts, prefetch=None if self.prefetch is None else self.prefetch * num_shards)

    @classmethod
    def from_text(cls, text: str) -> Scenario:
        """Read a JSON document. Raises ValueError as `from_json`, and for invalid JSON or a duplicate key."""
        return cls.from_json(read_json(text, "scenario"))

    @classmethod
    def from_json(cls, data: Any) -> Scenario:
        """Read {"cores", "cycles", "forward", "backward", "comm", "prefetch"?} and "cost" or "modes".

        `forward`, `backward` and `comm` are each one number for all cycles, or one number per cycle. A task with work 0 takes no
        time. Raises ValueError.
        """
        where = "scenario"
        check_keys(data, required=("cores", "cycles", *_TASKS), optional=("prefetch", "cost", "modes"), where=where)
        cores = whole(data, "cores", where, least=1, most=MAX_CORES)
        if cores == 1:
            raise ValueError(f"{where}: 'cores' is 1; with one core there is nothing to split, use 2 or more cores")
        cycles = whole(data, "cycles", where, least=1, most=MAX_CYCLES)
        prefetch = data.get("prefetch")
        if prefetch is not None:
            prefetch = whole(data, "prefetch", where, least=1, most=None)
        works = TaskWorks(**{task: _works(data, task, cycles, where) for task in _TASKS})
        rates, cost = _rates_and_cost(data, cores, where)
        _check_sizes(works, rates, where)
        return cls(cores=cores, prefetch=prefetch, rates=rates, cost=cost, works=works)


def _works(data: Mapping[str, Any], task: str, cycles: int, where: str) -> WorkArray:
    value = data[task]
    if not isinstance(value, list):
        work = not_negative(value, repr(task), where)
        return _frozen(np.full(cycles, work))
    if len(value) != cycles:
        raise ValueError(f"{where}: {task!r} lists {len(value)} works for {cycles} cycles; give one for each or one for all")
    return _frozen(np.array([not_negative(work, f"{task}[{n}]", where) for n, work in enumerate(value)]))


def _check_sizes(works: TaskWorks, rates: RateTable, where: str) -> None:
    sizes = {"work of comm": works.comm, "work of forward": works.forward, "work of backward": works.backward}
    for mode in rates.modes():
        sizes[f"rate of {mode.name}"] = np.array([mode.comm_rate, mode.comp_rate])
    for name, values in sizes.items():
        odd = values[(values > MAX_SIZE) | ((values > 0) & (values < 1 / MAX_SIZE))]
        if len(odd):
            rule = f"choose units in which it is 0 or in {1 / MAX_SIZE:g} .. {MAX_SIZE:g}"
            raise ValueError(f"{where}: a {name} is {odd[0]:g}; {rule}")


def _frozen(array: WorkArray) -> WorkArray:
    array.flags.writeable = False
    return array


def _rates_and_cost(data: Mapping[str, Any], num_cores: int, where: str) -> tuple[RateTable, CostModel | None]:
    if ("cost" in data) == ("modes" in data):
        raise ValueError(f"{where}: give 'cost' or 'modes'" + (", not both" if "cost" in data else ""))
    if "modes" in data:
        return _rates_of_modes(data["modes"], num_cores, where), None
    cost = _cost(data["cost"], where)
    return cost.rates(num_cores), cost


def _cost(data: Any, where: str) -> CostModel:
    names = tuple(field.name for field in fields(CostModel))
    here = f"{where} 'cost'"
    check_keys(data, required=names, where=here)
    return CostModel(**{name: number(data, name, here) for name in names})


def _rates_of_modes(modes: Any, num_cores: int, where: str) -> RateTable:
    """Build the table. A mode's index is its number of comm cores: comp-only 0, split:<c> c, comm-only C; others are shared."""
    if not isinstance(modes, list):
        raise ValueError(f"{where}: 'modes' is {shown(modes)}; it must be a list")
    table: dict[int, Mode] = {}
    shared: dict[str, Mode] = {}
    for data in modes:
        check_keys(data, required=("name", "comm_rate", "comp_rate"), optional=_MEASURED, where=f"{where} 'modes'")
        name = data["name"]
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: the mode {shown(name)} needs a name")
        here = f"{where} mode {name!r}"
        mode = Mode(name=name, comm_rate=number(data, "comm_rate", here), comp_rate=number(data, "comp_rate", here))
        _check_measured(data, here)
        place = _place(name, num_cores, where)
        if name in shared or place in table:
            raise ValueError(f"{where}: mode {name!r} is given twice")
        if place is None:
            shared[name] = mode
        else:
            table[place] = mode
    missing = [_name(c, num_cores) for c in range(num_cores + 1) if c not in table]
    if missing:
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise ValueError(f"{where}: the modes lack {', '.join(missing[:_MOST_NAMED])}{more}")
    return RateTable(
        comm=tuple(table[c].comm_rate for c in range(num_cores + 1)),
        comp=tuple(table[c].comp_rate for c in range(num_cores + 1)),
        shared=tuple(shared.values()),
    )


def _check_measured(data: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for invalid measurement fields of a mode: intervals of rates, counts of tasks, a share of CPU time."""
    for key in _INTERVALS:
        interval = data.get(key)
        if interval is None:
            continue
        if not isinstance(interval, list) or len(interval) != 2:
            raise ValueError(f"{where}: {key!r} is {shown(interval)}; it must be [low, high] or null")
        low, high = (not_negative(rate, f"{key}[{n}]", where, "a rate") for n, rate in enumerate(interval))
        if low > high:
            raise ValueError(f"{where}: {key!r} is {shown(interval)}; the lower end comes first")
    for key in _COUNTS:
        if key in data:
            whole(data, key, where, least=0, most=None)
    for key in _SHARES:
        if data.get(key) is not None:
            not_negative(data[key], repr(key), where, "a share")


def _place(name: str, num_cores: int, where: str) -> int | None:
    if name == _COMP_ONLY:
        return 0
    if name == _COMM_ONLY:
        return num_cores
    match = _SPLIT.fullmatch(name)
    if match is None:
        if re.sub("[^a-z]", "", name.lower()) in ("split", "componly", "commonly"):
            raise ValueError(f"{where}: mode {shown(name)} is not spelled as one of split:<c>, {_COMP_ONLY} and {_COMM_ONLY}")
        return None
    c = int(match[1])
    if not 1 <= c < num_cores:
        raise ValueError(f"{where}: mode {name!r} is no split of {num_cores} cores; comm can have 1..{num_cores - 1}")
    return c


def _name(c: int, num_cores: int) -> str:
    return _COMP_ONLY if c == 0 else _COMM_ONLY if c == num_cores else f"split:{c}"
