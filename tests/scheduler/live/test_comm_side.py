"""The comm half of the loop: only changes reach the worker and the kernel."""

from typing import Any

import pytest

from scheduler.live.comm_side import CommSide
from scheduler.live.threads import BindingRefusedError, ThreadMasks
from scheduler.model.handover import CommEffect, Handover

TWO, THREE = frozenset({2}), frozenset({3})
KEEP, HOLD = Handover(comm=CommEffect.KEEP), Handover(comm=CommEffect.HOLD)


def pin(cores: frozenset[int]) -> Handover:
    return Handover(comm=CommEffect.PIN, comm_cores=cores)


def unpin(cores: frozenset[int]) -> Handover:
    return Handover(comm=CommEffect.UNPIN, comm_cores=cores)


class Fakes:
    """A comm port and a binding that record their calls in one list. `refuses` makes the binding raise."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.refuses = False
        self.new_masks: ThreadMasks | None = None

    def hold(self) -> None:
        self.calls.append("hold")

    def release(self) -> None:
        self.calls.append("release")

    def apply(self, cores: frozenset[int]) -> ThreadMasks:
        self._check()
        self.calls.append(set(cores))
        return {1: tuple(sorted(cores))}

    def set_idle_priority(self, has_idle_priority: bool) -> None:
        self._check()
        self.calls.append(has_idle_priority)

    def pin_new_threads(self) -> ThreadMasks | None:
        return self.new_masks

    def _check(self) -> None:
        if self.refuses:
            raise BindingRefusedError(1, "refused")


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def side(fakes: Fakes) -> CommSide:
    return CommSide(fakes, fakes)  # type: ignore[arg-type]


def test_a_repeated_request_changes_nothing(side: CommSide, fakes: Fakes) -> None:
    for handover in (pin(TWO), pin(TWO), HOLD, HOLD, KEEP, pin(TWO), pin(THREE)):
        side.apply(handover)
    assert fakes.calls == [{2}, "hold", "release", {3}]
    assert side.masks == {1: (3,)}


def test_a_held_worker_is_pinned_before_its_release(side: CommSide, fakes: Fakes) -> None:
    side.apply(HOLD)
    assert side.is_held
    side.apply(pin(TWO))
    assert not side.is_held
    assert fakes.calls == ["hold", {2}, "release"]


def test_an_unpinned_worker_that_was_never_pinned_keeps_its_mask(side: CommSide, fakes: Fakes) -> None:
    side.apply(unpin(TWO | THREE))
    assert fakes.calls == []
    side.apply(pin(TWO))
    side.apply(unpin(TWO | THREE))
    assert fakes.calls == [{2}, {2, 3}]


def test_a_refused_mask_still_releases_the_worker(side: CommSide, fakes: Fakes) -> None:
    side.apply(HOLD)
    fakes.refuses = True
    with pytest.raises(BindingRefusedError):
        side.apply(pin(TWO))
    assert fakes.calls == ["hold", "release"]
    fakes.refuses = False
    side.apply(pin(TWO))
    assert fakes.calls[2:] == [{2}]


def test_a_forgotten_mask_is_set_again(side: CommSide, fakes: Fakes) -> None:
    side.apply(pin(TWO))
    side.forget()
    side.apply(pin(TWO))
    assert fakes.calls == [{2}, {2}]


def test_an_ended_worker_gets_no_calls(side: CommSide, fakes: Fakes) -> None:
    side.apply(pin(TWO))
    side.end()
    for handover in (HOLD, pin(THREE), unpin(TWO)):
        side.apply(handover)
    side.set_idle_priority(True, fakes.calls.append)
    assert fakes.calls == [{2}]
    assert side.masks == {}


def test_idle_priority_is_set_on_changes_only(side: CommSide, fakes: Fakes) -> None:
    for has_idle_priority in (False, True, True, False):
        side.set_idle_priority(has_idle_priority, lambda record: pytest.fail(str(record)))
    assert fakes.calls == [True, False]


def test_a_refused_class_is_recorded_once_and_never_tried_again(side: CommSide, fakes: Fakes) -> None:
    records: list[dict[str, Any]] = []
    side.set_idle_priority(True, records.append)
    fakes.refuses = True
    side.set_idle_priority(False, records.append)
    fakes.refuses = False
    side.set_idle_priority(False, records.append)
    assert records == [{"event": "comm-class-refused", "is_behind": True, "cause": "[Errno 1] refused"}]
    assert fakes.calls == [True]


def test_after_the_end_of_pinning_a_pinned_worker_gets_all_cores_once(side: CommSide, fakes: Fakes) -> None:
    side.apply(pin(TWO))
    side.stop_pinning(TWO | THREE)
    side.apply(pin(THREE))
    fakes.new_masks = {9: (2,)}
    side.pin_new_threads()
    assert fakes.calls == [{2}, {2, 3}]
    assert side.masks == {1: (2, 3)}


@pytest.mark.parametrize("was_pinned", [False, True])
def test_the_end_of_pinning_raises_nothing(was_pinned: bool, side: CommSide, fakes: Fakes) -> None:
    if was_pinned:
        side.apply(pin(TWO))
    fakes.refuses = True
    side.stop_pinning(TWO | THREE)
    assert fakes.calls == ([{2}] if was_pinned else [])


def test_masks_of_new_threads_are_kept(side: CommSide, fakes: Fakes) -> None:
    side.apply(pin(TWO))
    side.pin_new_threads()
    assert side.masks == {1: (2,)}
    fakes.new_masks = {1: (2,), 4: (2,)}
    side.pin_new_threads()
    assert side.masks == {1: (2,), 4: (2,)}
