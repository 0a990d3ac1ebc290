"""The compute half of the loop: bindings, and one record for each change of cores."""

from typing import Any

import pytest

from scheduler.live.comp_side import CompSide
from scheduler.live.threads import ThreadMasks
from scheduler.model.placement import Placement, place
from scheduler.model.state import Allocation, Decision, Reason, State

CORES = (2, 3, 5, 7)
SPLIT, ALL_COMM, UNPINNED = (
    place(allocation, CORES) for allocation in (Allocation.split(1, 4), Allocation.all_comm(4), Allocation.unpinned(4))
)


def decision(sequence: int) -> Decision:
    return Decision(
        sequence=sequence,
        time=float(sequence),
        state=State.initial(cycles=3),
        policy="static:1",
        allocation=Allocation.split(1, 4),
        reason=Reason.POLICY,
    )


class FakeBinding:
    """Records calls, and returns the mask of one thread for every change."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.moves_at_once = False

    def apply(self, cores: tuple[int, ...], num_idle: int = 0) -> ThreadMasks:
        is_new = not self.calls or self.calls[-1] != cores
        self.calls.append(cores)
        return {1: cores} if is_new else {}

    def restore(self) -> ThreadMasks:
        self.calls.append("restore")
        return {1: CORES}

    def forget(self) -> None:
        self.calls.append("forget")

    def leave_alone(self, tid: int) -> None:
        self.calls.append(tid)


class Bound:
    """A side with a fake binding, its records, and a clock that stands at 9 s."""

    def __init__(self) -> None:
        self.binding = FakeBinding()
        self.records: list[dict[str, Any]] = []
        self.side = CompSide(self.binding, self.records.append, lambda: 9.0)  # type: ignore[arg-type]

    def bind(self, placement: Placement, sequence: int) -> None:
        self.side.bind(placement, decision(sequence), "task")

    def recorded(self) -> list[tuple[int, list[int]]]:
        return [(record["decision"], record["cores"]) for record in self.records]


@pytest.fixture
def bound() -> Bound:
    return Bound()


def test_a_change_of_cores_is_recorded_with_its_decision_and_masks(bound: Bound) -> None:
    bound.bind(SPLIT, 4)
    assert bound.binding.calls == [(3, 5, 7)]
    assert bound.records == [
        {
            "event": "comp-bound",
            "time": 9.0,
            "decision": 4,
            "decided": 4.0,
            "cores": [3, 5, 7],
            "where": "task",
            "effective": {1: (3, 5, 7)},
        }
    ]


def test_the_same_cores_are_bound_again_but_recorded_once(bound: Bound) -> None:
    bound.bind(SPLIT, 0)
    bound.bind(SPLIT, 1)
    assert bound.binding.calls == [(3, 5, 7)] * 2
    assert bound.recorded() == [(0, [3, 5, 7])]
    assert bound.side.masks == {1: (3, 5, 7)}


def test_compute_that_was_never_pinned_is_not_touched(bound: Bound) -> None:
    bound.bind(UNPINNED, 0)
    assert (bound.binding.calls, bound.records, bound.side.masks) == ([], [], {})


def test_an_unpinned_placement_restores_the_masks_once(bound: Bound) -> None:
    for sequence, placement in enumerate((SPLIT, UNPINNED, UNPINNED)):
        bound.bind(placement, sequence)
    assert bound.binding.calls == [(3, 5, 7), "restore"]
    assert bound.recorded() == [(0, [3, 5, 7]), (1, [2, 3, 5, 7])]


def test_a_wait_is_recorded_only_if_compute_had_cores(bound: Bound) -> None:
    bound.side.record_wait(ALL_COMM, decision(0))
    bound.bind(SPLIT, 1)
    bound.side.record_wait(SPLIT, decision(2))
    bound.side.record_wait(ALL_COMM, decision(3))
    bound.side.record_wait(ALL_COMM, decision(4))
    bound.bind(SPLIT, 5)
    assert bound.recorded() == [(1, [3, 5, 7]), (3, []), (5, [3, 5, 7])]


def test_after_the_end_of_pinning_compute_is_restored_and_never_bound_again(bound: Bound) -> None:
    bound.bind(SPLIT, 0)
    bound.side.stop_pinning()
    bound.bind(SPLIT, 1)
    bound.bind(SPLIT, 2)
    assert bound.binding.calls == [(3, 5, 7), "restore"]


def test_the_rest_goes_to_the_binding(bound: Bound) -> None:
    bound.side.leave_alone(77)
    bound.side.forget()
    bound.side.restore()
    assert bound.binding.calls == [77, "forget", "restore"]
