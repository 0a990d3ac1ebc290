"""`adaptive` follows the buffer. In a simulation it is as near to the optimum as switching at events allows, and its T* of the rest
of a run is exact.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import VariedRun, varied_runs

from scheduler.model.cost import Mode, RateTable, Workload
from scheduler.model.optimum import Frontier, funnel, lower_bound
from scheduler.model.scenario import TaskWorks
from scheduler.model.state import Allocation, State
from scheduler.policies.adaptive import Adaptive
from scheduler.policies.remaining import LimitedCycles, Pace, UnlimitedCycles, remaining_of
from scheduler.policies.view import View
from scheduler.simulation.simulator import simulate, simulate_policy

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
    """Short runs with very different works: switching only at events costs at most about one task."""
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
    """T* of the rest of a run without a limit, computed as T* of a run whose first Forward is the work before the next Backward."""
    i, q, works = view.num_comm, view.num_forward + view.num_backward, run.works
    _, comp = works.tasks(0, run.cycles)
    until_wait = view.comp_left + sum(comp[q + 1 : 2 * i + 1])
    return lower_bound(
        modes=run.modes,
        forward=np.array([until_wait, *works.forward[i + 1 :]]),
        backward=works.backward[i:],
        comm=np.array([view.comm_left, *works.comm[i + 1 :]]),
    )


def rounding_of(run: VariedRun, pace: Pace) -> float:
    """Seconds that rounding may add to the rest of a run or take from it, however short the rest is.

    Where a run is, and where it has to be, are sums of works: each addition may be off by one rounding of the whole sum.
    """
    comm, comp = run.works.comm.sum(), run.works.forward.sum() + run.works.backward.sum()
    whole = float(pace.frontier.cost(comp, comm)) + comp / pace.comp_alone
    return 4 * sys.float_info.epsilon * 3 * run.cycles * whole


@given(
    run=varied_runs(max_cycles=10),
    counts=st.tuples(st.integers(0, 9), st.integers(0, 19)),
    left=st.tuples(*[st.floats(0.01, 1)] * 2),
)
@settings(max_examples=300, deadline=None)
def test_the_rest_of_a_run_is_worth_its_own_optimum(run: VariedRun, counts: tuple[int, int], left: tuple[float, float]) -> None:
    num_comm = counts[0] % run.cycles
    num_comp = min(counts[1], 2 * num_comm)  # cycles that can be trained with this number of batches
    view = view_of(run, num_comm=num_comm, num_comp=num_comp, left=left)
    pace = Pace(frontier=Frontier.of(run.modes), comp_alone=run.rates.comp[0])
    rest = UnlimitedCycles(run.works, run.cycles)
    position = rest.position(view)
    assert abs(rest.time(num_comm, num_comp, *position, pace) - rest_of(run, view)) <= rounding_of(run, pace)


@given(run=varied_runs())
@settings(max_examples=300, deadline=None)
def test_from_the_start_the_rest_is_the_bound(run: VariedRun) -> None:
    pace = Pace(frontier=Frontier.of(run.modes), comp_alone=run.rates.comp[0])
    rest = remaining_of(run.works, run.cycles, run.prefetch)
    assert abs(rest.time(0, 0, 0.0, 0.0, pace) - run.lower_bound()) <= rounding_of(run, pace)


@given(run=varied_runs(), counts=st.tuples(st.integers(0, 11), st.integers(0, 23)), left=st.tuples(*[st.floats(0.01, 1)] * 2))
@settings(max_examples=150, deadline=None)
def test_a_limit_never_makes_the_rest_shorter(run: VariedRun, counts: tuple[int, int], left: tuple[float, float]) -> None:
    num_comm = counts[0] % run.cycles
    num_comp = min(counts[1], 2 * num_comm)
    prefetch = max(1, num_comm + 1 - num_comp // 2)  # so that this state is possible
    view = view_of(run, num_comm=num_comm, num_comp=num_comp, left=left)
    pace = Pace(frontier=Frontier.of(run.modes), comp_alone=run.rates.comp[0])
    free, limited = UnlimitedCycles(run.works, run.cycles), LimitedCycles(run.works, run.cycles, prefetch)
    there = free.position(view)
    assert limited.position(view) == there
    least = free.time(num_comm, num_comp, *there, pace)
    assert limited.time(num_comm, num_comp, *there, pace) >= least - rounding_of(run, pace)


def planner() -> Adaptive:
    return Adaptive(plans=True, has_workers=True, may_change_priority=True)


def follower(*, has_workers: bool = True, may_change_priority: bool = True) -> Adaptive:
    return Adaptive(plans=False, has_workers=has_workers, may_change_priority=may_change_priority)


def at_level(level: int, *, prefetch: int | None = 8, num_cores: int = 4) -> View:
    """A view with this number of batches in the buffer."""
    state = State(cycles=1000, num_comm=500 + level, num_forward=500, num_backward=500, prefetch=prefetch)
    return View.without_rates(state, num_cores)


COMM_FIRST, TRAINING_FIRST = Allocation.elastic(1, 4), Allocation.sharing("compute-first", 4)


@pytest.mark.parametrize("prefetch", [8, None])
def test_the_level_of_the_buffer_decides_who_runs_first(prefetch: int | None) -> None:
    policy, size = follower(), prefetch or 16
    levels = [0, size // 4, size // 2, 3 * size // 4 - 1, 3 * size // 4, size // 2, size // 4, size // 4 - 1, size // 2]
    chosen = [policy.choose(at_level(level, prefetch=prefetch)) for level in levels]
    assert chosen == [COMM_FIRST] * 4 + [TRAINING_FIRST] * 3 + [COMM_FIRST] * 2


def test_comm_has_a_quarter_of_the_cores_and_at_least_one() -> None:
    chosen = [follower().choose(at_level(0, num_cores=num_cores)) for num_cores in (2, 3, 8, 12)]
    assert chosen == [Allocation.elastic(1, 2), Allocation.elastic(1, 3), Allocation.elastic(2, 8), Allocation.elastic(3, 12)]


def test_one_team_gives_comm_cores_and_without_the_right_to_change_priorities_comm_is_held() -> None:
    policy = follower(has_workers=False, may_change_priority=False)
    assert policy.choose(at_level(0)) == Allocation.split(1, 4)
    assert policy.choose(at_level(7)) == Allocation.all_comp(4)


def test_what_it_does_is_known_again_and_the_race_of_an_earlier_version_is_ignored() -> None:
    policy = follower()
    policy.choose(at_level(7))
    resumed = follower()
    resumed.recall(policy.to_json(), "here")
    assert resumed.choose(at_level(4)) == TRAINING_FIRST
    resumed.recall({"num_cores": 2, "race": {}}, "here")
    with pytest.raises(ValueError, match="here: is_filling must be true or false"):
        resumed.recall({"is_filling": 1}, "here")


def a_view(rates: RateTable | None, *, num_cores: int, works: Workload) -> View:
    return View.of(
        State.initial(cycles=50),
        num_cores=num_cores,
        comm_left=works.comm,
        comp_left=works.forward,
        works=TaskWorks.equal(works, 50),
        rates=rates,
    )


def test_one_core_is_for_training_and_needs_no_rates() -> None:
    work = Workload(forward=0.5, backward=0.5, comm=1.0)
    assert planner().choose(a_view(None, num_cores=1, works=work)) == Allocation.all_comp(1)


def test_a_shared_mode_is_used_where_it_is_worth_it() -> None:
    work = Workload(forward=0.5, backward=0.5, comm=0.5)
    for comp_rate, expected in ((1.95, Allocation.sharing("compute-first", 2)), (1.0, Allocation.split(1, 2))):
        first = Mode(name="compute-first", comm_rate=1.0, comp_rate=comp_rate)
        rates = RateTable(comm=(0.0, 1.0, 1.5), comp=(2.0, 1.2, 0.0), shared=(first,))
        assert planner().choose(a_view(rates, num_cores=2, works=work)) == expected


def test_of_equals_comm_gets_ahead() -> None:
    """With rates linear in the cores, all uses of all cores are equally good."""
    rates = RateTable(comm=(0.0, 1.0, 2.0, 3.0, 4.0), comp=(4.0, 3.0, 2.0, 1.0, 0.0))
    state = State(cycles=50, num_comm=10, num_forward=2, num_backward=2, prefetch=None)
    work = TaskWorks.equal(Workload(forward=0.5, backward=0.5, comm=1.0), 50)
    view = View.of(state, num_cores=4, comm_left=1.0, comp_left=0.5, works=work, rates=rates)
    assert planner().choose(view) == Allocation.all_comm(4)


def test_a_buffer_about_to_be_full_is_predicted() -> None:
    """One slot is left. Filling it fast forces training on all cores until Backward ends, which is slow with curved rates."""
    rates = RateTable(comm=(0.0, 2.0, 3.0, 3.5, 3.8), comp=(4.0, 3.8, 3.0, 2.0, 0.0))
    work = TaskWorks.equal(Workload(forward=2.0, backward=2.0, comm=4.0), 50)
    chosen = []
    for prefetch in (2, None):
        state = State(cycles=50, num_comm=3, num_forward=3, num_backward=2, prefetch=prefetch)
        view = View.of(state, num_cores=4, comm_left=0.5, comp_left=2.0, works=work, rates=rates)
        chosen.append(planner().choose(view).comm)
    assert chosen == [1, 2]


@given(run=varied_runs(max_cycles=20), steps=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_with_a_limit_the_rest_is_hardly_more_than_its_optimum(run: VariedRun, steps: int) -> None:
    """Along a real run, compared with the funnel of all gates to the end."""
    prefetch = run.prefetch or 2
    pace = Pace(frontier=Frontier.of(run.modes), comp_alone=run.rates.comp[0])
    limited = LimitedCycles(run.works, run.cycles, prefetch)
    asked = Asked()
    simulate_policy(replace(run, prefetch=prefetch), asked)
    for view in asked.views[steps : steps + 1]:
        position = limited.position(view)
        done = view.num_comm, view.num_forward + view.num_backward
        nearly = limited.time(*done, *position, pace)
        exact = exact_rest(limited, view, pace)
        assert exact - rounding_of(run, pace) <= nearly <= exact * 1.1
        faster = Pace(frontier=Frontier.of([doubled(mode) for mode in run.modes]), comp_alone=2 * run.rates.comp[0])
        assert limited.time(*done, *position, faster) == pytest.approx(nearly / 2)


def exact_rest(limited: LimitedCycles, view: View, pace: Pace) -> float:
    """The seconds of the rest along the taut string through every gate to the end."""
    last = view.cycles - 1
    points, is_ceiling = zip(*limited._gates(view.num_comm, view.num_forward + view.num_backward, last), strict=True)
    string = np.diff(funnel(np.array(points) - complex(*limited.position(view)), np.array(is_ceiling)))
    backward = view.works.tasks(last, last + 1)[1][1]
    return float(pace.frontier.cost(string.real, string.imag).sum()) + backward / pace.comp_alone


def doubled(mode: Mode) -> Mode:
    return Mode(name=mode.name, comm_rate=2 * mode.comm_rate, comp_rate=2 * mode.comp_rate)


class Asked(Adaptive):
    """Records the views that it gets."""

    def __init__(self) -> None:
        super().__init__(plans=True, has_workers=True, may_change_priority=True)
        self.views: list[View] = []

    def choose(self, view: View) -> Allocation:
        self.views.append(view)
        return super().choose(view)
