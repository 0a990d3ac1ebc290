"""The conformance suite of all policies, then tests of each policy."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scenarios import Scenario, rounding_s, scenarios
from virtual_time import Run, drive

from scheduler.control.controller import Controller
from scheduler.model.cost import RateTable, Workload
from scheduler.model.scenario import Profile
from scheduler.model.state import COMPUTE_FIRST, Allocation, Decision, Reason, State, Task
from scheduler.policies.dynamic import HORIZON, Plan, solve
from scheduler.policies.registry import POLICIES, make_policy
from scheduler.policies.view import Planner, Policy, View

EVERY_NAME = [kind.names(4)[0] for kind in POLICIES.values()]
EXCLUSIVE = ["comm-priority", "comp-priority"]


def run(name: str, scenario: Scenario, *, seed: int = 0, is_profiled: bool = True) -> Run:
    profile = scenario.profile if is_profiled else None
    controller = Controller(
        policy=make_policy(name, num_cores=scenario.num_cores, seed=seed, profile=profile),
        cycles=scenario.cycles,
        num_cores=scenario.num_cores,
        prefetch=scenario.prefetch,
        profile=profile,
    )
    return drive(controller, scenario.rates, scenario.work)


def forced(decision: Decision, num_cores: int) -> tuple[Allocation, Reason] | None:
    """The forced allocation of Eq. 13, from the three counts."""
    i, j, k = decision.state.num_comm, decision.state.num_forward, decision.state.num_backward
    cycles, prefetch = decision.state.cycles, decision.state.prefetch
    if (i, j, k) == (cycles, cycles, cycles):
        return Allocation.all_comp(num_cores), Reason.FINISHED
    if j > k and i < k + 1:
        return Allocation.all_comm(num_cores), Reason.COMP_BLOCKED
    if i == cycles:
        return Allocation.all_comp(num_cores), Reason.COMM_DONE
    if prefetch is not None and i + 1 > k + prefetch:
        return Allocation.all_comp(num_cores), Reason.COMM_BLOCKED
    return None


def test_the_suite_knows_every_policy() -> None:
    fixed = ["os-default", "os-tuned", "os-workers", "static:1", "random", "comm-priority", "comp-priority", "compute-first"]
    assert [*fixed, "elastic", "dynamic", "adaptive"] == EVERY_NAME
    assert POLICIES["static"].names(4) == ("static:1", "static:2", "static:3")


@pytest.mark.parametrize("is_profiled", [True, False], ids=["profile", "no profile"])
@pytest.mark.parametrize("name", EVERY_NAME)
class TestEveryPolicy:
    @given(scenario=scenarios())
    @settings(max_examples=40, deadline=None)
    def test_runs_every_task_once_and_in_order(self, name: str, is_profiled: bool, scenario: Scenario) -> None:
        done = run(name, scenario, is_profiled=is_profiled).done
        cycles = scenario.cycles
        assert Counter(task for task, _, _ in done) == dict.fromkeys(Task, cycles)
        spans = {task: [(began, ended) for kind, began, ended in done if kind is task] for task in Task}
        comm, forward, backward = spans[Task.COMM], spans[Task.FORWARD], spans[Task.BACKWARD]
        for n in range(cycles):
            assert backward[n][0] >= max(comm[n][1], forward[n][1])
            if n > 0:
                assert comm[n][0] >= comm[n - 1][1]
                assert forward[n][0] >= backward[n - 1][1]
            if scenario.prefetch is not None and n >= scenario.prefetch:
                assert comm[n][0] >= backward[n - scenario.prefetch][1]

    @given(scenario=scenarios())
    @settings(max_examples=40, deadline=None)
    def test_gives_cores_as_it_may(self, name: str, is_profiled: bool, scenario: Scenario) -> None:
        decisions = run(name, scenario, is_profiled=is_profiled).decisions
        policy = make_policy(name, num_cores=scenario.num_cores, seed=0)
        for number, decision in enumerate(decisions):
            assert decision.sequence == number
            assert decision.policy == name
            rule = forced(decision, scenario.num_cores)
            if not decision.allocation.pinned or not policy.is_work_conserving:
                assert not policy.is_work_conserving
                assert decision.allocation == Allocation.unpinned(scenario.num_cores)
                is_last = number == len(decisions) - 1
                assert decision.reason is (Reason.FINISHED if is_last else Reason.UNMANAGED)
            elif rule is not None:
                assert (decision.allocation, decision.reason) == rule
            else:
                assert decision.reason in (Reason.POLICY, Reason.LEARNING)
                assert decision.allocation.pinned
                if decision.allocation.shared is None:
                    assert decision.allocation.comm + decision.allocation.comp == scenario.num_cores
                else:
                    elastic = Allocation.elastic(max(scenario.num_cores // 4, 1), scenario.num_cores)
                    assert decision.allocation in (Allocation.sharing(COMPUTE_FIRST, scenario.num_cores), elastic)

    @given(scenario=scenarios(max_cycles=6))
    @settings(max_examples=20, deadline=None)
    def test_decides_alike_when_run_again(self, name: str, is_profiled: bool, scenario: Scenario) -> None:
        first = run(name, scenario, seed=3, is_profiled=is_profiled)
        assert run(name, scenario, seed=3, is_profiled=is_profiled) == first

    def test_has_the_name_it_was_asked_by(self, name: str, is_profiled: bool) -> None:
        assert make_policy(name, num_cores=4, seed=0).name == name


@pytest.mark.parametrize("name", EVERY_NAME)
@pytest.mark.parametrize("num_cores", [1, 2, 3])
def test_every_policy_copes_with_cores_taken_away(name: str, num_cores: int) -> None:
    rates = RateTable(comm=(0.0, *[1.0] * num_cores), comp=(*[1.0] * num_cores, 0.0))
    view = View.of(
        State.initial(cycles=3),
        num_cores=num_cores,
        comm_left=1.0,
        comp_left=0.5,
        works=Workload(forward=0.5, backward=0.5, comm=1.0),
        rates=rates,
    )
    allocation = make_policy(name, num_cores=8, seed=0).choose(view)
    assert max(allocation.comm, allocation.comp) <= num_cores
    if name in ("static:1", "random", "dynamic"):
        assert allocation.comm + allocation.comp == num_cores
        assert allocation == Allocation.all_comp(1) if num_cores == 1 else 0 < allocation.comm < num_cores


@given(scenario=scenarios())
@settings(max_examples=100, deadline=None)
def test_both_priorities_take_the_same_time(scenario: Scenario) -> None:
    """Section V-A of the paper: exclusive time slices have the same sum in either order."""
    comm_first = run("comm-priority", scenario).makespan
    work, rates, cycles = scenario.work, scenario.rates, scenario.cycles
    alone = cycles * (work.comm / rates.comm[-1] + (work.forward + work.backward) / rates.comp[0])
    error_s = rounding_s(rates, comm=cycles * work.comm, comp=cycles * (work.forward + work.backward))
    assert abs(comm_first - alone) <= error_s
    assert abs(run("comp-priority", scenario).makespan - alone) <= error_s


@given(scenario=scenarios(min_cores=3))
@settings(max_examples=50, deadline=None)
def test_static_never_chooses_another_split(scenario: Scenario) -> None:
    for c in (1, scenario.num_cores - 1):
        chosen = {d.allocation for d in run(f"static:{c}", scenario).decisions if d.reason is Reason.POLICY}
        assert chosen == {Allocation.split(c, scenario.num_cores)}


def draws(seed: int, count: int = 600) -> list[int]:
    policy = make_policy("random", num_cores=4, seed=seed)
    view = View.of(
        State.initial(cycles=9),
        num_cores=4,
        comm_left=1.0,
        comp_left=1.0,
        works=Workload(forward=1.0, backward=1.0, comm=1.0),
        rates=None,
    )
    return [policy.choose(view).comm for _ in range(count)]


def test_random_draws_every_split_alike_from_its_own_seed() -> None:
    random.seed(1)
    first = draws(seed=7)
    random.seed(2)
    assert draws(seed=7) == first
    assert draws(seed=8) != first
    counts = Counter(first)
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 150


class Scripted:
    """Follows a plan that was made before the run, in every state that is not forced."""

    name = "scripted"
    is_work_conserving = True

    def __init__(self, plan: Plan, num_cores: int) -> None:
        self.splits = iter([move.comm_cores for move in plan.moves if 0 < move.comm_cores < num_cores])

    def choose(self, view: View) -> Allocation:
        return Allocation.split(next(self.splits), view.num_cores)


@given(scenario=scenarios(min_cores=3, max_cycles=HORIZON))
@settings(max_examples=100, deadline=None)
def test_dynamic_begins_with_the_plan_whose_makespan_a_run_would_take(scenario: Scenario) -> None:
    work = scenario.work
    plan = solve(
        comm=[work.comm] * scenario.cycles,
        comp=[work.forward, work.backward] * scenario.cycles,
        rates=scenario.rates,
        prefetch=scenario.prefetch,
    )
    first = run("dynamic", scenario).decisions[0]
    assert first.allocation == Allocation.split(plan.moves[0].comm_cores, scenario.num_cores)
    controller = Controller(
        policy=Scripted(plan, scenario.num_cores),
        cycles=scenario.cycles,
        num_cores=scenario.num_cores,
        prefetch=scenario.prefetch,
    )
    cycles = scenario.cycles
    error_s = rounding_s(scenario.rates, comm=cycles * work.comm, comp=cycles * (work.forward + work.backward))
    assert abs(drive(controller, scenario.rates, work).makespan - plan.makespan) <= 2 * error_s  # of either


@given(
    scenario=scenarios(min_cores=3, max_cycles=HORIZON),
    counts=st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 7)),
    left=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
)
@settings(max_examples=200, deadline=None)
def test_dynamic_plans_from_where_the_run_is(scenario: Scenario, counts: tuple[int, bool, int], left: tuple[float, float]) -> None:
    """The plan equals the plan of the whole run with the remaining work of the two running tasks."""
    i, k = sorted((counts[0] % scenario.cycles, counts[2] % scenario.cycles), reverse=True)
    j = k + counts[1]
    state = State(cycles=scenario.cycles, num_comm=i, num_forward=j, num_backward=k, prefetch=scenario.prefetch)
    assume(not (state.comp_is_blocked or state.comm_is_blocked))
    work, q = scenario.work, j + k
    comm, comp = [work.comm] * scenario.cycles, [work.forward, work.backward] * scenario.cycles
    comm[i] *= left[0]
    comp[q] *= left[1]
    view = View.of(
        state,
        num_cores=scenario.num_cores,
        comm_left=comm[i],
        comp_left=comp[q],
        works=work,
        rates=scenario.rates,
    )
    plan = solve(comm=comm, comp=comp, rates=scenario.rates, prefetch=scenario.prefetch, num_comm=i, num_comp=q)
    chosen = make_policy("dynamic", num_cores=scenario.num_cores, seed=0).choose(view)
    assert chosen == Allocation.split(plan.moves[0].comm_cores, scenario.num_cores)


def test_dynamic_plans_as_far_as_comm_has_run_ahead() -> None:
    """Comm is at batch 20 and training at cycle 2: a plan of 8 cycles would not contain the running Comm."""
    rates = RateTable(comm=(0.0, 1.0, 1.1, 1.2), comp=(3.0, 2.0, 1.0, 0.0))
    view = View.of(
        State(cycles=100, num_comm=20, num_forward=3, num_backward=2, prefetch=None),
        num_cores=3,
        comm_left=0.5,
        comp_left=0.25,
        works=Workload(forward=0.5, backward=0.5, comm=1.0),
        rates=rates,
    )
    assert make_policy("dynamic", num_cores=3, seed=0).choose(view) == Allocation.split(1, 3)


def test_dynamic_on_two_cores_needs_no_rates_and_no_plan() -> None:
    controller = Controller(policy=make_policy("dynamic", num_cores=2, seed=0), cycles=5, num_cores=2)
    rates = RateTable(comm=(0.0, 1.0, 1.5), comp=(2.0, 1.0, 0.0))
    result = drive(controller, rates, Workload(forward=1.0, backward=1.0, comm=1.0))
    assert {decision.reason for decision in result.decisions} & {Reason.POLICY, Reason.LEARNING} == {Reason.POLICY}


@given(scenario=scenarios(min_cores=3, max_cycles=12), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_planner_measures_the_requested_modes_and_then_plans(scenario: Scenario, seed: int) -> None:
    decisions = run("dynamic", scenario, seed=seed, is_profiled=False).decisions
    reasons = [d.reason for d in decisions if d.reason in (Reason.POLICY, Reason.LEARNING)]
    assert reasons == sorted(reasons, key=[Reason.LEARNING, Reason.POLICY].index)
    policy = make_policy("dynamic", num_cores=scenario.num_cores, seed=0)
    assert isinstance(policy, Planner)
    assert {d.allocation for d in decisions if d.reason is Reason.LEARNING} <= set(policy.warm_up_allocations(scenario.num_cores))


def test_without_a_profile_a_planner_ends_near_one_that_has_it() -> None:
    rates = RateTable(comm=(0.0, 1.0, 2.0, 3.0, 4.0), comp=(4.0, 3.0, 2.0, 1.0, 0.0))
    for comm in (0.3, 1.0, 2.0):
        for prefetch in (None, 2):
            work = Workload(forward=0.3, backward=0.7, comm=comm)
            profile = Profile(cores=4, workload=work, rates=rates)
            scenario = Scenario(cycles=60, prefetch=prefetch, profile=profile)
            learnt, known = run("dynamic", scenario, is_profiled=False), run("dynamic", scenario)
            assert any(decision.reason is Reason.POLICY for decision in learnt.decisions)
            assert learnt.makespan <= 1.05 * known.makespan


@pytest.mark.parametrize(
    ("name", "num_cores", "words"),
    [
        ("fastest", 4, "policy 'fastest' is unknown; the policies are os-default, os-tuned, os-workers, static:<c>, random"),
        ("", 4, "policy '' is unknown"),
        ("static:5", 4, "policy 'static:5': the comm cores must lie in 1..3 because this run has 4 cores"),
        ("static:0", 4, "policy 'static:0': the comm cores must lie in 1..3"),
        ("static", 4, "policy 'static' needs its number of comm cores: static:<c> with c in 1 .. 3"),
        ("static:one", 4, "policy 'static:one' needs its number of comm cores"),
        ("static:-1", 4, "policy 'static:-1' needs its number of comm cores"),
        ("random:3", 4, "policy 'random:3': 'random' takes no argument"),
        ("dynamic:", 4, "policy 'dynamic:': 'dynamic' takes no argument"),
        ("static:1", 1, "policy 'static' splits the cores, and this run has 1; use adaptive or another"),
        ("random", 1, "policy 'random' splits the cores, and this run has 1"),
        ("dynamic", 1, "policy 'dynamic' splits the cores, and this run has 1"),
        ("random", 0, "num_cores is 0; a run needs at least 1"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_the_rule(name: str, num_cores: int, words: str) -> None:
    with pytest.raises(ValueError) as error:
        make_policy(name, num_cores=num_cores, seed=0)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", EXCLUSIVE)
def test_a_single_core_can_be_given_as_a_whole(name: str) -> None:
    rates = RateTable(comm=(0.0, 1.0), comp=(1.0, 0.0))
    work = Workload(forward=1.0, backward=1.0, comm=1.0)
    controller = Controller(policy=make_policy(name, num_cores=1, seed=0), cycles=3, num_cores=1)
    assert drive(controller, rates, work).makespan == pytest.approx(9.0)
    assert make_policy("os-default", num_cores=1, seed=0).name == "os-default"


def test_a_profile_of_another_device_is_refused() -> None:
    rates = RateTable(comm=(0.0, 1.0, 2.0), comp=(2.0, 1.0, 0.0))
    profile = Profile(cores=2, workload=Workload(forward=1.0, backward=1.0, comm=1.0), rates=rates)
    with pytest.raises(ValueError, match="the profile is of 2 cores, and this run has 4"):
        make_policy("dynamic", num_cores=4, seed=0, profile=profile)


def test_every_kind_of_policy_has_a_sentence() -> None:
    for name, kind in POLICIES.items():
        assert kind.usage.startswith(name)
        assert len(kind.sentence.split()) > 5


def test_policies_fit_their_protocol() -> None:
    policies: dict[str, Policy] = {name: make_policy(name, num_cores=4, seed=0) for name in EVERY_NAME}
    unpinned = {name for name, policy in policies.items() if not policy.is_work_conserving}
    assert unpinned == {"os-default", "os-tuned", "os-workers"}
    assert {name for name, policy in policies.items() if isinstance(policy, Planner)} == {"dynamic"}


def test_online_dynamic_plans_again_from_the_remaining_work() -> None:
    """In the same state, the remaining work of the two running tasks decides."""
    rates = RateTable(comm=(0.0, 1.0, 1.1, 1.2), comp=(3.0, 2.0, 1.0, 0.0))
    online, once = make_policy("dynamic", num_cores=3, seed=0), make_policy("dynamic", num_cores=3, seed=0, horizon=None)
    state = State(cycles=4, num_comm=1, num_forward=1, num_backward=0, prefetch=None)
    work = Workload(forward=0.5, backward=0.5, comm=1.0)
    chosen: dict[str, list[int]] = {"online": [], "once": []}
    for left in ((1.0, 0.01), (0.01, 0.5)):
        view = View.of(state, num_cores=3, comm_left=left[0], comp_left=left[1], works=work, rates=rates)
        chosen["online"].append(online.choose(view).comm)
        chosen["once"].append(once.choose(view).comm)
    assert chosen["online"][0] != chosen["online"][1]
    assert chosen["once"][0] == chosen["once"][1]
