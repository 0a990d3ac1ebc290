"""The paper's two cost functions, and the table of rates that comes from them or from measurements.

A rate is work per second. Each profile has its own unit of work: combine only rates and workloads of the same profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One way to use the cores, with the rates of both sides in work per second. One rate may be 0, but not both."""

    name: str
    comm_rate: float
    comp_rate: float

    def __post_init__(self) -> None:
        for side, rate in (("comm", self.comm_rate), ("comp", self.comp_rate)):
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(f"mode {self.name!r}: its {side} rate is {rate:g}; it must be finite and not negative")
        if self.comm_rate == self.comp_rate == 0:
            raise ValueError(f"mode {self.name!r}: both rates are 0; at least one must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class RateTable:
    """Rates of comm and comp, in work per second, for c = 0..C: comm has c of the C cores and comp has the others.

    Comm's rate is 0 at c = 0, and comp's rate is 0 at c = C (Eq. 12). All other rates must be positive and finite. `shared`
    has the modes in which both sides may use every core. Raises ValueError for other values.
    """

    comm: tuple[float, ...]
    comp: tuple[float, ...]
    shared: tuple[Mode, ...] = ()

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
        """Number of cores C."""
        return len(self.comm) - 1

    @property
    def is_monotone(self) -> bool:
        """Whether no rate falls where its side gets more cores."""
        pairs = [*pairwise(self.comm), *pairwise(reversed(self.comp))]
        return all(fewer <= more for fewer, more in pairs)

    def modes(self) -> tuple[Mode, ...]:
        """Return every mode: comp-only, split:1 .. split:<C-1>, comm-only, then the shared modes."""
        names = ["comp-only", *(f"split:{c}" for c in range(1, self.num_cores)), "comm-only"]
        splits = (
            Mode(name=name, comm_rate=comm, comp_rate=comp) for name, comm, comp in zip(names, self.comm, self.comp, strict=True)
        )
        return (*splits, *self.shared)


def _check_rate(side: str, c: int, num_cores: int, rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"the {side} rate at c={c} comm cores of {num_cores} is {rate:g}; it must be positive and finite")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """f of Eq. 3 and g of Eq. 4; c is the number of COMM cores in both (g(y, c_Comp) in Algorithm 2 is an error of the paper)."""

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
        """Return 1 / f(1, c), which may be negative; 0 if a1 is 0, where the formula is undefined."""
        return (1 - self.a2 * c) / self.a1 if self.a1 else 0.0

    def comm_rate(self, c: float) -> float:
        """Return 1 / g(1, c), which may be negative; 0 at c = 0 (Eq. 12), NaN where the logarithm is undefined."""
        if c == 0:
            return 0.0
        if self.b2 == 0:
            return self.b1 * c
        inner = self.b3 * c
        return self.b1 * c + self.b2 * math.log(inner) if inner > 0 else math.nan

    def comp_time(self, x: float, c: float) -> float:
        """Return f(x, c) = a1 x / (1 - a2 c) in seconds (Eq. 3). Raises ValueError if the rate is not positive."""
        return x / _positive("comp", c, self.comp_rate(c))

    def comm_time(self, y: float, c: float) -> float:
        """Return g(y, c) = y / (b1 c + b2 ln(b3 c)) in seconds (Eq. 4). Raises ValueError if the rate is not positive."""
        return y / _positive("comm", c, self.comm_rate(c))

    def rates(self, num_cores: int) -> RateTable:
        """Return the rates at c = 0..num_cores. Raises ValueError, naming the first c whose rate is not positive and finite."""
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
    """The work of one cycle's three tasks, in the unit of the rates. Raises ValueError unless all are positive and finite."""

    forward: float
    backward: float
    comm: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"the work '{field.name}' is {value}; it must be positive and finite")

    def tasks(self, first: int, last: int) -> tuple[list[float], list[float]]:
        """Return the works of cycles `first` to `last` - 1, which are all equal: of Comm [n], and of F, B, F, B, ... [2n]."""
        length = last - first
        return [self.comm] * length, [self.forward, self.backward] * length
