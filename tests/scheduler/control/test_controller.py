"""The controller: time attribution, learning from tasks, and rejected event sequences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from scenarios import Scenario, scenarios
from virtual_time import drive

from scheduler.control.controller import STORY_LENGTH, Controller
from scheduler.control.learning import Learning
from scheduler.model.cost import RateTable, Workload
from scheduler.model.scenario import Profile
from scheduler.model.state import Allocation, BrokenInvariant, CoresChanged, Event, Reason, Started, Task, TaskDone
from scheduler.policies.registry import make_policy
from scheduler.policies.view import Policy, View

RATES = RateTable(comm=(0.0, 1.0, 1.5, 1.75, 2.0), comp=(4.0, 3.0, 2.0, 1.0, 0.0))
WORK = Workload(forward=3.0, backward=6.0, comm=2.0)
PROFILE = Profile(cores=4, workload=WORK, rates=RATES)


class Probe:
    """A planner that returns scripted allocations and records the views that it gets."""

    name = strategy = "probe"
    is_work_conserving = True

    def __init__(self, *allocations: Allocation) -> None:
        self.allocations = list(allocations)
        self.views: list[View] = []

    def choose(self, view: View) -> Allocation:
        self.views.append(view)
        return self.allocations.pop(0) if len(self.allocations) > 1 else self.allocations[0]

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        return ()


class Learner:
    """A policy that needs no rates, in the form of a planner, so that the controller learns them."""

    strategy = "none"
    is_work_conserving = True

    def __init__(self, policy: Policy) -> None:
        self.name, self.choose = policy.name, policy.choose

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        return ()


def learning_of(controller: Controller) -> Learning:
    assert controller.learning is not None
    return controller.learning


def done(task: Task, time: float) -> TaskDone:
    return TaskDone(task=task, time=time)


def controller_of(name: str, *, cycles: int = 3, num_cores: int = 4, prefetch: int | None = None) -> Controller:
    policy = make_policy(name, num_cores=num_cores, seed=0)
    return Controller(policy=policy, cycles=cycles, num_cores=num_cores, prefetch=prefetch)


def test_a_run_by_hand() -> None:
    """Checks every forced rule and the policy in turn, with one slot and two cycles."""
    controller = controller_of("static:1", cycles=2, prefetch=1)
    story: list[tuple[Event, str, Reason]] = [
        (Started(time=5.0), "comm 1 | comp 3", Reason.POLICY),
        (done(Task.FORWARD, 6.0), "all to comm", Reason.COMP_BLOCKED),
        (done(Task.COMM, 7.0), "all to comp", Reason.COMM_BLOCKED),
        (done(Task.BACKWARD, 8.0), "comm 1 | comp 3", Reason.POLICY),
        (done(Task.COMM, 9.0), "all to comp", Reason.COMM_DONE),
        (done(Task.FORWARD, 9.0), "all to comp", Reason.COMM_DONE),
        (done(Task.BACKWARD, 9.5), "all to comp", Reason.FINISHED),
    ]
    for sequence, (event, allocation, reason) in enumerate(story):
        decision = controller.handle(event)
        assert (str(decision.allocation), decision.reason) == (allocation, reason)
        assert (decision.sequence, decision.time, decision.policy) == (sequence, event.time, "static:1")
    assert controller.state.comp_is_done


def test_remaining_work_follows_the_allocations_in_force() -> None:
    probe = Probe(Allocation.split(1, 4), Allocation.split(2, 4), Allocation.split(3, 4))
    controller = Controller(policy=probe, cycles=3, num_cores=4, profile=PROFILE)
    controller.handle(Started(time=10.0))
    controller.handle(done(Task.COMM, 10.5))  # comp did 0.5 s at 3.0: 1.5 of 3
    controller.handle(done(Task.COMM, 10.75))  # and 0.25 s at 2.0: 2 of 3
    assert [view.comm_left for view in probe.views] == [2.0, 2.0, 2.0]
    assert [view.comp_left for view in probe.views] == [3.0, 1.5, 1.0]
    controller.handle(done(Task.FORWARD, 11.75))  # comm did 1 s at 1.75
    assert (probe.views[-1].comm_left, probe.views[-1].comp_left) == (0.25, 6.0)


def test_a_side_that_is_blocked_books_no_time() -> None:
    probe = Probe(Allocation.split(1, 4))
    controller = Controller(policy=probe, cycles=3, num_cores=4, prefetch=1, profile=PROFILE)
    controller.handle(Started(time=0.0))
    controller.handle(done(Task.COMM, 1.0))  # no slot: comm is blocked until B1
    controller.handle(done(Task.FORWARD, 2.0))
    controller.handle(done(Task.BACKWARD, 3.0))
    assert (probe.views[-1].comm_left, probe.views[-1].comp_left) == (2.0, 3.0)
    controller.handle(done(Task.FORWARD, 3.5))  # comp is blocked until Comm_2
    controller.handle(done(Task.COMM, 4.0))
    controller.handle(done(Task.BACKWARD, 5.5))
    assert learning_of(controller).estimates.comp.num_tasks == {3: 2, 4: 3}


def test_a_task_slower_than_its_rate_still_has_something_left() -> None:
    probe = Probe(Allocation.split(1, 4))
    controller = Controller(policy=probe, cycles=3, num_cores=4, profile=PROFILE)
    controller.handle(Started(time=0.0))
    controller.handle(done(Task.COMM, 50.0))
    assert 0 < probe.views[-1].comp_left <= 0.1 * WORK.forward


def test_a_held_side_may_finish_its_task() -> None:
    """A hold of comm takes effect between chunks, that of compute at its next boundary. Such a task gives no estimate."""
    probe = Probe(Allocation.all_comm(4), Allocation.all_comp(4))
    controller = Controller(policy=probe, cycles=3, num_cores=4)
    controller.handle(Started(time=0.0))
    assert controller.handle(done(Task.FORWARD, 1.0)).state.num_forward == 1
    controller.handle(done(Task.COMM, 2.0))
    assert controller.handle(done(Task.COMM, 2.5)).state.num_comm == 2
    assert learning_of(controller).rates()["comp"] == {}
    assert learning_of(controller).rates()["comm"] == {"4": 0.5}  # only the first


def test_a_task_that_was_held_halfway_is_not_learnt_from() -> None:
    probe = Probe(Allocation.split(1, 4), Allocation.split(1, 4), Allocation.all_comp(4))
    controller = Controller(policy=probe, cycles=3, num_cores=4)
    controller.handle(Started(time=0.0))
    controller.handle(done(Task.COMM, 0.25))
    controller.handle(done(Task.FORWARD, 1.0))  # Comm_2 has had 0.75 s of one core, and is to be held
    controller.handle(done(Task.COMM, 2.0))  # but ran on until now
    assert learning_of(controller).rates()["comm"] == {"1": 4.0}


def test_rates_are_learnt_in_units_of_a_cycle() -> None:
    controller = Controller(policy=Learner(make_policy("static:1", num_cores=4, seed=0)), cycles=9, num_cores=4)
    controller.handle(Started(time=0.0))
    for cycle in range(8):
        start = 4.0 * cycle
        controller.handle(done(Task.COMM, start + 0.5))
        controller.handle(done(Task.FORWARD, start + 1.0))
        controller.handle(done(Task.BACKWARD, start + 4.0))
        learning_of(controller).rates()
    learnt = learning_of(controller).rates()
    assert learnt["workload"] == pytest.approx({"forward": 0.25, "backward": 0.75, "comm": 1.0}, rel=1e-2)
    assert learnt["comp"] == pytest.approx({"3": 0.25}, rel=1e-2)
    assert learnt["comm"].keys() == {"1"}


@given(scenario=scenarios(min_cores=3, max_cores=6, max_cycles=12))
@settings(max_examples=60, deadline=None)
def test_rates_of_tasks_that_keep_their_cores_are_exact(scenario: Scenario) -> None:
    """With comm-priority, comm runs alone and then comp alone, so no task changes its cores."""
    controller = Controller(
        policy=Learner(make_policy("comm-priority", num_cores=scenario.num_cores, seed=0)),
        cycles=scenario.cycles,
        num_cores=scenario.num_cores,
        profile=scenario.profile,
    )
    drive(controller, scenario.rates, scenario.work)
    every = str(scenario.num_cores)
    assert learning_of(controller).rates()["comm"][every] == pytest.approx(scenario.rates.comm[-1], rel=1e-6)
    assert learning_of(controller).rates()["comp"][every] == pytest.approx(scenario.rates.comp[0], rel=1e-6)


def test_writing_the_rates_to_the_log_hides_no_news_from_the_plan() -> None:
    """Training slows down tenfold. The rates are read at every event, as the log does when the split changes."""
    probe = Probe(Allocation.split(1, 4))
    controller = Controller(policy=probe, cycles=60, num_cores=4)
    controller.handle(Started(time=0.0))
    now = 0.0
    for cycle in range(50):
        step = 1.0 if cycle < 10 else 10.0
        for task, seconds in ((Task.COMM, 0.1), (Task.FORWARD, 0.4 * step), (Task.BACKWARD, 0.5 * step)):
            now += seconds
            controller.handle(done(task, now))
            learning_of(controller).rates()
    rates = [view.rates.comp[1] for view in probe.views if view.rates is not None]
    assert rates[-1] == pytest.approx(0.1 * rates[0], rel=0.2)


def test_the_first_batch_of_each_part_of_a_run_is_not_learnt_from() -> None:
    """It includes opening the stream."""
    for first in (0, 7):
        controller = Controller(policy=Probe(Allocation.split(1, 4)), cycles=20, num_cores=4, done=first)
        controller.handle(Started(time=0.0))
        controller.handle(TaskDone(task=Task.COMM, time=9.0, busy_s=9.0))
        assert learning_of(controller).rates()["comm"] == {}
        controller.handle(TaskDone(task=Task.COMM, time=10.0, busy_s=1.0))
        assert learning_of(controller).rates()["comm"] == {"1": 1.0}


def test_a_change_of_cores_is_followed_by_a_new_decision() -> None:
    controller = controller_of("static:3")
    assert str(controller.handle(Started(time=0.0)).allocation) == "comm 3 | comp 1"
    assert str(controller.handle(CoresChanged(num_cores=2, time=1.0)).allocation) == "comm 1 | comp 1"
    assert str(controller.handle(CoresChanged(num_cores=1, time=2.0)).allocation) == "all to comp"
    assert str(controller.handle(CoresChanged(num_cores=8, time=3.0)).allocation) == "comm 3 | comp 5"


@pytest.mark.parametrize("name", ["static:1", "random", "compute-first", "elastic", "adaptive", "os-default"])
def test_a_policy_without_rates_costs_no_learning(name: str) -> None:
    controller = controller_of(name)
    controller.handle(Started(time=0.0))
    controller.handle(done(Task.COMM, 1.0))
    assert controller.learning is None
    assert controller.to_json()["estimates"] is None


def test_a_profile_follows_the_cores_that_are_left() -> None:
    probe = Probe(Allocation.split(1, 4), Allocation.split(1, 3))
    controller = Controller(policy=probe, cycles=3, num_cores=4, profile=PROFILE)
    controller.handle(Started(time=0.0))
    controller.handle(CoresChanged(num_cores=3, time=0.5))
    controller.handle(done(Task.COMM, 1.5))
    assert probe.views[1].rates == RateTable(comm=(0.0, 1.0, 1.5, 1.75), comp=(3.0, 2.0, 1.0, 0.0))
    assert [view.comp_left for view in probe.views[:2]] == [3.0, 1.5]  # 0.5 s on three cores


def test_dynamic_goes_on_when_cores_change() -> None:
    for profile in (PROFILE, None):
        policy = make_policy("dynamic", num_cores=4, seed=0, profile=profile)
        controller = Controller(policy=policy, cycles=20, num_cores=4, profile=profile)
        controller.handle(Started(time=0.0))
        for number, num_cores in enumerate([3, 1, 6, 2, 4]):
            now = 10.0 * number
            controller.handle(CoresChanged(num_cores=num_cores, time=now))
            decision = controller.handle(done(Task.COMM, now + 1))
            assert decision.allocation.comm + decision.allocation.comp == num_cores
            controller.handle(done(Task.FORWARD, now + 2))
            controller.handle(done(Task.BACKWARD, now + 4))


def start_then(*events: Event) -> list[Event]:
    return [Started(time=1.0), *events]


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([done(Task.COMM, 1.0)], "a run starts with exactly one Started"),
        (start_then(Started(time=2.0)), "a run starts with exactly one Started"),
        (start_then(done(Task.COMM, 0.5)), "event time is 0.5, must be finite and at least 1.0"),
        (start_then(done(Task.COMM, math.nan)), "event time is nan, must be finite"),
        ([Started(time=math.inf)], "event time is inf, must be finite and at least -inf"),
        (start_then(*[done(Task.COMM, 2.0)] * 3), "Comm ends after 2 cycles"),
        (start_then(done(Task.BACKWARD, 2.0)), "must alternate"),
        (start_then(done(Task.FORWARD, 2.0), done(Task.BACKWARD, 2.0)), "every Backward needs its Comm"),
        (start_then(done(Task.FORWARD, 2.0), done(Task.FORWARD, 2.0)), "must alternate"),
    ],
)
def test_events_that_cannot_happen_break_an_invariant(events: list[Event], words: str) -> None:
    controller = controller_of("static:1", cycles=2)
    for event in events[:-1]:
        controller.handle(event)
    with pytest.raises(BrokenInvariant, match=words) as error:
        controller.handle(events[-1])
    assert str(events[-1]) in str(error.value)


def test_a_broken_invariant_tells_how_it_came_about() -> None:
    controller = controller_of("comp-priority", cycles=60)
    controller.handle(Started(time=0.0))
    for number in range(1, 31):
        controller.handle(done(Task.COMM, float(number)))
    with pytest.raises(BrokenInvariant) as error:
        controller.handle(done(Task.BACKWARD, 31.0))
    lines = str(error.value).splitlines()
    assert len(lines) == 3 + STORY_LENGTH
    assert "#11 11.000000 s S(11,0,0) of 60: all to comp (policy, comp-priority)" in lines[3]
    assert "#30" in lines[-1]


def test_the_first_broken_invariant_reports_an_empty_history() -> None:
    with pytest.raises(BrokenInvariant, match="no event"):
        controller_of("static:1").handle(done(Task.COMM, 0.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cycles": 0}, "cycles is 0; a run needs at least 1"),
        ({"prefetch": 0}, "prefetch is 0; it must be at least 1"),
        ({"num_cores": 0}, "num_cores is 0; a run needs at least 1"),
        ({"num_cores": 3, "profile": PROFILE}, "the profile is of 4 cores, and this run has 3"),
    ],
)
def test_invalid_settings_are_rejected(changes: dict[str, object], words: str) -> None:
    arguments: dict[str, object] = {"policy": Probe(Allocation.split(1, 4)), "cycles": 2, "num_cores": 4} | changes
    with pytest.raises(ValueError, match=words):
        Controller(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefetch", [None, 4])
def test_rates_are_right_although_training_moves_only_at_its_boundaries(prefetch: int | None) -> None:
    """As in a live run: a split decided during a Backward takes effect when that Backward ends."""
    own = (0.0, 1.0, 1.9, 2.7, 3.4)  # rate by a side's own number of cores
    rates = RateTable(comm=(0.0, 0.9, 1.5, 1.8, 2.0), comp=tuple(reversed(own)))
    policy = make_policy("dynamic", num_cores=4, seed=0)
    controller = Controller(policy=policy, cycles=100, num_cores=4, prefetch=prefetch, comp_moves_at_boundaries=True)
    drive(controller, rates, Workload(forward=0.3, backward=0.7, comm=1.0), comp_moves_at_boundaries=True)
    learnt = learning_of(controller).rates()
    for cores, rate in learnt["comp"].items():
        assert rate == pytest.approx(own[int(cores)], rel=0.1), learnt
    for cores, rate in learnt["comm"].items():
        assert rate == pytest.approx(rates.comm[int(cores)], rel=0.1), learnt


@pytest.mark.parametrize("moves_at_boundaries", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_estimates_are_exact_for_tasks_that_change_their_cores(moves_at_boundaries: bool, seed: int) -> None:
    """`random` draws a split at every event, so most tasks change their cores. The equations of all tasks hold."""
    rates = RateTable(comm=(0.0, 0.9, 1.5, 1.8, 2.0), comp=(3.4, 2.7, 1.9, 1.0, 0.0))
    policy = Learner(make_policy("random", num_cores=4, seed=seed))
    controller = Controller(policy=policy, cycles=8, num_cores=4, comp_moves_at_boundaries=moves_at_boundaries)
    drive(controller, rates, Workload(forward=0.3, backward=0.7, comm=0.5), comp_moves_at_boundaries=moves_at_boundaries)
    works = {Task.FORWARD: 0.3, Task.BACKWARD: 0.7, Task.COMM: 0.5}
    for side, rate_of in (
        (learning_of(controller).estimates.comm, rates.comm),
        (learning_of(controller).estimates.comp, rates.comp[::-1]),
    ):
        for task, seconds in side.recent:
            assert sum(rate_of[cores] * spent for cores, spent in seconds.items()) == pytest.approx(works[task], rel=1e-9)


def test_a_task_that_moves_is_attributed_to_the_cores_it_had_and_for_how_long() -> None:
    probe = Probe(Allocation.split(1, 4), Allocation.split(3, 4), Allocation.all_comm(4), Allocation.split(2, 4))
    controller = Controller(policy=probe, cycles=4, num_cores=4)
    controller.handle(Started(time=0.0))
    for time in (1.0, 2.5, 4.0):
        controller.handle(done(Task.COMM, time))
    controller.handle(done(Task.FORWARD, 6.0))
    assert list(learning_of(controller).estimates.comp.recent) == [(Task.FORWARD, {3: 1.0, 1: 1.5, 2: 2.0})]
    assert list(learning_of(controller).estimates.comm.recent) == [
        (Task.COMM, {1: 1.0}),
        (Task.COMM, {3: 1.5}),
        (Task.COMM, {4: 1.5}),
    ]


def test_a_team_keeps_its_cores_to_the_end_of_its_task_and_comm_gets_the_free_ones() -> None:
    probe = Probe(Allocation.split(1, 4), Allocation.split(3, 4))
    controller = Controller(policy=probe, cycles=3, num_cores=4, comp_moves_at_boundaries=True)
    controller.handle(Started(time=0.0))
    controller.handle(done(Task.COMM, 1.0))
    controller.handle(done(Task.FORWARD, 3.0))
    controller.handle(done(Task.COMM, 3.5))
    assert list(learning_of(controller).estimates.comp.recent) == [(Task.FORWARD, {3: 3.0})]
    assert list(learning_of(controller).estimates.comm.recent)[1] == (Task.COMM, {1: 2.0, 3: 0.5})


@pytest.mark.parametrize("policy", ["comm-priority", "comp-priority", "static:2", "dynamic"])
def test_where_inputs_travel_training_waits_for_its_batch_before_the_forward(policy: str) -> None:
    controller = Controller(policy=make_policy(policy, num_cores=4, seed=0), cycles=2, num_cores=4, prefetch=1, inputs_travel=True)
    first = controller.handle(Started(time=0.0))
    assert (first.allocation, first.reason) == (Allocation.all_comm(4), Reason.COMP_BLOCKED)
    assert controller.handle(TaskDone(task=Task.COMM, time=1.0)).reason is Reason.COMM_BLOCKED
    controller.handle(TaskDone(task=Task.FORWARD, time=2.0))
    assert controller.handle(TaskDone(task=Task.BACKWARD, time=3.0)).reason is Reason.COMP_BLOCKED
    controller.handle(TaskDone(task=Task.COMM, time=4.0))
    controller.handle(TaskDone(task=Task.FORWARD, time=5.0))
    assert controller.handle(TaskDone(task=Task.BACKWARD, time=6.0)).reason is Reason.FINISHED
