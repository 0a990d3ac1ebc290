"""Who gets the cores when both sides can run: one small class per policy, and the one dict of their names.

A policy sees a frozen View and answers with an Allocation. The forced allocations of Eq. 13 are not its business: the
controller applies them to every policy whose `is_work_conserving` is true, and asks only in the remaining states. With a
single core left there is nothing to split; policies that split then leave it to comp, and comm runs while comp is blocked.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from scheduler.cost import RateTable, Workload
from scheduler.dynamic import solve
from scheduler.scenario import Profile
from scheduler.state import Allocation, State

HORIZON = 8
"""Cycles that `dynamic` plans ahead during a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a policy may know at an event.

    `comm_left` and `comp_left` are the work remaining of the two running tasks, `workload` that of a whole cycle. All work
    is in the units of `rates` (see Controller); `rates` is None where they are not known, never for `needs_rates` policies.
    """

    state: State
    num_cores: int
    comm_left: float
    comp_left: float
    workload: Workload
    rates: RateTable | None


class Policy(Protocol):
    """What the controller asks. `needs_rates`: without a profile the controller first measures some splits (LEARNING)."""

    @property
    def name(self) -> str:
        """As the user gave it."""

    @property
    def is_work_conserving(self) -> bool:
        """Whether the forced allocations of Eq. 13 apply."""

    @property
    def needs_rates(self) -> bool:
        """Whether `choose` reads `View.rates`."""

    def choose(self, view: View) -> Allocation:
        """The allocation until the next event."""


class OsDefault:
    """What a user has today: nothing is pinned, the kernel shares the cores."""

    name: ClassVar[str] = "os-default"
    is_work_conserving: ClassVar[bool] = False
    needs_rates: ClassVar[bool] = False

    def choose(self, view: View) -> Allocation:
        """Unpinned, always."""
        return Allocation.unpinned(view.num_cores)


class Static:
    """The same split at every event. If cores are taken away, at most C-1 of those that are left."""

    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def __init__(self, comm_cores: int) -> None:
        self.comm_cores = comm_cores
        self.name = f"static:{comm_cores}"

    def choose(self, view: View) -> Allocation:
        """`comm_cores` to comm."""
        return Allocation.split(min(self.comm_cores, view.num_cores - 1), view.num_cores)


class Random:
    """A split uniform in 1..C-1 at every event, from a generator of its own."""

    name: ClassVar[str] = "random"
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)

    def choose(self, view: View) -> Allocation:
        """The next draw."""
        if view.num_cores == 1:
            return Allocation.all_comp(1)
        return Allocation.split(self._generator.randint(1, view.num_cores - 1), view.num_cores)


class CommPriority:
    """Exclusive: all cores to comm until all comm is done, then all to comp."""

    name: ClassVar[str] = "comm-priority"
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def choose(self, view: View) -> Allocation:
        """All to comm."""
        return Allocation.all_comm(view.num_cores)


class CompPriority:
    """Exclusive: all cores to comp whenever it can run, else to comm."""

    name: ClassVar[str] = "comp-priority"
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = False

    def choose(self, view: View) -> Allocation:
        """All to comp."""
        return Allocation.all_comp(view.num_cores)


class Dynamic:
    """The paper's policy: plan the next cycles from here (Eq. 15, `dynamic.solve`), take the first move."""

    name: ClassVar[str] = "dynamic"
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = True

    def choose(self, view: View) -> Allocation:
        """The first split of a plan over the next HORIZON cycles, or up to the batch that comm is at if that is further."""
        if view.num_cores <= 2:  # one possible split, or none
            return Allocation.split(view.num_cores - 1, view.num_cores)
        assert view.rates is not None, "the controller asks for a choice only once the rates are known"
        state, work = view.state, view.workload
        # The plan's cycles count from the first that is not trained yet.
        ahead = state.num_comm - state.num_backward
        length = min(max(HORIZON, ahead + 1), state.cycles - state.num_backward)
        comm = [work.comm] * length
        comm[ahead] = view.comm_left
        comp = [work.forward, work.backward] * length
        comp[state.num_forward - state.num_backward] = view.comp_left
        plan = solve(
            comm=comm,
            comp=comp,
            rates=view.rates,
            prefetch=state.prefetch,
            num_comm=ahead,
            num_comp=state.num_forward - state.num_backward,
        )
        return Allocation.split(plan.first_split, view.num_cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a name becomes a policy: `make(argument, num_cores, seed)`, the name as it is typed, a sentence for --help."""

    usage: str
    sentence: str
    make: Callable[[str, int, int], Policy]


def _static(argument: str, num_cores: int, seed: int) -> Policy:
    highest = _splits("static", num_cores)
    if not (argument.isascii() and argument.isdecimal()):
        raise ValueError(f"policy 'static:{argument}': the number of comm cores must follow, 1..{highest}, e.g. static:1")
    if not 1 <= int(argument) <= highest:
        raise ValueError(
            f"policy 'static:{argument}': the comm cores must lie in 1..{highest} because this run has {num_cores} cores"
        )
    return Static(int(argument))


def _random(argument: str, num_cores: int, seed: int) -> Policy:
    _splits("random", num_cores)
    return Random(seed)


def _dynamic(argument: str, num_cores: int, seed: int) -> Policy:
    _splits("dynamic", num_cores)
    return Dynamic()


def _splits(name: str, num_cores: int) -> int:
    """The most cores that comm can have beside comp. ValueError where there is nothing to split."""
    if num_cores < 2:
        raise ValueError(
            f"policy '{name}' splits the cores, and this run has {num_cores};"
            " use os-default, comm-priority or comp-priority, or give it 2 cores or more"
        )
    return num_cores - 1


POLICIES: dict[str, Recipe] = {
    "os-default": Recipe(
        usage="os-default",
        sentence="nothing is pinned and the kernel shares the cores: the baseline",
        make=lambda argument, num_cores, seed: OsDefault(),
    ),
    "static": Recipe(
        usage="static:<c>",
        sentence="always c cores to comm and the rest to training, 1 <= c <= cores - 1",
        make=_static,
    ),
    "random": Recipe(
        usage="random",
        sentence="a new random split at every event, from --seed",
        make=_random,
    ),
    "comm-priority": Recipe(
        usage="comm-priority",
        sentence="all cores to comm until everything is received, then all to training",
        make=lambda argument, num_cores, seed: CommPriority(),
    ),
    "comp-priority": Recipe(
        usage="comp-priority",
        sentence="all cores to training whenever it can run, else to comm",
        make=lambda argument, num_cores, seed: CompPriority(),
    ),
    "dynamic": Recipe(
        usage="dynamic",
        sentence="the split that a plan of the next cycles begins with, from a profile or from rates learnt during the run",
        make=_dynamic,
    ),
}


def make_policy(name: str, *, num_cores: int, seed: int, profile: Profile | None = None) -> Policy:
    """The policy of this name for a run on `num_cores` cores; `seed` feeds `random`.

    The rates of `profile` reach a policy through the controller, which must be given the same one; here it is only checked
    against the run. ValueError, naming the value, the rule and what is allowed, for everything that cannot be.
    """
    if num_cores < 1:
        raise ValueError(f"num_cores is {num_cores}; a run needs at least 1")
    if profile is not None:
        profile.check_cores(num_cores)
    kind, colon, argument = name.partition(":")
    recipe = POLICIES.get(kind)
    usages = ", ".join(known.usage for known in POLICIES.values())
    if recipe is None:
        raise ValueError(f"policy {name!r} is unknown; the policies are {usages}")
    if colon and recipe.usage == kind:
        raise ValueError(f"policy {name!r}: '{kind}' takes no argument; the policies are {usages}")
    return recipe.make(argument, num_cores, seed)
