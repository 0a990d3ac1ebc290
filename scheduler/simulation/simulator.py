"""A run in modelled time, exact to rounding: from event to event, with the controller and the policies of the live loop.

Between two events nobody's cores change, so both running tasks advance at constant rates and the next completion is a division
away. Tasks that complete together are one event. What a live run has to infer from times (the work that remains) is known
here, and that is the only difference: `Controller.allocate` decides in both. See docs/model.md.
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
"""Part of a task's work that is rounding, not work: two tasks that end together in exact arithmetic end together here too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One task of cycle `index` (from 0), from the first moment it ran to its end, in seconds of modelled time."""

    task: Task
    index: int
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Who held which cores from `start` to `end` (seconds of modelled time), and why."""

    start: float
    end: float
    allocation: Allocation
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """How a run went: its makespan in seconds of modelled time; `spans` and `intervals` are empty unless recorded."""

    policy: str
    makespan: float
    num_events: int
    spans: tuple[Span, ...] = ()
    intervals: tuple[Interval, ...] = ()


def simulate(scenario: Scenario, name: str, *, seed: int = 0, record: bool = False) -> SimulatedRun:
    """One run of `scenario` under the policy of this name; `seed` feeds `random`.

    ValueError for a policy that does not exist, cannot be on these cores, or leaves the cores to a kernel.
    """
    policy = make_policy(name, num_cores=scenario.cores, seed=seed, horizon=None)
    if not policy.is_work_conserving:
        raise ValueError(
            f"policy '{name}' leaves the cores to a kernel, which no model here describes; measure it with edge-student compare"
        )
    if not _has_its_mode(kind_of(name), scenario):
        raise ValueError(f"policy '{name}' is one shared mode, and the scenario's 'modes' have none of that name")
    return simulate_policy(scenario, policy, record=record)


def simulate_policy(scenario: Scenario, policy: Policy, *, record: bool = False) -> SimulatedRun:
    """One run of `scenario` under this policy. AssertionError unless it is work-conserving and divides the cores that there are."""
    assert policy.is_work_conserving, f"{policy.name} leaves the cores to a kernel, which no model here describes"
    timeline = _Timeline() if record else None
    makespan, num_events = _Run(scenario, policy).play(timeline)
    spans, intervals = timeline.finished() if timeline else ((), ())
    return SimulatedRun(policy=policy.name, makespan=makespan, num_events=num_events, spans=spans, intervals=intervals)


def simulable_policies(scenario: Scenario) -> tuple[str, ...]:
    """Every policy that can be simulated on the scenario's cores: each split of `static`, and the others.

    A policy that is one shared mode is among them where the scenario has that mode.
    """
    kinds = (kind for kind in POLICIES.values() if _has_its_mode(kind, scenario))
    names = (name for kind in kinds for name in kind.names(scenario.cores))
    made = (make_policy(name, num_cores=scenario.cores, seed=0) for name in names)
    return tuple(policy.name for policy in made if policy.is_work_conserving)


def _has_its_mode(kind: PolicyKind, scenario: Scenario) -> bool:
    return kind.shared_mode is None or kind.shared_mode in {mode.name for mode in scenario.rates.shared}


class _Run:
    """One run's works and rates as plain lists: Python reads those fastest."""

    def __init__(self, scenario: Scenario, policy: Policy) -> None:
        self.cycles = scenario.cycles
        self.controller = Controller(policy=policy, cycles=scenario.cycles, num_cores=scenario.cores, prefetch=scenario.prefetch)
        self.works = scenario.works
        self.rates = scenario.rates
        self.prefetch = scenario.prefetch
        # A zero behind the last task: what is left to do once a side is done.
        comm, comp = scenario.works.tasks(0, scenario.cycles)
        self.comm, self.comp = [*comm, 0.0], [*comp, 0.0]

    def play(self, record: _Timeline | None) -> tuple[float, int]:
        """Run to the end: the makespan in seconds, and how many events it took."""
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
                assert comm_cores + comp_cores == num_cores, f"{policy}: '{allocation}' divides other cores than {num_cores}"
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
    """What happened, event by event."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self._spans: dict[tuple[Task, int], tuple[float, float]] = {}

    def extend(self, start: float, end: float, *, comm: int | None, comp: int | None) -> None:
        """The tasks that ran from one event to the next, counted from 0 on either side; None for a side that did not run."""
        if comm is not None:
            self._extend((Task.COMM, comm), start, end)
        if comp is not None:
            self._extend((Task.BACKWARD if comp % 2 else Task.FORWARD, comp // 2), start, end)

    def _extend(self, task: tuple[Task, int], start: float, end: float) -> None:
        began, _ = self._spans.get(task, (start, end))
        self._spans[task] = began, end

    def finished(self) -> tuple[tuple[Span, ...], tuple[Interval, ...]]:
        """Spans in the order of their starts, intervals in that of time."""
        spans = [Span(task=task, index=index, start=start, end=end) for (task, index), (start, end) in self._spans.items()]
        return tuple(sorted(spans, key=lambda span: (span.start, span.end))), tuple(self.intervals)


def random_makespans(scenario: Scenario, *, runs: int, seed: int) -> npt.NDArray[np.float64]:
    """Makespans, in seconds, of `runs` independent runs under `random`: float64 [runs]. ValueError for fewer than one.

    All runs advance together in arrays, one event of each at a time; a run's result is what `simulate_policy` gives for its draws.
    """
    if runs < 1:
        raise ValueError(f"random runs is {runs}; it must be at least 1")
    generator = np.random.default_rng(seed)
    return drawn_makespans(scenario, lambda: generator.integers(1, scenario.cores, size=runs))


def drawn_makespans(scenario: Scenario, draw: Callable[[], npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
    """Makespans of runs whose comm cores are drawn at every event, for all runs at once: `draw` gives int64 [runs] in 1..C-1."""
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
        # A side that waits has rate 0, so its task takes forever.
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
