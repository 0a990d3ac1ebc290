"""Random runs: any rates and works, drawn by hypothesis as one seed, so that ties are as rare as in real runs."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from scheduler.model.cost import Mode, RateTable, Workload
from scheduler.model.scenario import Profile, TaskWorks, WorkArray
from scheduler.model.scenario import Scenario as VariedRun
from scheduler.simulation.simulator import ROUNDING


@dataclass(frozen=True)
class Scenario:
    cycles: int
    prefetch: int | None
    profile: Profile

    @property
    def num_cores(self) -> int:
        return self.profile.cores

    @property
    def rates(self) -> RateTable:
        return self.profile.rates

    @property
    def work(self) -> Workload:
        return self.profile.workload


def positive(generator: random.Random) -> float:
    return math.exp(generator.uniform(math.log(0.05), math.log(20.0)))


def rounding_s(rates: RateTable, *, comm: float, comp: float) -> float:
    """Return how far rounding may move the end of a run of this work, in seconds.

    A task counts as done with ROUNDING of its work left. Each task may gain or lose that fraction of its time, at worst at the
    slowest rate. The few dozen roundings of float64 before add less than that again.
    """
    slowest_comm = min(rate for rate in (*rates.comm, *(mode.comm_rate for mode in rates.shared)) if rate)
    slowest_comp = min(rate for rate in (*rates.comp, *(mode.comp_rate for mode in rates.shared)) if rate)
    return 2 * ROUNDING * (comm / slowest_comm + comp / slowest_comp)


def rounding_of(run: VariedRun) -> float:
    """Return the same for a run of varied works."""
    return rounding_s(run.rates, comm=run.works.comm.sum(), comp=run.works.forward.sum() + run.works.backward.sum())


@st.composite
def scenarios(
    draw: st.DrawFn, *, min_cores: int = 2, max_cores: int = 12, max_cycles: int = 12, is_monotone: bool = False
) -> Scenario:
    num_cores = draw(st.integers(min_cores, max_cores))
    cycles = draw(st.integers(1, max_cycles))
    prefetch = draw(st.none() | st.integers(1, cycles))
    generator = random.Random(draw(st.integers(0, 2**32)))
    comm = [positive(generator) for _ in range(num_cores)]
    comp = [positive(generator) for _ in range(num_cores)]
    if is_monotone:
        comm.sort()
        comp.sort(reverse=True)
    rates = RateTable(comm=(0.0, *comm), comp=(*comp, 0.0))
    work = Workload(forward=positive(generator), backward=positive(generator), comm=positive(generator))
    return Scenario(cycles=cycles, prefetch=prefetch, profile=Profile(cores=num_cores, workload=work, rates=rates))


@st.composite
def varied_runs(draw: st.DrawFn, *, max_cores: int = 12, max_cycles: int = 12, is_monotone: bool = True) -> VariedRun:
    """Return runs with a separate work for every task, sometimes 0. Sometimes both sides may share the cores."""
    scenario = draw(scenarios(max_cores=max_cores, max_cycles=max_cycles, is_monotone=is_monotone))
    generator = random.Random(draw(st.integers(0, 2**32)))
    zero = draw(st.sampled_from([0.0, 0.0, 0.2]))

    def works() -> WorkArray:
        return np.array([0.0 if generator.random() < zero else positive(generator) for _ in range(scenario.cycles)])

    rates = scenario.rates
    if draw(st.booleans()):
        shared = Mode(name="compute-first", comm_rate=0.5 * rates.comm[-1], comp_rate=0.9 * rates.comp[0])
        rates = RateTable(comm=rates.comm, comp=rates.comp, shared=(shared,))
    return VariedRun(
        cores=scenario.num_cores,
        works=TaskWorks(forward=works(), backward=works(), comm=works()),
        prefetch=scenario.prefetch,
        rates=rates,
        cost=None,
    )
