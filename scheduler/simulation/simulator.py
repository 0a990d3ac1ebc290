"""Simulate a run in modelled time, event by event and exact to rounding, with the controller and policies of the live loop.

Between two events the allocation is constant, so both running tasks advance at constant rates, and one division gives the next
completion. Tasks that complete together are one event. A live run must infer the remaining work from times, but here it is known.
This is the only difference: `Controller.allocate` decides in both. See docs/model.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler.control.controller import Controller
from scheduler.model.scenario import Scenario
from scheduler.model.state import Allocation, Reason, Task
from scheduler.policies.registry import POLICIES, PolicyKind, kind_of, make_policy
from scheduler.policies.view import Policy, View

ROUNDING = 1e-12
"""Share of a task's work below which a residual is a rounding error. So tasks that end together in exact arithmetic do so here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One task of cycle `index` (from 0), from the first time it ran to its end, in seconds of modelled time."""

    task: Task
    index: int
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The allocation from `start` to `end` (seconds of modelled time), and its reason."""

    start: float
    end: float
    allocation: Allocation
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """The result of a run. `makespan` is in seconds of modelled time; `spans` and `intervals` are empty unless recorded."""

    policy: str
    makespan: float
    num_events: int
    spans: tuple[Span, ...] = ()
    intervals: tuple[Interval, ...] = ()


def simulate(scenario: Scenario, name: str, *, seed: int = 0, record: bool = False) -> SimulatedRun:
    """Simulate one run of `scenario` under the policy with this name. `seed` is for `random`.

    Raises ValueError for a policy that does not exist, does not work on this number of cores, or leaves the cores to the kernel.
    """
    policy = make_policy(name, num_cores=scenario.cores, seed=seed, horizon=None)
    if not policy.is_work_conserving:
        raise ValueError(not_modelled(name))
    if not _has_its_mode(kind_of(name), scenario):
        raise ValueError(f"policy '{name}' needs the shared mode of this name, which the scenario's 'modes' lack; add it")
    return simulate_policy(scenario, policy, record=record)


def simulate_policy(scenario: Scenario, policy: Policy, *, record: bool = False) -> SimulatedRun:
    """Simulate one run of `scenario` under this policy. Raises AssertionError unless it is work-conserving and splits all cores."""
    assert policy.is_work_conserving, not_modelled(policy.name)
    timeline = _Timeline() if record else None
    makespan, num_events = _Run(scenario, policy).play(timeline)
    spans, intervals = timeline.finished() if timeline else ((), ())
    return SimulatedRun(policy=policy.name, makespan=makespan, num_events=num_events, spans=spans, intervals=intervals)


def not_modelled(name: str) -> str:
    """Return the error message for a policy that cannot be simulated."""
    return f"policy '{name}' leaves the cores to the kernel, which is not modelled; measure it with edge-student compare"


def simulable_policies(scenario: Scenario) -> tuple[str, ...]:
    """Return every policy that can be simulated on the scenario's cores: each split of `static`, and the others.

    A policy that needs a shared mode is included if the scenario has this mode.
    """
    kinds = (kind for kind in POLICIES.values() if _has_its_mode(kind, scenario))
    names = (name for kind in kinds for name in kind.names(scenario.cores))
    made = (make_policy(name, num_cores=scenario.cores, seed=0) for name in names)
    return tuple(policy.name for policy in made if policy.is_work_conserving)


def _has_its_mode(kind: PolicyKind, scenario: Scenario) -> bool:
    return kind.shared_mode is None or kind.shared_mode in {mode.name for mode in scenario.rates.shared}


class _Run:
    """One run, with works and rates as plain lists because Python reads lists fastest."""

    def __init__(self, scenario: Scenario, policy: Policy) -> None:
        self.cycles = scenario.cycles
        self.controller = Controller(policy=policy, cycles=scenario.cycles, num_cores=scenario.cores, prefetch=scenario.prefetch)
        self.works = scenario.works
        self.rates = scenario.rates
        self.prefetch = scenario.prefetch
        # A zero after the last task: the remaining work of a side that is done.
        comm, comp = scenario.works.tasks(0, scenario.cycles)
        self.comm, self.comp = [*comm, 0.0], [*comp, 0.0]

    def play(self, record: _Timeline | None) -> tuple[float, int]:
        """Run to the end. Returns the makespan in seconds and the number of events."""
        comm, comp, cycles, rates = self.comm, self.comp, self.cycles, self.rates
        allocate, num_cores, policy = self.controller.allocate, rates.num_cores, self.controller.policy.name
        shared = {mode.name: (mode.comm_rate, mode.comp_rate) for mode in rates.shared}
        now, num_events, i, q = 0.0, 0, 0, 0
        comm_left, comp_left = comm[0], comp[0]

        def look() -> View:
            return View(num_cores, cycles, self.prefetch, i, (q + 1) // 2, q // 2, comm_left, comp_left, self.works, rates)

        while q < 2 * cycles:
            num_events += 1
            allocation, reason = allocate(i, (q + 1) // 2, q // 2, look)
            comm_cores, comp_cores = allocation.comm, allocation.comp
            if allocation.shared is None:
                assert comm_cores + comp_cores == num_cores, f"{policy}: '{allocation}' does not split {num_cores} cores"
                comm_rate, comp_rate = rates.comm[comm_cores], rates.comp[comm_cores]
            else:
                comm_rate, comp_rate = shared[allocation.shared]
            # A side that cannot run has no cores (Eq. 13), so its rate is 0.
            comm_time = comm_left / comm_rate if comm_rate else math.inf
            comp_time = comp_left / comp_rate if comp_rate else math.inf
            delta = comm_time if comm_time < comp_time else comp_time
            if record is not None:
                record.intervals.append(Interval(start=now, end=now + delta, allocation=allocation, reason=reason))
                record.extend(now, now + delta, comm=i if comm_rate else None, comp=q if comp_rate else None)
            now += delta
            if comm_time < math.inf:
                comm_left -= comm_rate * delta
                if comm_time <= delta or comm_left <= ROUNDING * comm[i]:
                    i += 1
                    comm_left = comm[i]
            if comp_time < math.inf:
                comp_left -= comp_rate * delta
                if comp_time <= delta or comp_left <= ROUNDING * comp[q]:
                    q += 1
                    comp_left = comp[q]
        return now, num_events


class _Timeline:
    """Records the spans and intervals of a run."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self._spans: dict[tuple[Task, int], tuple[float, float]] = {}

    def extend(self, start: float, end: float, *, comm: int | None, comp: int | None) -> None:
        """Record the tasks that ran between two events, counted from 0 on each side. None: this side did not run."""
        if comm is not None:
            self._extend((Task.COMM, comm), start, end)
        if comp is not None:
            self._extend((Task.BACKWARD if comp % 2 else Task.FORWARD, comp // 2), start, end)

    def _extend(self, task: tuple[Task, int], start: float, end: float) -> None:
        began, _ = self._spans.get(task, (start, end))
        self._spans[task] = began, end

    def finished(self) -> tuple[tuple[Span, ...], tuple[Interval, ...]]:
        """Return the spans ordered by start, and the intervals ordered by time."""
        spans = [Span(task=task, index=index, start=start, end=end) for (task, index), (start, end) in self._spans.items()]
        return tuple(sorted(spans, key=lambda span: (span.start, span.end))), tuple(self.intervals)


def random_makespans(scenario: Scenario, *, runs: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the makespans in seconds of `runs` independent runs under `random`: float64 [runs].

    All runs advance together in arrays, one event of each run per step. Each result equals that of `simulate_policy` for the same
    draws. Raises ValueError for fewer than one run.
    """
    if runs < 1:
        raise ValueError(f"random runs is {runs}; it must be at least 1")
    generator = np.random.default_rng(seed)
    return drawn_makespans(scenario, lambda: generator.integers(1, scenario.cores, size=runs))


def drawn_makespans(scenario: Scenario, draw: Callable[[], npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    """Return the makespans of runs that draw comm cores at every event, all at once: `draw` returns int64 [runs] in 1..C-1."""
    cycles, num_cores = scenario.cycles, scenario.cores
    comm, comp = (np.array([*tasks, 0.0]) for tasks in scenario.works.tasks(0, cycles))
    comm_rates, comp_rates = np.array(scenario.rates.comm), np.array(scenario.rates.comp)
    most_ahead = cycles if scenario.prefetch is None else scenario.prefetch
    drawn = draw()
    num_comm, num_comp = np.zeros_like(drawn), np.zeros_like(drawn)
    comm_left, comp_left = comm[num_comm], comp[num_comp]
    now = np.zeros(len(drawn))
    while (is_running := num_comp < 2 * cycles).any():
        comp_waits = num_comm < (num_comp + 1) // 2
        comm_waits = (num_comm == cycles) | (num_comm - num_comp // 2 >= most_ahead)
        split = np.where(comp_waits, num_cores, np.where(comm_waits, 0, drawn))
        comm_rate, comp_rate = comm_rates[split], comp_rates[split]
        # A waiting side has rate 0, so its task takes infinite time.
        comm_time = np.divide(comm_left, comm_rate, out=np.full_like(now, np.inf), where=comm_rate > 0)
        comp_time = np.divide(comp_left, comp_rate, out=np.full_like(now, np.inf), where=comp_rate > 0)
        delta = np.minimum(comm_time, comp_time)
        now += delta
        comm_left -= comm_rate * delta
        comp_left -= comp_rate * delta
        comm_ends = (comm_time <= delta) | ((comm_rate > 0) & (comm_left <= ROUNDING * comm[num_comm]))
        comp_ends = is_running & ((comp_time <= delta) | ((comp_rate > 0) & (comp_left <= ROUNDING * comp[num_comp])))
        num_comm += comm_ends
        num_comp += comp_ends
        comm_left = np.where(comm_ends, comm[num_comm], comm_left)
        comp_left = np.where(comp_ends, comp[num_comp], comp_left)
        drawn = draw()
    return now
