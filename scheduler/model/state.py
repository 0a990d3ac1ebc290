"""The words of scheduling: tasks, the state they lead to, allocations of cores, events and decisions.

Every value here is frozen and checks itself. Nothing in this room knows what time it is: events carry the time, in seconds of
whatever monotonic clock their sender reads. Equation numbers are those of Lin et al. (AIoTSys 2024), see docs/architecture.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TypeAlias

COMPUTE_FIRST = "compute-first"
"""The shared mode that a real device has: training on every core, and behind it comm on every core, at the lowest priority."""


class BrokenInvariant(AssertionError):
    """We, not the user, did something that cannot happen; the message tells what."""


class Task(Enum):
    """The three tasks of one cycle."""

    COMM = "comm"
    FORWARD = "forward"
    BACKWARD = "backward"


class Reason(Enum):
    """Why a decision gave the cores as it did."""

    POLICY = "policy"
    """Both sides can run, and the policy chose."""
    COMP_BLOCKED = "comp-blocked"
    """Training waits for logits: all cores to comm (Eq. 13, case 1)."""
    COMM_DONE = "comm-done"
    """Nothing is left to receive: all cores to comp (Eq. 13, case 2)."""
    COMM_BLOCKED = "comm-blocked"
    """The prefetch buffer is full: all cores to comp."""
    FINISHED = "finished"
    """Every task of the run is done."""
    UNMANAGED = "unmanaged"
    """The policy leaves the cores to the kernel."""
    LEARNING = "learning"
    """The policy plans with rates, and this split has yet to be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """S_{i,j,k} of a run of N cycles: how many Comm, Forward and Backward tasks are complete.

    With `inputs_travel` a Forward needs its Comm too, because that brings the inputs; without, as in the paper, only a Backward
    does. `prefetch` is how many batches comm may run ahead of training; None means no limit. A ValueError for numbers a user
    chooses (`cycles`, `prefetch`), BrokenInvariant for counts that no run can reach.
    """

    cycles: int
    num_comm: int
    num_forward: int
    num_backward: int
    prefetch: int | None
    inputs_travel: bool = False

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise ValueError(f"cycles is {self.cycles}; a run needs at least 1")
        if self.prefetch is not None and self.prefetch < 1:
            raise ValueError(f"prefetch is {self.prefetch}; it must be at least 1, or training would wait forever for its logits")
        i, j, k = self.num_comm, self.num_forward, self.num_backward
        if not 0 <= k <= j <= min(k + 1, self.cycles):
            raise BrokenInvariant(f"{self}: Forward and Backward must alternate, and end after {self.cycles} cycles")
        if self.inputs_travel and i < j:
            raise BrokenInvariant(f"{self}: every Forward needs its Comm where inputs travel")
        if not k <= i <= self.cycles:
            raise BrokenInvariant(f"{self}: every Backward needs its Comm, and Comm ends after {self.cycles} cycles")

    @classmethod
    def initial(cls, *, cycles: int, prefetch: int | None = None, inputs_travel: bool = False, done: int = 0) -> State:
        """S_{0,0,0} of a run, or S_{k,k,k} of one that goes on after `done` cycles."""
        counts = {"num_comm": done, "num_forward": done, "num_backward": done}
        return cls(cycles=cycles, prefetch=prefetch, inputs_travel=inputs_travel, **counts)

    @property
    def num_comp(self) -> int:
        """Comp tasks done, 0 to 2N: the position in F1 B1 F2 B2 ..."""
        return self.num_forward + self.num_backward

    @property
    def comm_is_done(self) -> bool:
        """Whether nothing is left to receive."""
        return self.num_comm == self.cycles

    @property
    def comp_is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self.num_backward == self.cycles

    @property
    def is_finished(self) -> bool:
        """Whether this is S_{N,N,N}."""
        return self.comm_is_done and self.comp_is_done

    @property
    def comm_is_blocked(self) -> bool:
        """Whether the next Comm task has no free slot: i + 1 > k + prefetch."""
        if self.comm_is_done or self.prefetch is None:
            return False
        return self.num_comm + 1 > self.num_backward + self.prefetch

    @property
    def comp_is_blocked(self) -> bool:
        """Whether the next comp task needs Comm_{k+1}, and that is not done (Eq. 13 writes i < j, for B_{k+1})."""
        if self.inputs_travel:
            return self.num_comm == self.num_backward < self.cycles
        return self.num_comm < self.num_forward

    @property
    def next_comp(self) -> Task:
        """The comp task that runs or waits now. BrokenInvariant when `comp_is_done`."""
        if self.comp_is_done:
            raise BrokenInvariant(f"{self} has no next comp task")
        return Task.BACKWARD if self.num_forward > self.num_backward else Task.FORWARD

    @property
    def next_comm_index(self) -> int:
        """Index, from 0, of the batch that comm receives now."""
        return self.num_comm

    @property
    def next_comp_index(self) -> int:
        """Index, from 0, of the cycle that the next comp task belongs to."""
        return self.num_backward

    def after(self, task: Task) -> State:
        """The state when `task` has completed. BrokenInvariant if it could not have."""
        return State(
            cycles=self.cycles,
            num_comm=self.num_comm + (task is Task.COMM),
            num_forward=self.num_forward + (task is Task.FORWARD),
            num_backward=self.num_backward + (task is Task.BACKWARD),
            prefetch=self.prefetch,
            inputs_travel=self.inputs_travel,
        )

    def __str__(self) -> str:
        return f"S({self.num_comm},{self.num_forward},{self.num_backward}) of {self.cycles}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """How many cores each side gets. With `pinned` False the kernel decides, and both sides may use all of theirs.

    `shared` names a mode in which both sides are given every core on purpose, one of them behind the other; None: they divide
    the cores. The makers below return the same object for the same arguments, because a simulation asks for millions.
    """

    comm: int
    comp: int
    pinned: bool = True
    shared: str | None = None

    def __post_init__(self) -> None:
        if self.comm < 0 or self.comp < 0 or self.comm + self.comp == 0:
            raise BrokenInvariant(f"comm={self.comm}, comp={self.comp} is no allocation: counts are >= 0, and one is > 0")

    @classmethod
    @cache
    def split(cls, comm_cores: int, num_cores: int) -> Allocation:
        """`comm_cores` (0 to `num_cores`) to comm and the rest to comp (Eq. 12 with equality)."""
        return cls(comm=comm_cores, comp=num_cores - comm_cores)

    @classmethod
    @cache
    def all_comm(cls, num_cores: int) -> Allocation:
        """Every core to comm; training waits at its next boundary."""
        return cls(comm=num_cores, comp=0)

    @classmethod
    @cache
    def all_comp(cls, num_cores: int) -> Allocation:
        """Every core to comp; receiving is held between chunks."""
        return cls(comm=0, comp=num_cores)

    @classmethod
    @cache
    def unpinned(cls, num_cores: int) -> Allocation:
        """Nothing is pinned: both sides may use all cores, as without any scheduler."""
        return cls(comm=num_cores, comp=num_cores, pinned=False)

    @classmethod
    @cache
    def sharing(cls, mode: str, num_cores: int) -> Allocation:
        """Every core to both sides, in the shared mode of this name."""
        return cls(comm=num_cores, comp=num_cores, shared=mode)

    def __str__(self) -> str:
        if not self.pinned:
            return "unpinned"
        if self.shared is not None:
            return self.shared
        if self.comm == 0:
            return "all to comp"
        if self.comp == 0:
            return "all to comm"
        return f"comm {self.comm} | comp {self.comp}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Both sides start. `time` in seconds; the first event of every run."""

    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDone:
    """The running task of this kind completed at `time`, in seconds.

    `busy_s`: of a Comm, the seconds in which it computed or waited for a core, the others being waits for the link; None if nobody
    looked.
    """

    task: Task
    time: float
    busy_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoresChanged:
    """From `time` (seconds) on there are `num_cores` cores: a cpuset or a power mode gave or took some."""

    num_cores: int
    time: float

    def __post_init__(self) -> None:
        if self.num_cores < 1:
            raise BrokenInvariant(f"num_cores is {self.num_cores}; a running process has at least 1 core")


Event: TypeAlias = Started | TaskDone | CoresChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided, when, from what state, by which policy and why. `sequence` counts from 0; `time` in seconds."""

    sequence: int
    time: float
    state: State
    policy: str
    allocation: Allocation
    reason: Reason

    def __post_init__(self) -> None:
        if not math.isfinite(self.time):
            raise BrokenInvariant(f"decision {self.sequence} at time {self.time}")

    def __str__(self) -> str:
        return f"#{self.sequence} {self.time:.6f} s {self.state}: {self.allocation} ({self.reason.value}, {self.policy})"
