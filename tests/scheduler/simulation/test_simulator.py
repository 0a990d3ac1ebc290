"""The simulator obeys the model's rules and agrees with the live loop's controller, and no policy beats the bound."""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import Scenario, VariedRun, rounding_of, scenarios, varied_runs
from virtual_time import drive

from scheduler.control.controller import Controller
from scheduler.model.cost import RateTable
from scheduler.model.scenario import TaskWorks
from scheduler.model.state import Allocation, Reason, Task
from scheduler.policies.dynamic import solve
from scheduler.policies.registry import POLICIES, make_policy
from scheduler.policies.simple import Unpinned
from scheduler.policies.view import View
from scheduler.simulation.simulator import (
    ROUNDING,
    SimulatedRun,
    drawn_makespans,
    random_makespans,
    simulable_policies,
    simulate,
    simulate_policy,
)

COST = {"a1": 1.5, "a2": 0.2, "b1": 0.2, "b2": 0.3, "b3": 3.0}


def run_of(**changes: Any) -> VariedRun:
    data = {"cores": 4, "cycles": 5, "forward": 1.0, "backward": 2.0, "comm": 1.5, "cost": COST} | changes
    return VariedRun.from_json(data)


def as_varied(scenario: Scenario) -> VariedRun:
    work, cycles = scenario.work, scenario.cycles
    works = TaskWorks(
        forward=np.full(cycles, work.forward), backward=np.full(cycles, work.backward), comm=np.full(cycles, work.comm)
    )
    return VariedRun(cores=scenario.num_cores, works=works, prefetch=scenario.prefetch, rates=scenario.rates, cost=None)


def names_of(run: VariedRun) -> list[str]:
    """Every policy, but of the splits only the two outermost."""
    names = simulable_policies(run)
    return [name for name in names if not name.startswith("static:") or name in ("static:1", f"static:{run.cores - 1}")]


