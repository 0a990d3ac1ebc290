"""Learns the rates of both sides from the times of finished tasks, for a policy that plans with rates.

Cores do not change between two events. The times of the events therefore determine how long each running task has had how many
cores. From these times follow the remaining work of the running tasks and, when a task finishes, the rate of its side.
"""

from __future__ import annotations

import math
from typing import Any

from scheduler.control.estimates import Estimates
from scheduler.model.cost import RateTable
from scheduler.model.handover import CommEffect, hand_over
from scheduler.model.placement import place
from scheduler.model.scenario import Profile, TaskWorks
from scheduler.model.state import Allocation, CoresChanged, Event, State, Task, TaskDone
from scheduler.policies.view import Planner, View

CYCLES_PER_WARM_UP = 100
MAX_WARM_UP_CYCLES = 3
"""Without a profile, every mode is measured for one cycle per CYCLES_PER_WARM_UP cycles of the run, 1 to MAX_WARM_UP_CYCLES."""

_OVERDUE = 0.05
"""Remaining part of a task that takes longer than its rate predicts. With 0, a policy would ignore the task."""


class Learning:
    """Follows the times of one run. Call `observe` at every event, with the state before it, and `decided` after the decision.

    Units of work: the profile's, if there is one, else those of `Estimates`.
    """

    def __init__(self, planner: Planner, *, cycles: int, profile: Profile | None, comp_moves_at_boundaries: bool) -> None:
        """`comp_moves_at_boundaries`: see `Controller`."""
        self.estimates = Estimates(profile.workload, profile.rates) if profile else Estimates()
        self.warm_up: Allocation | None = None
        """The allocation that must be measured next; None if the policy can plan."""
        self.planner = planner
        # The works of a profile never change, so a policy may plan all of them. Learnt works are visible one cycle at a time.
        self._works = TaskWorks.equal(profile.workload, cycles) if profile else None
        self._has_profile = profile is not None
        self._comp_moves_at_boundaries = comp_moves_at_boundaries
        self._must_look = True
        self.in_force: Allocation | None = None
        """The cores that both sides hold. Time is attributed to them."""
        self._comp_was_running = False
        self._has_received = False
        # Seconds that the two running tasks have had with each number of cores.
        self._comm_seconds: dict[int, float] = {}
        self._comp_seconds: dict[int, float] = {}

    def observe(self, event: Event, state: State, seconds: float) -> None:
        """Learn from an event, `seconds` after the event before it. `state` is the state before it."""
        allocation = self.in_force
        self._comp_was_running = bool(allocation and allocation.comp and not state.comp_is_blocked and not state.comp_is_done)
        if allocation is None:
            return
        # A side runs if it has cores and is neither done nor blocked.
        if allocation.comm and not state.comm_is_done and not state.comm_is_blocked:
            _add(self._comm_seconds, allocation.comm, seconds)
        if self._comp_was_running:
            _add(self._comp_seconds, allocation.comp, seconds)
        if isinstance(event, TaskDone):
            self._finish(event, allocation)
        elif isinstance(event, CoresChanged):
            self._must_look = True

    def decided(self, event: Event, requested: Allocation, num_cores: int) -> None:
        """Follow a decision: inside a task of one team of threads, only the part takes effect that the hand-over grants now."""
        ends_a_comm_task = isinstance(event, TaskDone) and event.task is Task.COMM
        if not (self._comp_moves_at_boundaries and ends_a_comm_task and self._comp_was_running):
            self.in_force = requested
            return
        assert self.in_force is not None
        cores = range(num_cores)
        in_use = frozenset(place(self.in_force, cores).comp)
        handover = hand_over(place(requested, cores), in_use)
        if handover.comm is not CommEffect.KEEP:
            self.in_force = Allocation(comm=len(handover.comm_cores), comp=self.in_force.comp)

    def view(self, state: State, num_cores: int) -> View:
        """Return the view of the policy, with the remaining work of the running tasks."""
        rates = self._rates(state.cycles, num_cores)
        work = self.estimates.workload
        comp_work = work.backward if state.num_forward > state.num_backward else work.forward
        return View.of(
            state,
            num_cores=num_cores,
            comm_left=_left(work.comm, self.estimates.comm.work_done(self._comm_seconds)),
            comp_left=_left(comp_work, self.estimates.comp.work_done(self._comp_seconds)),
            works=self._works or work,
            rates=rates,
        )

    def rates(self) -> dict[str, Any]:
        """Return the learnt rates for the log.

        - the strategy of the planner
        - work per second of each side by number of cores
        - the link's rate, null if unknown
        - the work of a cycle
        """
        self.estimates.refresh()
        work = self.estimates.workload
        return {
            "stance": self.planner.strategy,
            "comm": {str(cores): rate for cores, rate in self.estimates.comm.rates.items()},
            "comp": {str(cores): rate for cores, rate in self.estimates.comp.rates.items()},
            "link": None if math.isinf(self.estimates.link.rate) else self.estimates.link.rate,
            "workload": {"forward": work.forward, "backward": work.backward, "comm": work.comm},
        }

    def _finish(self, done: TaskDone, allocation: Allocation) -> None:
        """Learn from a finished task.

        Skipped: a task of a side that ends without cores, because a hold takes effect after its decision. Also skipped: the first
        batch of a live run, and after a resume, because it includes opening the stream.
        """
        cores, seconds = allocation.comp, self._comp_seconds
        if done.task is Task.COMM:
            cores, seconds = allocation.comm, self._comm_seconds
        if cores and (done.busy_s is None or self._has_received):
            self.estimates.finish(done.task, seconds, done.busy_s)
        self._has_received |= done.task is Task.COMM
        seconds.clear()

    def _rates(self, cycles: int, num_cores: int) -> RateTable | None:
        """Return the rates of the present cores, or None while warm-up measurements are missing."""
        if num_cores == 1:
            self.warm_up = None
            return None
        if self.warm_up is not None or self.estimates.is_due or self._must_look:
            self.warm_up, self._must_look = self._untried(cycles, num_cores), False
        return self.estimates.table(num_cores) if self.warm_up is None else None

    def _untried(self, cycles: int, num_cores: int) -> Allocation | None:
        """Return the next allocation that a planner needs measured before it plans, or None."""
        if self._has_profile:
            return None
        num_tasks = min(max(cycles // CYCLES_PER_WARM_UP, 1), MAX_WARM_UP_CYCLES)
        return self.estimates.untried(self.planner.warm_up_allocations(num_cores), num_tasks)


def _left(work: float, done: float) -> float:
    """Return the remaining work of a running task; always above 0."""
    return work - done if done < work else _OVERDUE * work


def _add(seconds: dict[int, float], cores: int, spent: float) -> None:
    seconds[cores] = seconds.get(cores, 0.0) + spent
