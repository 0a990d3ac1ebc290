"""The registry of policies: one dict from names to kinds of policies, and the functions that make a policy from its name.

A policy gets a frozen View and returns an Allocation. The controller applies the forced allocations of Eq. 13 to every policy whose
`is_work_conserving` is true, and calls the policy only in the other states. A single core cannot be split: policies that split then
give it to comp, and comm runs while comp is blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scheduler.model.scenario import Profile
from scheduler.model.state import COMPUTE_FIRST, ELASTIC, LOWEST_PRIORITY
from scheduler.policies.adaptive import Adaptive
from scheduler.policies.dynamic import HORIZON, Dynamic
from scheduler.policies.simple import CommPriority, CompPriority, ComputeFirst, Elastic, Random, Static, Unpinned
from scheduler.policies.view import Policy

SHORT_SPIN = 1_000
"""Rounds that a thread of libgomp spins at a barrier before it sleeps, some microseconds; the default is 300 times as many.

A thread that spins holds a core that another thread of its team may need.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRequest:
    """The arguments for making a policy: the text after the colon of its name, and the run's cores and seed.

    `horizon` is the number of cycles that it may plan ahead. None: it plans once to the end, which only a simulation can do.
    `has_workers`: one process computes each shard. `may_change_priority`: the kernel lets a process leave idle priority again.
    """

    argument: str
    num_cores: int
    seed: int
    horizon: int | None
    has_workers: bool
    may_change_priority: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """Start options of a run's two processes for a policy. They cannot change after the start.

    `comm_niceness` is the niceness of the comm worker, 0 (as training) to 19 (lowest priority). With `comm_is_idle` the comm
    worker also runs in the kernel's idle class (SCHED_IDLE, sched(7)): with niceness alone it preempts training when it wakes.
    `spin_count` is the number of rounds that a thread of the training team spins before it sleeps (libgomp's GOMP_SPINCOUNT).
    None: the default of the runtime. With `has_team` one team of threads trains, as in a plain program, unless the user asks for
    shards. With `keeps_memory` a process keeps the memory that it frees, where malloc would return it to the kernel in every step.
    """

    comm_niceness: int = 0
    comm_is_idle: bool = False
    spin_count: int | None = SHORT_SPIN
    has_team: bool = False
    keeps_memory: bool = True


IDLE_PRIORITY = LaunchOptions(comm_niceness=LOWEST_PRIORITY, comm_is_idle=True)
"""On every core that they share, training runs before comm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKind:
    """One kind of policy: its name with the form of its argument, a sentence that describes it, and a function that makes one.

    For a policy with an argument, `arguments` returns the arguments worth trying on a number of cores, the best first.
    """

    usage: str
    sentence: str
    """Begins in lower case and has no full stop: callers add both."""
    make: Callable[[PolicyRequest], Policy]
    arguments: Callable[[int], Iterable[object]] | None = None
    launch_options: LaunchOptions = LaunchOptions()
    shared_mode: str | None = None
    """Name of the shared mode that the policy needs; None if it needs no shared mode."""
    is_random: bool = False
    """Whether every event draws the comm cores uniformly from 1 to cores - 1. Simulations average many runs."""
    plans_whole_run: bool = False
    """Whether a simulated run plans all cycles at its start, which evaluates about cycles x cycles x cores moves."""
    is_predictable: bool = True
    """Whether a simulated run decides as a live one does."""

    def names(self, num_cores: int) -> tuple[str, ...]:
        """Return the names of this kind's policies that are worth trying on `num_cores` cores."""
        if self.arguments is None:
            return (self.usage,)
        kind = self.usage.partition(":")[0]
        return tuple(f"{kind}:{argument}" for argument in self.arguments(num_cores))


_MAX_DIGITS = 4


def _static(request: PolicyRequest) -> Policy:
    argument, num_cores = request.argument, request.num_cores
    highest = _splits("static", num_cores)
    name = f"static:{argument}" if argument else "static"
    if not (argument.isascii() and argument.isdecimal() and len(argument) <= _MAX_DIGITS):
        raise ValueError(f"policy {name!r} needs its number of comm cores: static:<c> with c in 1 .. {highest}")
    if not 1 <= int(argument) <= highest:
        raise ValueError(
            f"policy 'static:{argument}': the comm cores must lie in 1..{highest} because this run has {num_cores} cores"
        )
    return Static(int(argument))


def _random(request: PolicyRequest) -> Policy:
    _splits("random", request.num_cores)
    return Random(request.seed)


def _dynamic(request: PolicyRequest) -> Policy:
    _splits("dynamic", request.num_cores)
    return Dynamic(request.horizon)


def _elastic(request: PolicyRequest) -> Policy:
    _splits("elastic", request.num_cores)
    return Elastic(has_workers=request.has_workers)


