"""`adaptive` is as near to the optimum as events allow, and what it knows of the rest of a run is exact."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import Scenario, VariedRun, scenarios, varied_runs

from scheduler.adaptive import Adaptive
from scheduler.cost import Mode, RateTable, Workload
from scheduler.plan import Frontier, lower_bound
from scheduler.remaining import AnyCycles, EqualCycles, LimitedCycles, Pace, remaining_of
from scheduler.scenario import TaskWorks
from scheduler.simulator import simulate
from scheduler.state import Allocation, State
from scheduler.view import View

GRID = list(product((4, 6, 8, 10, 12), ((1, 1), (2, 1), (1, 2), (1, 4), (4, 1))))
COSTS = {
    "as in the figures": lambda cores: {"a1": 6 / cores, "a2": 1 / cores, "b1": 0.12, "b2": 0.08, "b3": math.e},
    "the same for every device": lambda cores: {"a1": 1.0, "a2": 0.07, "b1": 0.1, "b2": 0.2, "b3": 2.0},
    "linear": lambda cores: {"a1": 1.0, "a2": 0.08, "b1": 0.2, "b2": 0.0, "b3": 1.0},
    "logarithmic": lambda cores: {"a1": 1.0, "a2": 0.05, "b1": 0.02, "b2": 0.5, "b3": 3.0},
    "cores hardly matter": lambda cores: {"a1": 1.0, "a2": 0.02, "b1": 0.05, "b2": 0.1, "b3": 5.0},
}


@pytest.mark.parametrize(("cycles", "most"), [(20, 0.01), (200, 0.002)])
@pytest.mark.parametrize("family", COSTS)
def test_ends_near_the_bound_and_never_behind_a_split(family: str, cycles: int, most: float) -> None:
    for cores, (x, y) in GRID:
        for comp_tasks in (1, 2):  # x is the work of each comp task, or of both together
            data = {"cores": cores, "cycles": cycles, "forward": x / comp_tasks, "backward": x / comp_tasks, "comm": y}
            run = VariedRun.from_json({**data, "cost": COSTS[family](cores)})
            makespan = simulate(run, "adaptive").makespan
            best_split = min(simulate(run, f"static:{c}").makespan for c in range(1, cores))
            assert makespan <= (1 + most) * run.lower_bound(), (data, makespan)
            assert makespan <= 1.001 * best_split, (data, makespan)


@given(run=varied_runs(max_cycles=30))
@settings(max_examples=150, deadline=None)
def test_keeps_near_the_bound_with_varied_works_and_a_full_buffer(run: VariedRun) -> None:
    """Short runs of wild works: what switching at events only can cost there is bounded by about one task."""
    longest = max(
        run.works.comm.max() / min(run.rates.comm[1:]),
        max(run.works.forward.max(), run.works.backward.max()) / min(run.rates.comp[:-1]),
    )
    assert simulate(run, "adaptive").makespan <= run.lower_bound() + longest


def view_of(run: VariedRun, *, num_comm: int, num_comp: int, left: tuple[float, float]) -> View:
    comm, comp = run.works.tasks(0, run.cycles)
    state = State(
        cycles=run.cycles,
        num_comm=num_comm,
        num_forward=(num_comp + 1) // 2,
        num_backward=num_comp // 2,
        prefetch=run.prefetch,
    )
    return View.of(
        state,
        num_cores=run.cores,
        comm_left=left[0] * comm[num_comm],
        comp_left=left[1] * comp[num_comp],
        works=run.works,
        rates=run.rates,
    )


def rest_of(run: VariedRun, view: View) -> float:
    """T* of the rest of a run without a limit, as the T* of a run: what comm still has to wait for is its first Forward."""
    i, q, works = view.num_comm, view.num_forward + view.num_backward, run.works
    _, comp = works.tasks(0, run.cycles)
    until_wait = view.comp_left + sum(comp[q + 1 : 2 * i + 1])
    return lower_bound(
        modes=run.modes,
        forward=np.array([until_wait, *works.forward[i + 1 :]]),
        backward=works.backward[i:],
        comm=np.array([view.comm_left, *works.comm[i + 1 :]]),
    )


@given(
    run=varied_runs(max_cycles=10),
    counts=st.tuples(st.integers(0, 9), st.integers(0, 19)),
    left=st.tuples(*[st.floats(0.01, 1)] * 2),
)
@settings(max_examples=300, deadline=None)
def test_the_rest_of_a_run_is_worth_its_own_optimum(run: VariedRun, counts: tuple[int, int], left: tuple[float, float]) -> None:
    num_comm = counts[0] % run.cycles
    num_comp = min(counts[1], 2 * num_comm)  # what can have been trained with so many batches
    view = view_of(run, num_comm=num_comm, num_comp=num_comp, left=left)
    pace = Pace(frontier=Frontier.of(run.modes), comp_alone=run.rates.comp[0])
    rest = AnyCycles(run.works, run.cycles)
    position = rest.position(view)
    assert rest.time(num_comm, num_comp, *position, pace) == pytest.approx(rest_of(run, view), rel=1e-9, abs=1e-12)


@given(run=varied_runs())
@settings(max_examples=150, deadline=None)
def test_from_the_start_the_rest_is_the_bound(run: VariedRun) -> None:
    pace = Pace(frontier=Frontier.of(run.modes), comp_alone=run.rates.comp[0])
    rest = remaining_of(run.works, run.cycles, run.prefetch)
    assert rest.time(0, 0, 0.0, 0.0, pace) == pytest.approx(run.lower_bound(), rel=1e-9, abs=1e-12)


@given(
    scenario=scenarios(is_monotone=True),
    counts=st.tuples(st.integers(0, 11), st.integers(0, 23)),
    left=st.tuples(*[st.floats(0.01, 1)] * 2),
)
@settings(max_examples=150, deadline=None)
def test_equal_cycles_are_a_case_of_any(scenario: Scenario, counts: tuple[int, int], left: tuple[float, float]) -> None:
    work, cycles = scenario.work, scenario.cycles
    works = TaskWorks(
        forward=np.full(cycles, work.forward), backward=np.full(cycles, work.backward), comm=np.full(cycles, work.comm)
    )
    run = VariedRun(cores=scenario.num_cores, works=works, prefetch=None, rates=scenario.rates, cost=None)
    num_comm = counts[0] % cycles
    num_comp = min(counts[1], 2 * num_comm)
    view = view_of(run, num_comm=num_comm, num_comp=num_comp, left=left)
    pace = Pace(frontier=Frontier.of(run.modes), comp_alone=run.rates.comp[0])
    equal, varied = EqualCycles(work, cycles), AnyCycles(works, cycles)
    assert equal.position(view) == pytest.approx(varied.position(view))
    assert equal.cycle_end(num_comp // 2) == pytest.approx(varied.cycle_end(num_comp // 2))
    there = varied.position(view)
    expected = varied.time(num_comm, num_comp, *there, pace)
    assert equal.time(num_comm, num_comp, *there, pace) == pytest.approx(expected, rel=1e-9)
    done = varied.cycle_end(cycles - 1)
    assert equal.time(cycles, 2 * cycles, done, cycles * work.comm, pace) == pytest.approx(0, abs=1e-9 * done)


@given(run=varied_runs(), counts=st.tuples(st.integers(0, 11), st.integers(0, 23)), left=st.tuples(*[st.floats(0.01, 1)] * 2))
@settings(max_examples=150, deadline=None)
def test_a_limit_never_makes_the_rest_shorter(run: VariedRun, counts: tuple[int, int], left: tuple[float, float]) -> None:
    num_comm = counts[0] % run.cycles
    num_comp = min(counts[1], 2 * num_comm)
    prefetch = max(1, num_comm + 1 - num_comp // 2)  # so that this state can be
    view = view_of(run, num_comm=num_comm, num_comp=num_comp, left=left)
    pace = Pace(frontier=Frontier.of(run.modes), comp_alone=run.rates.comp[0])
    free, limited = AnyCycles(run.works, run.cycles), LimitedCycles(run.works, run.cycles, prefetch)
    there = free.position(view)
    assert limited.position(view) == there
    least = free.time(num_comm, num_comp, *there, pace)
    assert limited.time(num_comm, num_comp, *there, pace) >= least * (1 - 1e-9)


def a_view(rates: RateTable | None, *, num_cores: int, works: Workload) -> View:
    return View.of(
        State.initial(cycles=50), num_cores=num_cores, comm_left=works.comm, comp_left=works.forward, works=works, rates=rates
    )


def test_on_two_cores_without_rates_there_is_one_split() -> None:
    work = Workload(forward=0.5, backward=0.5, comm=1.0)
    assert Adaptive().choose(a_view(None, num_cores=2, works=work)) == Allocation.split(1, 2)
    assert Adaptive().choose(a_view(None, num_cores=1, works=work)) == Allocation.all_comp(1)


def test_a_shared_mode_is_used_where_it_is_worth_it() -> None:
    work = Workload(forward=0.5, backward=0.5, comm=0.5)
    for comp_rate, expected in ((1.95, Allocation.sharing("compute-first", 2)), (1.0, Allocation.split(1, 2))):
        first = Mode(name="compute-first", comm_rate=1.0, comp_rate=comp_rate)
        rates = RateTable(comm=(0.0, 1.0, 1.5), comp=(2.0, 1.2, 0.0), shared=(first,))
        assert Adaptive().choose(a_view(rates, num_cores=2, works=work)) == expected


def test_learnt_works_that_hardly_change_do_not_draw_the_line_again() -> None:
    rates = RateTable(comm=(0.0, 1.0, 1.5), comp=(2.0, 1.2, 0.0))
    policy = Adaptive()
    drawn = []
    for forward in (0.5, 0.502, 0.6):
        policy.choose(a_view(rates, num_cores=2, works=Workload(forward=forward, backward=1 - forward, comm=1.0)))
        drawn.append(policy._remaining)
    assert drawn[0] is drawn[1] is not drawn[2]
