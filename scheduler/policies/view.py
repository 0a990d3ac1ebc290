"""What a policy is asked and what it may know: the protocol behind which every policy stands."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

from scheduler.model.cost import RateTable
from scheduler.model.state import Allocation, State


class Works(Protocol):
    """What every task of a run costs, in the units of the rates: the same in each cycle, or task by task."""

    def tasks(self, first: int, last: int) -> tuple[list[float], list[float]]:
        """The works of cycles `first` to `last` - 1: of Comm [cycles], and of Forward and Backward in turn [2 cycles]."""


class View(NamedTuple):
    """What a policy may know at an event. It is made at every event, and a tuple is made fastest.

    The state S_{i,j,k} as in `State`; `comm_left` and `comp_left` are the work remaining of the two running tasks, `works` that
    of all tasks. All work is in the units of `rates`, which is None where nobody knows them or the policy said that it needs none.
    `noise` is the relative error that a time predicted by them must be believed to have; 0 where they are exact.
    `time` is the event's, in seconds; NaN where a whole run is thought through at once.
    """

    num_cores: int
    cycles: int
    prefetch: int | None
    num_comm: int
    num_forward: int
    num_backward: int
    comm_left: float
    comp_left: float
    works: Works
    rates: RateTable | None
    noise: float = 0.0
    time: float = math.nan

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
        noise: float = 0.0,
        time: float = math.nan,
    ) -> View:
        """The view from this state."""
        counts = (state.num_comm, state.num_forward, state.num_backward)
        return cls(num_cores, state.cycles, state.prefetch, *counts, comm_left, comp_left, works, rates, noise, time)


class Policy(Protocol):
    """What the controller asks, one policy object for each run.

    One that reads `View.rates` is a `Planner` too.
    """

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def is_work_conserving(self) -> bool:
        """Whether the forced allocations of Eq. 13 apply. Asked at every event: it may change during a run."""

    @property
    def needs_rates(self) -> bool:
        """Whether the next `choose` reads `View.rates`. Asked at every event: it may change during a run."""

    def choose(self, view: View) -> Allocation:
        """The allocation until the next event."""


@runtime_checkable
class Planner(Protocol):
    """A policy that plans with rates. Without a profile the controller first measures what it asks for (LEARNING)."""

    @property
    def strategy(self) -> str:
        """What it goes by now, in a few words for logs, which are written when it changes."""

    def describe(self) -> dict[str, object]:
        """What made it do so, beside the rates, as plain values for logs."""

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        """The allocations to measure before `choose` can plan, in this order."""


@runtime_checkable
class Remembering(Protocol):
    """A policy that has something to remember when a run goes on in another process."""

    def to_json(self) -> dict[str, Any]:
        """What it has learnt, as plain values."""

    def recall(self, data: Any, where: str) -> None:
        """Know it again, before it is asked anything. ValueError, beginning with `where`, for what `to_json` cannot have told."""


def split_trials(num_cores: int) -> tuple[Allocation, ...]:
    """The splits that tell most about all of them: in the middle, and with one core for either side."""
    return tuple(Allocation.split(c, num_cores) for c in dict.fromkeys((num_cores // 2, 1, num_cores - 1)))