def _adaptive(request: PolicyRequest) -> Policy:
    return Adaptive(plans=request.horizon is None, has_workers=request.has_workers, may_change_priority=request.may_change_priority)


def _splits(name: str, num_cores: int) -> int:
    """Return the largest number of comm cores in a split. Raises ValueError if there is only one core."""
    if num_cores < 2:
        raise ValueError(
            f"policy '{name}' splits the cores, and this run has {num_cores};"
            " use adaptive or another policy that needs no split, or use 2 or more cores"
        )
    return num_cores - 1


POLICIES: dict[str, PolicyKind] = {
    "os-default": PolicyKind(
        usage="os-default",
        sentence="a plain torch program: one team of threads trains, the kernel schedules everything; this is the baseline",
        make=lambda request: Unpinned("os-default"),
        launch_options=LaunchOptions(spin_count=None, has_team=True, keeps_memory=False),
    ),
    "os-tuned": PolicyKind(
        usage="os-tuned",
        sentence="nothing is pinned, comm has the lowest priority and OpenMP threads spin less; this is tuning without a scheduler",
        make=lambda request: Unpinned("os-tuned"),
        launch_options=LaunchOptions(comm_niceness=LOWEST_PRIORITY, has_team=True),
    ),
    "os-workers": PolicyKind(
        usage="os-workers",
        sentence="compute workers train and the kernel schedules everything; this is the gain without a scheduler",
        make=lambda request: Unpinned("os-workers"),
    ),
    "static": PolicyKind(
        usage="static:<c>",
        sentence="comm always has c cores and training has the others, with 1 <= c <= cores - 1",
        make=_static,
        arguments=lambda num_cores: range(1, num_cores),
    ),
    "random": PolicyKind(
        usage="random",
        sentence="every event draws a new random split, seeded with --seed",
        make=_random,
        is_random=True,
    ),
    "comm-priority": PolicyKind(
        usage="comm-priority",
        sentence="comm has all cores until every batch is received, then training has all cores",
        make=lambda request: CommPriority(),
    ),
    "comp-priority": PolicyKind(
        usage="comp-priority",
        sentence="training has all cores whenever it can run, otherwise comm has all cores",
        make=lambda request: CompPriority(),
    ),
    COMPUTE_FIRST: PolicyKind(
        usage=COMPUTE_FIRST,
        sentence="training has all cores, and comm runs on the same cores at the lowest priority",
        make=lambda request: ComputeFirst(),
        launch_options=IDLE_PRIORITY,
        shared_mode=COMPUTE_FIRST,
    ),
    ELASTIC: PolicyKind(
        usage=ELASTIC,
        sentence="comm has a core of its own, and a compute worker at the lowest priority uses the time that comm leaves there",
        make=_elastic,
        shared_mode=ELASTIC,
    ),
    "dynamic": PolicyKind(
        usage="dynamic",
        sentence="every event plans the next cycles with rates from a profile or from the run, and takes the plan's first split",
        make=_dynamic,
        plans_whole_run=True,
    ),
    "adaptive": PolicyKind(
        usage="adaptive",
        sentence="while the buffer is low comm runs first as in elastic, and while it is high training does as in compute-first",
        make=_adaptive,
        is_predictable=False,
    ),
}


def make_policy(
    name: str,
    *,
    num_cores: int,
    seed: int,
    profile: Profile | None = None,
    horizon: int | None = HORIZON,
    has_workers: bool = True,
    may_change_priority: bool = True,
) -> Policy:
    """Make the policy with this name for a run on `num_cores` cores. `seed` is for `random`, `horizon` for `dynamic`.

    `has_workers` and `may_change_priority` describe the run's processes for `adaptive`, see `PolicyRequest`.

    The policy gets the rates of `profile` through the controller, which must have the same profile. Here only its number of cores
    is checked. Raises ValueError, naming the value, the rule and the allowed values.
    """
    if num_cores < 1:
        raise ValueError(f"num_cores is {num_cores}; a run needs at least 1")
    if profile is not None:
        profile.check_cores(num_cores)
    argument = name.partition(":")[2]
    return kind_of(name).make(
        PolicyRequest(
            argument=argument,
            num_cores=num_cores,
            seed=seed,
            horizon=horizon,
            has_workers=has_workers,
            may_change_priority=may_change_priority,
        )
    )


def kind_of(name: str) -> PolicyKind:
    """Return the kind of policy with this name. Raises ValueError for an unknown name or an unexpected argument."""
    word, colon, _ = name.partition(":")
    kind = POLICIES.get(word)
    usages = ", ".join(known.usage for known in POLICIES.values())
    if kind is None:
        raise ValueError(f"policy {name!r} is unknown; the policies are {usages}")
    if colon and kind.usage == word:
        raise ValueError(f"policy {name!r}: '{word}' takes no argument; the policies are {usages}")
    return kind
