"""States, allocations and decisions: valid values, invariants, and texts."""

from dataclasses import FrozenInstanceError

import pytest

from scheduler.model.state import (
    Allocation,
    BrokenInvariant,
    CoresChanged,
    Decision,
    Reason,
    State,
    Task,
)


def state(i: int, j: int, k: int, *, cycles: int = 4, prefetch: int | None = None) -> State:
    return State(cycles=cycles, num_comm=i, num_forward=j, num_backward=k, prefetch=prefetch)


def test_a_run_starts_with_the_first_batch() -> None:
    start = State.initial(cycles=4)
    assert start == state(0, 0, 0)
    assert (start.next_comp_index, start.num_comp) == (0, 0)
    assert not start.comp_is_blocked
    assert not start.comm_is_blocked
    assert not start.comm_is_done
    assert not start.comp_is_done


@pytest.mark.parametrize(
    ("counts", "is_blocked"),
    [((0, 0, 0), False), ((0, 1, 0), True), ((1, 1, 0), False), ((1, 1, 1), False), ((1, 2, 1), True), ((3, 2, 1), False)],
)
def test_comp_is_blocked_while_a_backward_waits_for_its_logits(counts: tuple[int, int, int], is_blocked: bool) -> None:
    assert state(*counts).comp_is_blocked is is_blocked


@pytest.mark.parametrize(
    ("counts", "prefetch", "is_blocked"),
    [
        ((1, 0, 0), 1, True),
        ((1, 1, 1), 1, False),
        ((2, 1, 1), 1, True),
        ((2, 0, 0), 3, False),
        ((3, 0, 0), 3, True),
        ((3, 0, 0), None, False),
        ((4, 0, 0), 3, False),  # done is not blocked
    ],
)
def test_comm_is_blocked_when_it_is_prefetch_batches_ahead(
    counts: tuple[int, int, int], prefetch: int | None, is_blocked: bool
) -> None:
    assert state(*counts, prefetch=prefetch).comm_is_blocked is is_blocked


def test_both_sides_are_never_blocked_together() -> None:
    for prefetch in (1, 2, 3, 4):
        for k in range(4):
            for j in (k, k + 1):
                for i in range(k, 5):
                    here = state(i, j, k, prefetch=prefetch)
                    assert not (here.comm_is_blocked and here.comp_is_blocked), here


def test_tasks_lead_from_state_to_state_until_finished() -> None:
    here = State.initial(cycles=2)
    for task in (Task.FORWARD, Task.COMM, Task.BACKWARD, Task.COMM, Task.FORWARD, Task.BACKWARD):
        assert not (here.comm_is_done and here.comp_is_done)
        here = here.after(task)
    assert here == state(2, 2, 2, cycles=2)
    assert here.comm_is_done
    assert here.comp_is_done


@pytest.mark.parametrize(
    ("counts", "task"),
    [
        ((4, 0, 0), Task.COMM),  # past N
        ((2, 1, 0), Task.FORWARD),  # Backward comes first
        ((2, 1, 1), Task.BACKWARD),  # Forward comes first
        ((0, 1, 0), Task.BACKWARD),  # before its Comm
        ((4, 4, 4), Task.FORWARD),
        ((4, 4, 4), Task.BACKWARD),
    ],
)
def test_a_task_that_cannot_have_finished_breaks_an_invariant(counts: tuple[int, int, int], task: Task) -> None:
    with pytest.raises(BrokenInvariant):
        state(*counts).after(task)


def test_a_broken_invariant_is_an_assertion() -> None:
    assert issubclass(BrokenInvariant, AssertionError)


@pytest.mark.parametrize(
    ("cycles", "prefetch", "words"),
    [(0, None, "cycles is 0; a run needs at least 1"), (3, 0, "prefetch is 0; it must be at least 1")],
)
def test_numbers_of_the_user_are_refused_with_their_rule(cycles: int, prefetch: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        State.initial(cycles=cycles, prefetch=prefetch)


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        State.initial(cycles=1).num_comm = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("allocation", "text"),
    [
        (Allocation.split(1, 4), "comm 1 | comp 3"),
        (Allocation.all_comm(4), "all to comm"),
        (Allocation.all_comp(4), "all to comp"),
        (Allocation.unpinned(4), "unpinned"),
    ],
)
def test_an_allocation_has_a_readable_text(allocation: Allocation, text: str) -> None:
    assert str(allocation) == text


def test_constructors_of_allocations_agree() -> None:
    assert Allocation.split(1, 4) == Allocation(comm=1, comp=3)
    assert Allocation.split(0, 4) == Allocation.all_comp(4) == Allocation(comm=0, comp=4)
    assert Allocation.split(4, 4) == Allocation.all_comm(4)
    assert Allocation.unpinned(4) == Allocation(comm=4, comp=4, pinned=False)


@pytest.mark.parametrize("counts", [(0, 0), (-1, 5), (5, -1)])
def test_an_allocation_of_nothing_breaks_an_invariant(counts: tuple[int, int]) -> None:
    with pytest.raises(BrokenInvariant):
        Allocation(comm=counts[0], comp=counts[1])


def test_a_process_without_cores_breaks_an_invariant() -> None:
    with pytest.raises(BrokenInvariant, match="num_cores is 0"):
        CoresChanged(num_cores=0, time=0.0)


def test_a_decision_reads_as_a_sentence() -> None:
    decision = Decision(
        sequence=3,
        time=1.5,
        state=state(1, 1, 0),
        policy="static:1",
        allocation=Allocation.split(1, 4),
        reason=Reason.POLICY,
    )
    assert str(decision) == "#3 1.500000 s S(1,1,0) of 4: comm 1 | comp 3 (policy, static:1)"


@pytest.mark.parametrize(
    ("counts", "is_blocked"),
    [((0, 0, 0), True), ((1, 0, 0), False), ((1, 1, 0), False), ((1, 1, 1), True), ((2, 1, 1), False), ((4, 4, 4), False)],
)
def test_with_inputs_that_travel_a_forward_needs_its_comm_too(counts: tuple[int, int, int], is_blocked: bool) -> None:
    i, j, k = counts
    here = State(cycles=4, num_comm=i, num_forward=j, num_backward=k, prefetch=1, inputs_travel=True)
    assert here.comp_is_blocked is is_blocked
    assert not (here.comm_is_blocked and here.comp_is_blocked)
    if not here.comm_is_done and not here.comm_is_blocked:
        assert here.after(Task.COMM).inputs_travel


def test_with_inputs_that_travel_no_forward_is_done_before_its_comm() -> None:
    with pytest.raises(BrokenInvariant, match="every Forward needs its Comm"):
        State(cycles=4, num_comm=0, num_forward=1, num_backward=0, prefetch=1, inputs_travel=True)
