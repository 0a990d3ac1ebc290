"""The value types of scheduling: tasks, run states, core allocations, events and decisions.

All values are frozen and validate themselves. No code here reads a clock: events carry their time, in seconds of the sender's
monotonic clock. Equation numbers are those of Lin et al. (AIoTSys 2024), see docs/architecture.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TypeAlias

COMPUTE_FIRST = "compute-first"
"""Both sides use every core, and comm has idle priority."""

ELASTIC = "elastic"
"""Compute uses every core. On comm's cores a compute worker has idle priority and uses the time that comm leaves."""


LOWEST_PRIORITY = 19
"""The highest niceness, which is the lowest priority."""


class BrokenInvariant(AssertionError):
    """A bug of this program, not a mistake of the user: a state was reached that must not occur."""


class Task(Enum):
    """The three tasks of one cycle."""

    COMM = "comm"
    FORWARD = "forward"
    BACKWARD = "backward"


class Reason(Enum):
    """The reason for the allocation of a decision."""

    POLICY = "policy"
    """Both sides can run; the policy chose the allocation."""
    COMP_BLOCKED = "comp-blocked"
    """Training waits for logits: all cores to comm (Eq. 13, case 1)."""
    COMM_DONE = "comm-done"
    """All batches are received: all cores to comp (Eq. 13, case 2)."""
    COMM_BLOCKED = "comm-blocked"
    """The prefetch buffer is full: all cores to comp."""
    FINISHED = "finished"
    """Every task of the run is done."""
    UNMANAGED = "unmanaged"
    """The policy leaves the allocation of cores to the kernel."""
    LEARNING = "learning"
    """The policy plans with rates, and this allocation has not been measured yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """S_{i,j,k} of a run of N cycles: the numbers of completed Comm, Forward and Backward tasks.

    With `inputs_travel` a Forward needs its Comm too, because the Comm brings the inputs. Otherwise, as in the paper, only a
    Backward needs its Comm. `prefetch` is the number of batches that comm may run ahead of training; None means no limit.
    Raises ValueError for a wrong user setting (`cycles`, `prefetch`), BrokenInvariant for counts that no run can reach.
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
            raise ValueError(f"prefetch is {self.prefetch}; it must be at least 1, or training would wait forever for logits")
        i, j, k = self.num_comm, self.num_forward, self.num_backward
        if not 0 <= k <= j <= min(k + 1, self.cycles):
            raise BrokenInvariant(f"{self}: Forward and Backward must alternate and end after {self.cycles} cycles")
        if self.inputs_travel and i < j:
            raise BrokenInvariant(f"{self}: every Forward needs its Comm where inputs travel")
        if not k <= i <= self.cycles:
            raise BrokenInvariant(f"{self}: every Backward needs its Comm, and Comm ends after {self.cycles} cycles")

    @classmethod
    def initial(cls, *, cycles: int, prefetch: int | None = None, inputs_travel: bool = False, done: int = 0) -> State:
        """Return S_{0,0,0}, or S_{k,k,k} of a run that resumes after k = `done` cycles."""
        counts = {"num_comm": done, "num_forward": done, "num_backward": done}
        return cls(cycles=cycles, prefetch=prefetch, inputs_travel=inputs_travel, **counts)

    @property
    def num_comp(self) -> int:
        """Number of completed comp tasks, 0 to 2N: the position in F1 B1 F2 B2 ..."""
        return self.num_forward + self.num_backward

    @property
    def comm_is_done(self) -> bool:
        """Whether all batches are received."""
        return self.num_comm == self.cycles

    @property
    def comp_is_done(self) -> bool:
        """Whether all cycles are trained."""
        return self.num_backward == self.cycles

    @property
    def comm_is_blocked(self) -> bool:
        """Whether the next Comm task has no free slot: i + 1 > k + prefetch."""
        if self.comm_is_done or self.prefetch is None:
            return False
        return self.num_comm + 1 > self.num_backward + self.prefetch

    @property
    def comp_is_blocked(self) -> bool:
        """Whether the next comp task needs Comm_{k+1} and that task is not done (Eq. 13 writes i < j, for B_{k+1})."""
        if self.inputs_travel:
            return self.num_comm == self.num_backward < self.cycles
        return self.num_comm < self.num_forward

    @property
    def next_comp_index(self) -> int:
        """Index, from 0, of the cycle of the next comp task."""
        return self.num_backward

    def after(self, task: Task) -> State:
        """Return the state after `task` has completed. Raises BrokenInvariant if the task cannot complete in this state."""
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
    """Number of cores of each side. With `pinned` False the kernel schedules both sides on all cores.

    `shared` names a mode in which both sides use every core and one of them has idle priority; None: the sides split the cores.
    The constructors below are cached, because a simulation calls them millions of times.
    """

    comm: int
    comp: int
    pinned: bool = True
    shared: str | None = None

    def __post_init__(self) -> None:
        if self.comm < 0 or self.comp < 0 or self.comm + self.comp == 0:
            raise BrokenInvariant(f"comm={self.comm}, comp={self.comp} is no allocation: both must be >= 0, and one must be > 0")

    @classmethod
    @cache
    def split(cls, comm_cores: int, num_cores: int) -> Allocation:
        """Return the split with `comm_cores` (0 to `num_cores`) cores for comm and the others for comp (Eq. 12 with equality)."""
        return cls(comm=comm_cores, comp=num_cores - comm_cores)

    @classmethod
    @cache
    def all_comm(cls, num_cores: int) -> Allocation:
        """Return the allocation of every core to comm; training waits."""
        return cls(comm=num_cores, comp=0)

    @classmethod
    @cache
    def all_comp(cls, num_cores: int) -> Allocation:
        """Return the allocation of every core to comp; receiving is held between chunks."""
        return cls(comm=0, comp=num_cores)

    @classmethod
    @cache
    def unpinned(cls, num_cores: int) -> Allocation:
        """Return the allocation without pinning: both sides may use all cores, as without a scheduler."""
        return cls(comm=num_cores, comp=num_cores, pinned=False)

    @classmethod
    @cache
    def sharing(cls, mode: str, num_cores: int) -> Allocation:
        """Return the allocation of every core to both sides, in the shared mode with this name."""
        return cls(comm=num_cores, comp=num_cores, shared=mode)

    @classmethod
    @cache
    def elastic(cls, comm_cores: int, num_cores: int) -> Allocation:
        """Return the allocation of `comm_cores` cores to comm and every core to comp, in the shared mode elastic."""
        return cls(comm=comm_cores, comp=num_cores, shared=ELASTIC)

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
    """Both sides start. `time` in seconds. This is the first event of every run."""

    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDone:
    """The running task of this kind completed at `time`, in seconds.

    `busy_s` is for a Comm: the seconds in which it computed or waited for a core. In the other seconds it waited for the link.
    None: not measured.
    """

    task: Task
    time: float
    busy_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CoresChanged:
    """The number of available cores is `num_cores` from `time` (seconds) on: a cpuset or a power mode has changed."""

    num_cores: int
    time: float

    def __post_init__(self) -> None:
        if self.num_cores < 1:
            raise BrokenInvariant(f"num_cores is {self.num_cores}; a running process has at least 1 core")


Event: TypeAlias = Started | TaskDone | CoresChanged


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A decision: its time (seconds), state, policy, allocation and reason. `sequence` counts from 0."""

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
