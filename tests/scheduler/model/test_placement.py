"""The mapping of core counts to core ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.model.placement import Placement, place
from scheduler.model.state import Allocation


def test_comm_takes_the_lowest_cores_and_comp_the_highest() -> None:
    assert place(Allocation.split(1, 4), [7, 2, 3, 5]) == Placement(comm=frozenset({2}), comp=(3, 5, 7), is_pinned=True)


def test_an_exclusive_side_gets_everything() -> None:
    assert place(Allocation.all_comm(3), range(3)) == Placement(comm=frozenset({0, 1, 2}), comp=(), is_pinned=True)
    assert place(Allocation.all_comp(3), range(3)) == Placement(comm=frozenset(), comp=(0, 1, 2), is_pinned=True)


def test_unpinned_gives_both_sides_every_core() -> None:
    assert place(Allocation.unpinned(2), [4, 6]) == Placement(comm=frozenset({4, 6}), comp=(4, 6), is_pinned=False)


def test_a_shared_mode_gives_both_sides_every_core_and_is_marked_as_shared() -> None:
    placement = place(Allocation.sharing("compute-first", 2), [4, 6])
    assert placement == Placement(comm=frozenset({4, 6}), comp=(4, 6), is_pinned=True, is_shared=True)


@pytest.mark.parametrize("allocation", [Allocation.split(1, 4), Allocation.all_comp(4), Allocation.unpinned(4)])
def test_more_cores_than_there_are_is_an_error(allocation: Allocation) -> None:
    with pytest.raises(ValueError, match=f"'{allocation!s}' needs 4 cores, but only 3 may be used".replace("|", r"\|")):
        place(allocation, [0, 1, 2])


@given(cores=st.sets(st.integers(0, 200), min_size=1, max_size=64), data=st.data())
def test_sides_of_a_pinned_allocation_never_share_a_core(cores: set[int], data: st.DataObject) -> None:
    comm_cores = data.draw(st.integers(0, len(cores)))
    placement = place(Allocation.split(comm_cores, len(cores)), list(cores))
    assert len(placement.comm) == comm_cores
    assert placement.comm.isdisjoint(placement.comp)
    assert placement.comm | set(placement.comp) == cores
    assert list(placement.comp) == sorted(placement.comp)
