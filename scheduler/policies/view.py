"""The protocols that policies implement, and the view of a run that a policy gets."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

from scheduler.model.cost import RateTable
from scheduler.model.state import Allocation, State


class Works(Protocol):
    """The work of every task of a run, in the unit of the rates: equal for all cycles, or one value per task."""

    def tasks(self, first: int, last: int) -> tuple[list[float], list[float]]:
        """Return the works of cycles `first` to `last` - 1: of Comm [n], and of F, B, F, B, ... [2n]."""


class View(NamedTuple):
    """The information that a policy gets at an event. A tuple, because one is built at every event and tuples are the fastest.

    The counts are those of the state S_{i,j,k}, see `State`. `comm_left` and `comp_left` are the remaining work of the two running
    tasks, `works` is the work of all tasks. All work is in the unit of `rates`. `rates` is None if they are not known. In a live
    run only a `Planner` gets rates, works and remaining work. Other policies get None, None and NaN.
    """

    num_cores: int
    cycles: int
    prefetch: int | None
    num_comm: int
    num_forward: int
    num_backward: int
    comm_left: float
    comp_left: float
    works: Works | None
    rates: RateTable | None

    @classmethod
    def without_rates(cls, state: State, num_cores: int) -> View:
        """Build the view of this state for a policy that is no `Planner`."""
        counts = (state.num_comm, state.num_forward, state.num_backward)
        return cls(num_cores, state.cycles, state.prefetch, *counts, math.nan, math.nan, None, None)

    @classmethod
    def of(
        cls,
        state: State,
        *,
        num_cores: int,
        comm_left: float,
        comp_left: float,
        works: Works,
        rates: RateTable | None,
    ) -> View:
        """Build the view of this state."""
        counts = (state.num_comm, state.num_forward, state.num_backward)
        return cls(num_cores, state.cycles, state.prefetch, *counts, comm_left, comp_left, works, rates)


class Policy(Protocol):
    """The rule that chooses an allocation; one object per run. One that reads `View.rates` in a live run must be a `Planner`."""

    @property
    def name(self) -> str:
        """The name in canonical spelling, for example static:1."""

    @property
    def is_work_conserving(self) -> bool:
        """Whether the forced allocations of Eq. 13 apply. The controller reads it at every event, as it may change in a run."""

    def choose(self, view: View) -> Allocation:
        """Return the allocation until the next event."""


@runtime_checkable
class Planner(Protocol):
    """A policy that plans with rates, which the controller learns for it alone.

    Without a profile, the controller first measures its warm-up allocations (LEARNING).
    """

    @property
    def strategy(self) -> str:
        """The current strategy, in a few words. A log record is written when it changes."""

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        """Return the allocations to measure, in this order, before `choose` can plan."""


@runtime_checkable
class Remembering(Protocol):
    """A policy with state that must be restored when a run resumes in another process."""

    def to_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""

    def recall(self, data: Any, where: str) -> None:
        """Restore the state before the first `choose`. Raises ValueError, beginning with `where`, for invalid data."""


def warm_up_splits(num_cores: int) -> tuple[Allocation, ...]:
    """Return the three splits that determine the rates of all splits best: the middle one, and one core for either side."""
    return tuple(Allocation.split(c, num_cores) for c in dict.fromkeys((num_cores // 2, 1, num_cores - 1)))
