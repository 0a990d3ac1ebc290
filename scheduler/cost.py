"""What a core is worth: the paper's two cost functions, the table of rates they imply, and a device's profile.

A rate is work per second. The unit of work is the profile's own; only rates and workloads of one profile may meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTable:
    """Rates of comm and comp, in work per second, when comm has c = 0..C of C cores and comp the rest.

    Comm's rate is 0 at c = 0 and comp's at c = C (Eq. 12); all others are positive and finite, or ValueError.
    """

    comm: tuple[float, ...]
    comp: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.comm) != len(self.comp) or len(self.comm) < 2:
            raise ValueError(f"a rate table needs the same number of rates for both sides, 2 or more; got {self}")
        num_cores = self.num_cores
        if self.comm[0] != 0 or self.comp[num_cores] != 0:
            raise ValueError(f"a side without cores has rate 0; got comm {self.comm[0]}, comp {self.comp[num_cores]}")
        for c in range(num_cores + 1):
            if c > 0:
                _check_rate("comm", c, num_cores, self.comm[c])
            if c < num_cores:
                _check_rate("comp", c, num_cores, self.comp[c])

    @property
    def num_cores(self) -> int:
        """C."""
        return len(self.comm) - 1

    def resized(self, num_cores: int) -> RateTable:
        """The table when the device has `num_cores` cores instead, each side's rate depending on its own cores only.

        Cores beyond those that were measured are believed to add nothing.
        """
        known = self.num_cores
        return RateTable(
            comm=tuple(self.comm[min(c, known)] for c in range(num_cores + 1)),
            comp=tuple(self.comp[known - min(num_cores - c, known)] for c in range(num_cores + 1)),
        )


def _check_rate(side: str, c: int, num_cores: int, rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"the {side} rate at c={c} comm cores of {num_cores} is {rate:g}; it must be positive and finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """f of Eq. 3 and g of Eq. 4; c is the number of COMM cores in both (the g(y, c_Comp) of Algorithm 2 is a slip)."""

    a1: float
    a2: float
    b1: float
    b2: float
    b3: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value):
                raise ValueError(f"cost parameter {field.name} is {value}; it must be finite")

    def comp_rate(self, c: float) -> float:
        """1 / f(1, c), whatever its sign; 0 where a1 is 0 and the formula has no value."""
        return (1 - self.a2 * c) / self.a1 if self.a1 else 0.0

    def comm_rate(self, c: float) -> float:
        """1 / g(1, c), whatever its sign; 0 at c = 0 (Eq. 12), NaN where the logarithm has no value."""
        if c == 0:
            return 0.0
        if self.b2 == 0:
            return self.b1 * c
        inner = self.b3 * c
        return self.b1 * c + self.b2 * math.log(inner) if inner > 0 else math.nan

    def comp_time(self, x: float, c: float) -> float:
        """f(x, c) = a1 x / (1 - a2 c), in seconds (Eq. 3). ValueError where the rate is not positive."""
        return x / _positive("comp", c, self.comp_rate(c))

    def comm_time(self, y: float, c: float) -> float:
        """g(y, c) = y / (b1 c + b2 ln(b3 c)), in seconds (Eq. 4). ValueError where the rate is not positive."""
        return y / _positive("comm", c, self.comm_rate(c))

    def rates(self, num_cores: int) -> RateTable:
        """The rates at c = 0..num_cores. ValueError naming the first c whose rate is not positive and finite."""
        splits = range(num_cores + 1)
        return RateTable(
            comm=tuple(self.comm_rate(c) for c in splits),
            comp=tuple(self.comp_rate(c) if c < num_cores else 0.0 for c in splits),
        )


def _positive(side: str, c: float, rate: float) -> float:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"the {side} rate at c={c:g} comm cores is {rate:g}; it must be positive and finite")
    return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The work of one cycle's three tasks, in the units of the rates. Positive and finite, or ValueError."""

    forward: float
    backward: float
    comm: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the work '{field.name}' is {value}; it must be positive and finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of a device before a run: its cores, the work of a cycle, and the rates of every split."""

    cores: int
    workload: Workload
    rates: RateTable

    def __post_init__(self) -> None:
        if self.rates.num_cores != self.cores:
            raise ValueError(f"the profile has {self.cores} cores, but rates for {self.rates.num_cores}")

    def check_cores(self, num_cores: int) -> None:
        """ValueError unless the profile is of this many cores."""
        if self.cores != num_cores:
            raise ValueError(
                f"the profile is of {self.cores} cores, and this run has {num_cores};"
                " run on as many cores as were measured, or measure again"
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """Read {"cores", "forward", "backward", "comm"} and "cost" {"a1".."b3"} or "modes" [{"name", "comm_rate", "comp_rate"}].

        The modes are "split:1" to "split:<C-1>", "comp-only" and "comm-only". Anything else is one clear ValueError.
        """
        works = ("forward", "backward", "comm")
        if isinstance(data, Mapping) and "cost" in data and "modes" in data:
            raise ValueError("profile: give 'cost' or 'modes', not both")
        table = "modes" if isinstance(data, Mapping) and "modes" in data else "cost"
        _check_keys(data, ("cores", *works, table), "profile")
        cores = data["cores"]
        if isinstance(cores, bool) or not isinstance(cores, int) or cores < 1:
            raise ValueError(f"profile: 'cores' is {cores!r}; it must be a whole number, at least 1")
        numbers = {key: _number(data, key, "profile") for key in works}
        rates = _rates_of_cost(data["cost"], cores) if table == "cost" else _rates_of_modes(data["modes"], cores)
        return cls(cores=cores, workload=Workload(**numbers), rates=rates)


def _rates_of_cost(cost: Any, num_cores: int) -> RateTable:
    names = tuple(field.name for field in fields(CostModel))
    _check_keys(cost, names, "profile 'cost'")
    return CostModel(**{name: _number(cost, name, "profile 'cost'") for name in names}).rates(num_cores)


def _rates_of_modes(modes: Any, num_cores: int) -> RateTable:
    """A mode's place in the table is the number of its comm cores: comp-only 0, split:<c> c, comm-only C."""
    place = {"comp-only": 0, "comm-only": num_cores} | {f"split:{c}": c for c in range(1, num_cores)}
    if not isinstance(modes, list):
        raise ValueError(f"profile: 'modes' is {type(modes).__name__}; it must be a list")
    found: dict[int, tuple[float, float]] = {}
    for mode in modes:
        _check_keys(mode, ("name", "comm_rate", "comp_rate"), "profile 'modes'")
        name = mode["name"]
        if not isinstance(name, str) or name not in place:
            raise ValueError(f"profile: mode {name!r} is not one of {', '.join(place)} ({num_cores} cores)")
        if place[name] in found:
            raise ValueError(f"profile: mode {name!r} is given twice")
        where = f"profile mode {name!r}"
        found[place[name]] = _number(mode, "comm_rate", where), _number(mode, "comp_rate", where)
    missing = [name for name, c in place.items() if c not in found]
    if missing:
        raise ValueError(f"profile: the modes lack {', '.join(missing)}")
    return RateTable(
        comm=tuple(found[c][0] for c in range(num_cores + 1)),
        comp=tuple(found[c][1] for c in range(num_cores + 1)),
    )


def _check_keys(data: Any, expected: tuple[str, ...], where: str) -> None:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object with {', '.join(expected)}; got {type(data).__name__}")
    missing = [key for key in expected if key not in data]
    unknown = [str(key) for key in data if key not in expected]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; the keys are {', '.join(expected)}")


def _number(data: Mapping[str, Any], key: str, where: str) -> float:
    value = data[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{where}: {key!r} is {value!r}; it must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{where}: {key!r} is {number}; it must be finite")
    return number
