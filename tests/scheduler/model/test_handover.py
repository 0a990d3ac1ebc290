"""The hand-over of cores: the order of the moves, and agreement of loop and controller."""

from itertools import product

import pytest

from scheduler.control.controller import Controller
from scheduler.model.handover import CommEffect, Handover, hand_over
from scheduler.model.placement import place
from scheduler.model.state import Allocation, Started, Task, TaskDone
from scheduler.policies.view import View

CORES = (2, 3, 5, 7)
ALL = frozenset(CORES)
ALLOCATIONS = (
    *(Allocation.split(comm, 4) for comm in (1, 2, 3)),
    Allocation.all_comm(4),
    Allocation.all_comp(4),
    Allocation.sharing("compute-first", 4),
    Allocation.unpinned(4),
)


def at(allocation: Allocation, *in_use: int) -> Handover:
    return hand_over(place(allocation, CORES), frozenset(in_use))


def test_between_tasks_both_sides_get_their_cores_at_once() -> None:
    assert at(Allocation.split(1, 4)) == Handover(comm=CommEffect.PIN, comm_cores=frozenset({2}))
    assert at(Allocation.all_comm(4)) == Handover(comm=CommEffect.PIN, comm_cores=ALL)
    assert at(Allocation.all_comp(4)) == Handover(comm=CommEffect.HOLD)
    assert at(Allocation.unpinned(4)) == Handover(comm=CommEffect.UNPIN, comm_cores=ALL)


def test_comm_gets_no_core_before_compute_has_left_it() -> None:
    assert at(Allocation.split(3, 4), 3, 5, 7) == Handover(comm=CommEffect.PIN, comm_cores=frozenset({2}))
    assert at(Allocation.split(1, 4), *CORES) == Handover(comm=CommEffect.KEEP)


def test_comm_that_loses_every_core_is_held_at_once() -> None:
    assert at(Allocation.all_comp(4), 7) == Handover(comm=CommEffect.HOLD)


def test_comm_shares_the_cores_that_compute_keeps() -> None:
    shared = Allocation.sharing("compute-first", 4)
    assert at(shared, *CORES) == Handover(comm=CommEffect.PIN, comm_cores=ALL)
    assert at(shared, 5, 7) == Handover(comm=CommEffect.PIN, comm_cores=frozenset({2, 3}))


@pytest.mark.parametrize(("before", "after"), list(product(ALLOCATIONS, repeat=2)))
def test_cores_never_belong_to_both_sides_unless_they_are_shared(before: Allocation, after: Allocation) -> None:
    in_use = frozenset(place(before, CORES).comp)
    handover = hand_over(place(after, CORES), in_use)
    overlaps = bool(handover.comm_cores & in_use)
    assert not overlaps or not after.pinned or after.shared is not None


class Scripted:
    """A planner that returns the next allocation of a script."""

    name = "scripted"
    is_work_conserving = True
    strategy = "scripted"

    def __init__(self, *script: Allocation) -> None:
        self._script = list(script)

    def choose(self, view: View) -> Allocation:
        return self._script.pop(0)

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        return ()


@pytest.mark.parametrize(("before", "after"), list(product(ALLOCATIONS[:3] + ALLOCATIONS[5:6], repeat=2)))
def test_the_controller_attributes_time_to_the_cores_that_the_hand_over_grants(before: Allocation, after: Allocation) -> None:
    controller = Controller(policy=Scripted(before, after, after, after), cycles=4, num_cores=4, comp_moves_at_boundaries=True)
    controller.handle(Started(time=0.0))
    controller.handle(TaskDone(task=Task.COMM, time=1.0))
    handover = hand_over(place(after, CORES), frozenset(place(before, CORES).comp))
    assert controller.learning is not None
    in_force = controller.learning.in_force
    assert in_force is not None
    assert in_force.comp == before.comp or in_force == after
    if handover.comm is CommEffect.KEEP:
        assert in_force == before
    else:
        assert in_force.comm == len(handover.comm_cores)
    controller.handle(TaskDone(task=Task.FORWARD, time=1.5))
    assert controller.learning.in_force == after