@given(run=varied_runs(), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_no_task_runs_before_its_dependencies(run: VariedRun, seed: int) -> None:
    for name in names_of(run):
        simulated = simulate(run, name, seed=seed, record=True)
        began = {(span.task, span.index): span.start for span in simulated.spans}
        ended = {(span.task, span.index): span.end for span in simulated.spans}
        assert Counter(span.task for span in simulated.spans) == dict.fromkeys(Task, run.cycles)
        for n in range(run.cycles):
            assert began[Task.BACKWARD, n] >= max(ended[Task.COMM, n], ended[Task.FORWARD, n])
            if n > 0:
                assert began[Task.COMM, n] >= ended[Task.COMM, n - 1]
                assert began[Task.FORWARD, n] >= ended[Task.BACKWARD, n - 1]
            if run.prefetch is not None and n >= run.prefetch:
                assert began[Task.COMM, n] >= ended[Task.BACKWARD, n - run.prefetch]
        assert max(ended.values()) == simulated.makespan


@given(run=varied_runs(), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_interval_uses_the_cores_as_it_may_and_all_work_is_done(run: VariedRun, seed: int) -> None:
    for name in names_of(run):
        simulated = simulate(run, name, seed=seed, record=True)
        comm_work = comp_work = now = 0.0
        assert len(simulated.intervals) == simulated.num_events
        for interval in simulated.intervals:
            assert interval.start == now <= interval.end
            now = interval.end
            allocation, reason = interval.allocation, interval.reason
            comm_rate, comp_rate = rates_of(run.rates, allocation)
            if reason is Reason.COMP_BLOCKED:
                assert allocation == Allocation.all_comm(run.cores)
            elif reason in (Reason.COMM_DONE, Reason.COMM_BLOCKED):
                assert allocation == Allocation.all_comp(run.cores)
            else:
                assert reason is Reason.POLICY
            comm_work += comm_rate * (interval.end - interval.start)
            comp_work += comp_rate * (interval.end - interval.start)
        assert now == simulated.makespan
        # An interval is the difference of two times, each off by a rounding; and what is left of a task at its end is dropped.
        off_s = 2 * sys.float_info.epsilon * simulated.num_events * simulated.makespan
        comm, comp = run.works.comm.sum(), run.works.forward.sum() + run.works.backward.sum()
        assert abs(comm_work - comm) <= 2 * ROUNDING * comm + off_s * max(run.rates.comm)
        assert abs(comp_work - comp) <= 2 * ROUNDING * comp + off_s * max(run.rates.comp)


def rates_of(rates: RateTable, allocation: Allocation) -> tuple[float, float]:
    if allocation.shared is None:
        assert allocation.comm + allocation.comp == rates.num_cores
        return rates.comm[allocation.comm], rates.comp[allocation.comm]
    (mode,) = [mode for mode in rates.shared if mode.name == allocation.shared]
    return mode.comm_rate, mode.comp_rate


@given(run=varied_runs(is_monotone=False), seed=st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_no_policy_beats_the_bound(run: VariedRun, seed: int) -> None:
    least = run.lower_bound()
    for name in names_of(run):
        assert simulate(run, name, seed=seed).makespan >= least - rounding_of(run)


@given(run=varied_runs(is_monotone=False))
@settings(max_examples=100, deadline=None)
def test_both_priorities_take_the_same_time(run: VariedRun) -> None:
    """Section V-A of the paper: exclusive time slices have the same sum in either order."""
    alone = run.works.comm.sum() / run.rates.comm[-1] + (run.works.forward + run.works.backward).sum() / run.rates.comp[0]
    for name in ("comm-priority", "comp-priority"):
        assert abs(simulate(run, name).makespan - alone) <= rounding_of(run)


@given(run=varied_runs(is_monotone=False))
@settings(max_examples=150, deadline=None)
def test_dynamic_takes_the_time_that_its_plan_has(run: VariedRun) -> None:
    comm, comp = run.works.tasks(0, run.cycles)
    plan = solve(comm=comm, comp=comp, rates=run.rates, prefetch=run.prefetch)
    assert abs(simulate(run, "dynamic").makespan - plan.makespan) <= 2 * rounding_of(run)  # of either


@given(scenario=scenarios(min_cores=3), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_live_controller_decides_alike_from_times_alone(scenario: Scenario, seed: int) -> None:
    """The same events through `Controller.handle`, which must infer the remaining work."""
    run = as_varied(scenario)
    plans = {"dynamic", "adaptive"}  # live, dynamic plans no further than HORIZON, and adaptive does not plan
    for name in [name for name in names_of(run) if name not in plans]:
        controller = Controller(
            policy=make_policy(name, num_cores=scenario.num_cores, seed=seed),
            cycles=scenario.cycles,
            num_cores=scenario.num_cores,
            prefetch=scenario.prefetch,
            profile=scenario.profile,
        )
        live = drive(controller, scenario.rates, scenario.work)
        assert live.makespan == pytest.approx(simulate(run, name, seed=seed).makespan, rel=1e-6)


class Drawn:
    """`random` with the draws of one of many runs. With these works no two tasks end together."""

    name = "drawn"
    is_work_conserving = True

    def __init__(self, draws: list[npt.NDArray[np.int64]], run: int) -> None:
        self.draws, self.run = draws, run

    def choose(self, view: View) -> Allocation:
        event = view.num_comm + view.num_forward + view.num_backward
        return Allocation.split(int(self.draws[event][self.run]), view.num_cores)


@given(run=varied_runs(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_many_random_runs_at_once_are_as_many_single_runs(run: VariedRun, seed: int) -> None:
    works = run.works
    run = VariedRun(
        cores=run.cores,
        works=TaskWorks(forward=works.forward + 0.1, backward=works.backward + 0.1, comm=works.comm + 0.1),
        prefetch=run.prefetch,
        rates=run.rates,
        cost=None,
    )
    generator = np.random.default_rng(seed)
    draws: list[npt.NDArray[np.int64]] = []

    def draw() -> npt.NDArray[np.int64]:
        draws.append(generator.integers(1, run.cores, size=5))
        return draws[-1]

    makespans = drawn_makespans(run, draw)
    singles = [simulate_policy(run, Drawn(draws, number)).makespan for number in range(5)]
    assert makespans.tolist() == pytest.approx(singles, rel=1e-12)
    assert random_makespans(run, runs=5, seed=seed).tolist() == makespans.tolist()


def test_random_runs_spread_around_single_runs() -> None:
    run = run_of(cores=6, cycles=30, cost=COST | {"a2": 0.15})
    many = random_makespans(run, runs=400, seed=1)
    singles = [simulate(run, "random", seed=seed).makespan for seed in range(200)]
    assert many.shape == (400,)
    assert many.std() > 0
    assert many.mean() == pytest.approx(np.mean(singles), rel=0.01)
    with pytest.raises(ValueError, match="random runs is 0; it must be at least 1"):
        random_makespans(run, runs=0, seed=1)


def test_a_run_by_hand() -> None:
    """Two cores, one slot. Rates: comm alone 2/s, comp alone 1/s; both in parallel 1/s and 0.5/s."""
    modes = [("comp-only", 0.0, 1.0), ("split:1", 1.0, 0.5), ("comm-only", 2.0, 0.0)]
    run = VariedRun.from_json(
        {
            "cores": 2,
            "cycles": 2,
            "forward": [1.0, 2.0],
            "backward": 1.0,
            "comm": 3.0,
            "prefetch": 1,
            "modes": [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, comm, comp in modes],
        }
    )
    simulated = simulate(run, "static:1", record=True)
    assert [(i.start, i.end, str(i.allocation), i.reason) for i in simulated.intervals] == [
        (0.0, 2.0, "comm 1 | comp 1", Reason.POLICY),  # F1; 2 of the 3 of Comm 1
        (2.0, 2.5, "all to comm", Reason.COMP_BLOCKED),
        (2.5, 3.5, "all to comp", Reason.COMM_BLOCKED),  # B1
        (3.5, 6.5, "comm 1 | comp 1", Reason.POLICY),  # Comm 2; 1.5 of the 2 of F2
        (6.5, 7.0, "all to comp", Reason.COMM_DONE),
        (7.0, 8.0, "all to comp", Reason.COMM_DONE),
    ]
    assert [(span.task.value, span.index, span.start, span.end) for span in simulated.spans] == [
        ("forward", 0, 0.0, 2.0),
        ("comm", 0, 0.0, 2.5),
        ("backward", 0, 2.5, 3.5),
        ("comm", 1, 3.5, 6.5),
        ("forward", 1, 3.5, 7.0),
        ("backward", 1, 7.0, 8.0),
    ]
    assert simulated == SimulatedRun(
        policy="static:1", makespan=8.0, num_events=6, spans=simulated.spans, intervals=simulated.intervals
    )
    assert simulate(run, "static:1") == SimulatedRun(policy="static:1", makespan=8.0, num_events=6)


def test_tasks_that_end_together_are_one_event() -> None:
    modes = [("comp-only", 0.0, 2.0), ("split:1", 1.0, 1.0), ("comm-only", 2.0, 0.0)]
    rows = [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, comm, comp in modes]
    run = VariedRun.from_json({"cores": 2, "cycles": 3, "forward": 0.3, "backward": 0.3, "comm": 0.3, "modes": rows})
    simulated = simulate(run, "static:1", record=True)
    assert simulated.num_events == 6
    assert simulated.makespan == pytest.approx(3 * 0.3 + 3 * 0.15)


def test_a_run_without_any_work_takes_no_time() -> None:
    run = run_of(forward=0, backward=0, comm=0)
    assert run.lower_bound() == 0
    assert {simulate(run, name).makespan for name in simulable_policies(run)} == {0.0}


def test_every_policy_but_the_kernels_can_be_simulated() -> None:
    every_name = {name for kind in POLICIES.values() for name in kind.names(4)}
    assert set(simulable_policies(run_of())) == every_name - {"os-default", "os-tuned", "os-workers", "compute-first", "elastic"}
    with pytest.raises(ValueError, match="policy 'os-default' leaves the cores to the kernel"):
        simulate(run_of(), "os-default")
    with pytest.raises(ValueError, match=r"policy 'static:4': the comm cores must lie in 1\.\.3"):
        simulate(run_of(), "static:4")


def test_seeds_matter_to_random_only() -> None:
    run = run_of(cycles=40)
    assert simulate(run, "random", seed=1) != simulate(run, "random", seed=2)
    assert simulate(run, "random", seed=1) == simulate(run, "random", seed=1)
    assert simulate(run, "adaptive", seed=1) == simulate(run, "adaptive", seed=2)
    assert not math.isnan(simulate(run, "adaptive").makespan)


class Stubborn:
    """Returns a given allocation."""

    name = "stubborn"
    is_work_conserving = True

    def __init__(self, allocation: Allocation) -> None:
        self.allocation = allocation

    def choose(self, view: View) -> Allocation:
        return self.allocation


def test_a_policy_that_divides_other_cores_is_noticed() -> None:
    with pytest.raises(AssertionError, match="'os-default' leaves the cores to the kernel"):
        simulate_policy(run_of(), Unpinned("os-default"))
    for wrong in (Allocation(comm=1, comp=1), Allocation.unpinned(4), Allocation(comm=4, comp=1)):
        with pytest.raises(AssertionError, match=r"stubborn: '.*' does not split 4 cores"):
            simulate_policy(run_of(), Stubborn(wrong))


def test_a_side_that_a_shared_mode_leaves_without_a_rate_does_not_run() -> None:
    modes = [("comp-only", 0.0, 1.0), ("split:1", 1.0, 0.5), ("comm-only", 2.0, 0.0), ("boost", 0.0, 2.0)]
    rows = [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, comm, comp in modes]
    run = VariedRun.from_json({"cores": 2, "cycles": 1, "forward": 2.0, "backward": 1.0, "comm": 2.0, "modes": rows})
    simulated = simulate_policy(run, Stubborn(Allocation.sharing("boost", 2)), record=True)
    assert [(span.task.value, span.start, span.end) for span in simulated.spans] == [
        ("forward", 0.0, 1.0),
        ("comm", 1.0, 2.0),
        ("backward", 2.0, 3.0),
    ]


def test_many_runs_may_end_after_different_numbers_of_events() -> None:
    """With split 1 every Comm ends together with a comp task, with split 2 no Comm does, so the runs have different events."""
    modes = [("comp-only", 0.0, 1.0), ("split:1", 1.0, 1.0), ("split:2", 0.7, 1.0), ("comm-only", 1.0, 0.0)]
    rows = [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, comm, comp in modes]
    data = {"cores": 3, "cycles": 4, "forward": 1 / 3, "backward": 1 / 3, "comm": 1 / 3, "modes": rows}
    run = VariedRun.from_json(data)
    singles = [simulate(run, name) for name in ("static:1", "static:2")]
    assert singles[0].num_events < singles[1].num_events
    together = drawn_makespans(run, lambda: np.array([1, 2]))
    assert together.tolist() == pytest.approx([single.makespan for single in singles], rel=1e-12)


@pytest.mark.parametrize(
    ("forward", "backward", "comm"),
    [
        ([0.7, 0.6], [0.1, 0.1], [0.4, 0.4]),
        ([0.4, 0.1], [0.1, 0.7], [0.1, 0.3]),
        ([0.5, 0.8], [0.3, 0.5], [0.1, 0.7]),
        ([0.9, 0.1], [0.1, 0.8], [0.6, 0.5]),
    ],
    ids=["comm a little later", "forward a little later", "backward a little later", "both"],
)
def test_ends_that_differ_by_rounding_are_one_event(forward: list[float], backward: list[float], comm: list[float]) -> None:
    """Sums of tenths are inexact in floats: without a tolerance, a second event would follow after 1e-17 s."""
    modes = [("comp-only", 0.0, 1.0), ("split:1", 1.0, 1.0), ("comm-only", 1.0, 0.0)]
    rows = [{"name": name, "comm_rate": comm_rate, "comp_rate": comp_rate} for name, comm_rate, comp_rate in modes]
    run = VariedRun.from_json({"cores": 2, "cycles": 2, "forward": forward, "backward": backward, "comm": comm, "modes": rows})
    single = simulate(run, "static:1", record=True)
    assert min(interval.end - interval.start for interval in single.intervals) > 0.01
    draws = [0]

    def draw() -> npt.NDArray[np.int64]:
        draws[0] += 1
        return np.array([1])

    assert drawn_makespans(run, draw).tolist() == [single.makespan]
    assert draws[0] == single.num_events + 1
