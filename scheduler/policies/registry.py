"""Who gets the cores when both sides can run: one small class per policy, and the one dict of their names.

A policy sees a frozen View and answers with an Allocation. The forced allocations of Eq. 13 are not its business: the
controller applies them to every policy whose `is_work_conserving` is true, and asks only in the remaining states. With a
single core left there is nothing to split; policies that split then leave it to comp, and comm runs while comp is blocked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scheduler.model.scenario import Profile
from scheduler.model.state import COMPUTE_FIRST
from scheduler.policies.adaptive import Adaptive
from scheduler.policies.dynamic import HORIZON, Dynamic
from scheduler.policies.simple import CommPriority, CompPriority, ComputeFirst, Random, Static, Unpinned
from scheduler.policies.view import Policy

LOWEST_PRIORITY = 19
"""The niceness at which a process yields to every other."""

SHORT_SPIN = 30_000
"""Rounds of libgomp's spinning, about 0.1 ms; its own default is ten times that. Threads that share cores with others make room
sooner, and fall asleep at more barriers: on a virtual machine, where to wake them is slow, a step takes up to a tenth longer.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRequest:
    """What a policy is made for: the text behind the colon of its name, the run's cores and seed, and how many cycles ahead
    it may plan (None: to the end, once, as only a simulation can)."""

    argument: str
    num_cores: int
    seed: int
    horizon: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How a run's two processes are started for a policy, because nothing of it can be changed afterwards.

    `comm_niceness` is the priority of the comm worker, 0 (equal to training) to 19 (behind it). With `comm_is_idle` it also runs in
    the kernel's class for such work (SCHED_IDLE, sched(7)): niceness alone lets it interrupt training when it wakes. `spin_count`
    is how many rounds a thread of training's team spins before it sleeps (libgomp's GOMP_SPINCOUNT); None: as the runtime likes.
    """

    comm_niceness: int = 0
    comm_is_idle: bool = False
    spin_count: int | None = None


IDLE_PRIORITY = LaunchOptions(comm_niceness=LOWEST_PRIORITY, comm_is_idle=True)
"""Comm yields to training wherever they share a core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyKind:
    """How a name becomes a policy: the name as it is typed, a sentence for --help, and its maker.

    `arguments` are, for a policy with one, those worth trying on so many cores, the first of them if only one is.
    """

    usage: str
    sentence: str
    make: Callable[[PolicyRequest], Policy]
    arguments: Callable[[int], Iterable[object]] | None = None
    launch_options: LaunchOptions = LaunchOptions()
    shared_mode: str | None = None
    """The shared mode without which the policy can do nothing."""

    def names(self, num_cores: int) -> tuple[str, ...]:
        """The policies of this kind that are worth trying on so many cores."""
        if self.arguments is None:
            return (self.usage,)
        kind = self.usage.partition(":")[0]
        return tuple(f"{kind}:{argument}" for argument in self.arguments(num_cores))


_MAX_DIGITS = 4


def _static(request: PolicyRequest) -> Policy:
    argument, num_cores = request.argument, request.num_cores
    highest = _splits("static", num_cores)
    if not (argument.isascii() and argument.isdecimal() and len(argument) <= _MAX_DIGITS):
        raise ValueError(f"policy 'static:{argument}': the number of comm cores must follow, 1..{highest}, e.g. static:1")
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


def _adaptive(request: PolicyRequest) -> Policy:
    _splits("adaptive", request.num_cores)
    return Adaptive()


def _splits(name: str, num_cores: int) -> int:
    """The most cores that comm can have beside comp. ValueError where there is nothing to split."""
    if num_cores < 2:
        raise ValueError(
            f"policy '{name}' splits the cores, and this run has {num_cores};"
            " use os-default, comm-priority or comp-priority, or give it 2 cores or more"
        )
    return num_cores - 1


POLICIES: dict[str, PolicyKind] = {
    "os-default": PolicyKind(
        usage="os-default",
        sentence="nothing is pinned and the kernel shares the cores: the baseline",
        make=lambda request: Unpinned("os-default"),
    ),
    "os-tuned": PolicyKind(
        usage="os-tuned",
        sentence="nothing is pinned, comm has the lowest priority and OpenMP's threads spin less: what an expert does by hand",
        make=lambda request: Unpinned("os-tuned"),
        launch_options=LaunchOptions(comm_niceness=LOWEST_PRIORITY, spin_count=SHORT_SPIN),
    ),
    "static": PolicyKind(
        usage="static:<c>",
        sentence="always c cores to comm and the rest to training, 1 <= c <= cores - 1",
        make=_static,
        arguments=lambda num_cores: range(1, num_cores),
    ),
    "random": PolicyKind(
        usage="random",
        sentence="a new random split at every event, from --seed",
        make=_random,
    ),
    "comm-priority": PolicyKind(
        usage="comm-priority",
        sentence="all cores to comm until everything is received, then all to training",
        make=lambda request: CommPriority(),
    ),
    "comp-priority": PolicyKind(
        usage="comp-priority",
        sentence="all cores to training whenever it can run, else to comm",
        make=lambda request: CompPriority(),
    ),
    COMPUTE_FIRST: PolicyKind(
        usage=COMPUTE_FIRST,
        sentence="all cores to training, and comm behind it on the same cores, at the lowest priority",
        make=lambda request: ComputeFirst(),
        launch_options=IDLE_PRIORITY,
        shared_mode=COMPUTE_FIRST,
    ),
    "dynamic": PolicyKind(
        usage="dynamic",
        sentence="the split that a plan of the next cycles begins with, from a profile or from rates learnt during the run",
        make=_dynamic,
    ),
    "adaptive": PolicyKind(
        usage="adaptive",
        sentence="the best of compute-first, splits, the kernel's own way and a plan by rates, found by the stopwatch",
        make=_adaptive,
    ),
}


def make_policy(name: str, *, num_cores: int, seed: int, profile: Profile | None = None, horizon: int | None = HORIZON) -> Policy:
    """The policy of this name for a run on `num_cores` cores; `seed` feeds `random`, `horizon` is how far `dynamic` plans.

    The rates of `profile` reach a policy through the controller, which must be given the same one; here it is only checked
    against the run. ValueError, naming the value, the rule and what is allowed, for everything that cannot be.
    """
    if num_cores < 1:
        raise ValueError(f"num_cores is {num_cores}; a run needs at least 1")
    if profile is not None:
        profile.check_cores(num_cores)
    argument = name.partition(":")[2]
    return kind_of(name).make(PolicyRequest(argument=argument, num_cores=num_cores, seed=seed, horizon=horizon))


def kind_of(name: str) -> PolicyKind:
    """The kind of policy that a name asks for. ValueError if there is none, or for an argument it does not take."""
    word, colon, _ = name.partition(":")
    kind = POLICIES.get(word)
    usages = ", ".join(known.usage for known in POLICIES.values())
    if kind is None:
        raise ValueError(f"policy {name!r} is unknown; the policies are {usages}")
    if colon and kind.usage == word:
        raise ValueError(f"policy {name!r}: '{word}' takes no argument; the policies are {usages}")
    return kind
