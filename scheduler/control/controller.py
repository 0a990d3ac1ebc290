"""The controller: an event in, a decision out. No clock, no thread, no I/O; the live loop and a simulator share it.

Between two events nobody's cores change, so from the events' times alone it knows how long each running task has had how
many cores. From that follow what the running tasks still need, and, when one finishes, how fast its side is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from scheduler.control.estimates import Estimates
from scheduler.control.side_rates import OWN, Share, SideEstimate
from scheduler.model.checked_json import check_keys
from scheduler.model.cost import RateTable
from scheduler.model.handover import CommEffect, hand_over
from scheduler.model.placement import place
from scheduler.model.scenario import Profile, TaskWorks
from scheduler.model.state import Allocation, BrokenInvariant, Decision, Event, Reason, Started, State, Task, TaskDone
from scheduler.policies.view import Planner, Policy, Remembering, View

STORY_LENGTH = 20
"""Decisions that the message of a BrokenInvariant tells."""

CYCLES_PER_WARM_UP = 100
MAX_WARM_UP_CYCLES = 3
"""Without a profile every mode is tried for one cycle, in longer runs for one of every hundred, and never for more than three."""

_OVERDUE = 0.05
"""Part of a task that is believed to remain when it takes longer than its rate says: 0 would make it no concern at all."""


class Controller:
    """Follows one run from Started to its last task and decides at every event.

    Units of work: the profile's, if there is one, else those of `Estimates`.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        cycles: int,
        num_cores: int,
        prefetch: int | None = None,
        profile: Profile | None = None,
        comp_moves_at_boundaries: bool = False,
        inputs_travel: bool = False,
        done: int = 0,
    ) -> None:
        """`comp_moves_at_boundaries`: training keeps its cores until its task ends or `comp_has_moved` says otherwise, and comm
        gets none of those before, as in a live run; without it a decision takes effect at once, as in the paper's model.
        `inputs_travel`: a Forward needs its Comm, as `State` says; policies plan as if it did not. `done`: cycles that were
        complete before, where a run goes on.

        ValueError for cycles, cores or prefetch below 1, and for a profile of another number of cores."""
        if num_cores < 1:
            raise ValueError(f"num_cores is {num_cores}; a run needs at least 1")
        if profile is not None:
            profile.check_cores(num_cores)
        self.policy = policy
        self.state = State.initial(cycles=cycles, prefetch=prefetch, inputs_travel=inputs_travel, done=done)
        self.num_cores = num_cores
        self.allocation: Allocation | None = None
        self._most_ahead: float = math.inf if prefetch is None else prefetch
        self._in_force: Allocation | None = None  # what both sides really have, which the times are booked on
        self._comp_moves_at_boundaries = comp_moves_at_boundaries
        self.estimates = Estimates(profile.workload, profile.rates) if profile else Estimates()
        # Known works never change, so a policy may prepare for all of them; learnt ones it sees one cycle at a time.
        self._works = TaskWorks.equal(profile.workload, cycles) if profile else None
        self.planner = policy if isinstance(policy, Planner) else None
        self._has_profile = profile is not None
        self._time = -math.inf
        self._sequence = 0
        self._warm_up: Allocation | None = None
        self._must_look = True
        self._story: deque[tuple[Event, Decision]] = deque(maxlen=STORY_LENGTH)
        # How long the two running tasks have had each share of the cores.
        self._comm_seconds: dict[Share, float] = {}
        self._comp_seconds: dict[Share, float] = {}

    def handle(self, event: Event) -> Decision:
        """The decision that holds from this event to the next.

        Events must come in the order of their times, equal times allowed: take the time under the lock that guards this
        call. BrokenInvariant, with the story of the last decisions, for an event that cannot happen.
        """
        try:
            comp_was_running = self._comp_is_running()
            self._account(event)
            decision = self._decide(event.time)
            self._in_force = self._effective(event, decision.allocation, comp_was_running)
        except BrokenInvariant as broken:
            story = "\n  ".join(f"{told} -> {decided}" for told, decided in self._story) or "nothing yet"
            raise BrokenInvariant(f"{broken}\nat {event}\nafter:\n  {story}") from None
        self._story.append((event, decision))
        return decision

    def comp_has_moved(self, time: float) -> None:
        """From `time` (seconds) on, training really has the cores of the last decision, and comm those that it gave comm.

        No event, and nothing is decided: the live loop calls it when compute has moved in the middle of a task.
        """
        if self._in_force == self.allocation:
            return
        self._book_until(time)
        self._in_force = self.allocation

    def rates(self) -> dict[str, Any]:
        """What has been learnt, for logs: what a planner goes by, each side's work per second by its number of cores, the link's
        limit (None: none is known), and a cycle's work."""
        self.estimates.refresh()
        work = self.estimates.workload
        own = {"stance": self.planner.strategy, **self.planner.describe()} if self.planner else {}
        return {
            **own,
            "comm": _readable(self.estimates.comm),
            "comp": _readable(self.estimates.comp),
            "link": None if math.isinf(self.estimates.link.rate) else self.estimates.link.rate,
            "workload": {"forward": work.forward, "backward": work.backward, "comm": work.comm},
        }

    def to_json(self) -> dict[str, Any]:
        """What has been learnt, by the estimates and by the policy, for `recall` in a process that goes on with this run."""
        policy = self.policy.to_json() if isinstance(self.policy, Remembering) else None
        return {"policy": self.policy.name, "num_cores": self.num_cores, "estimates": self.estimates.to_json(), "learnt": policy}

    def recall(self, data: Any, where: str) -> None:
        """Before `Started`: know again what `to_json` told; nothing of another number of cores, of another policy only the rates.

        ValueError for what `to_json` cannot have told."""
        check_keys(data, required=("policy", "num_cores", "estimates", "learnt"), where=where)
        if data["num_cores"] != self.num_cores:
            return
        self.estimates.recall(data["estimates"], f"{where}, estimates")
        if data["policy"] == self.policy.name and isinstance(self.policy, Remembering):
            self.policy.recall(data["learnt"], f"{where}, learnt")

    def _account(self, event: Event) -> None:
        """Book the time since the last event, then what the event says."""
        if isinstance(event, Started) != (self.allocation is None):
            raise BrokenInvariant("a run begins with Started, and only once")
        self._book_until(event.time)
        if isinstance(event, TaskDone):
            assert self._in_force is not None
            after = self.state.after(event.task)
            self._finish(event, self._in_force)
            self.state = after
        elif not isinstance(event, Started):
            self.num_cores = event.num_cores
            self._must_look = True

    def _book_until(self, time: float) -> None:
        if not math.isfinite(time) or time < self._time:
            raise BrokenInvariant(f"time goes from {self._time} to {time}")
        if self._in_force is not None:
            self._book(time - self._time, self._in_force)
        self._time = time

    def _comp_is_running(self) -> bool:
        """Whether training is in the middle of a task, and so keeps the cores that it has for now."""
        held = self._in_force is None or self._in_force.comp == 0
        return not (held or self.state.comp_is_blocked or self.state.comp_is_done)

    def _effective(self, event: Event, requested: Allocation, comp_was_running: bool) -> Allocation:
        """Return the allocation in force after a decision: inside a training task, the part that the hand-over grants now."""
        ends_a_comm_task = isinstance(event, TaskDone) and event.task is Task.COMM
        if not (self._comp_moves_at_boundaries and ends_a_comm_task and comp_was_running and requested.pinned):
            return requested
        assert self._in_force is not None
        cores = range(self.num_cores)
        in_use = frozenset(place(self._in_force, cores).comp)
        handover = hand_over(place(requested, cores), in_use)
        if handover.comm is CommEffect.KEEP:
            return self._in_force
        if requested.shared and len(handover.comm_cores) == requested.comm:
            return requested
        return Allocation(comm=len(handover.comm_cores), comp=self._in_force.comp)

    def _book(self, seconds: float, allocation: Allocation) -> None:
        """A side runs if it has cores and is neither done nor blocked."""
        state = self.state
        if allocation.comm and not state.comm_is_done and not state.comm_is_blocked:
            _add(self._comm_seconds, Share.of(allocation.comm, allocation), seconds)
        if allocation.comp and not state.comp_is_done and not state.comp_is_blocked:
            _add(self._comp_seconds, Share.of(allocation.comp, allocation), seconds)

    def _finish(self, done: TaskDone, allocation: Allocation) -> None:
        """Learn, unless the side had no cores at the end: a hold takes effect later than it is decided, so we lost count.

        Nor from the first batch of a live run, which waits for the teacher to open its stream."""
        cores, seconds = allocation.comp, self._comp_seconds
        if done.task is Task.COMM:
            cores, seconds = allocation.comm, self._comm_seconds
        if cores and (done.busy_s is None or self.state.num_comm > 0):
            self.estimates.finish(done.task, seconds, done.busy_s)
        seconds.clear()

    def _decide(self, time: float) -> Decision:
        state = self.state
        allocation, reason = self.allocate(state.num_comm, state.num_forward, state.num_backward, self._view)
        self.allocation = allocation
        decision = Decision(
            sequence=self._sequence,
            time=time,
            state=state,
            policy=self.policy.name,
            allocation=allocation,
            reason=reason,
        )
        self._sequence += 1
        return decision

    def allocate(self, num_comm: int, num_forward: int, num_backward: int, look: Callable[[], View]) -> tuple[Allocation, Reason]:
        """The allocation in state S_{i,j,k}: Eq. 13 first, then what a policy that needs rates has yet to measure, then the policy.

        Changes nothing here: `handle` calls it where only times are known, the simulator where all is known. `look` says what
        the policy may know, and is called only if it is asked.
        """
        policy, num_cores, cycles = self.policy, self.num_cores, self.state.cycles
        if not policy.is_work_conserving:
            allocation = policy.choose(look())
            if not allocation.pinned:  # else it has just changed its mind, and the rules hold again
                return allocation, Reason.FINISHED if num_comm == num_backward == cycles else Reason.UNMANAGED
        if num_comm < num_forward or (self.state.inputs_travel and num_comm == num_backward < cycles):
            return Allocation.all_comm(num_cores), Reason.COMP_BLOCKED
        if num_comm == cycles:
            reason = Reason.FINISHED if num_backward == cycles else Reason.COMM_DONE
            return Allocation.all_comp(num_cores), reason
        if num_comm - num_backward >= self._most_ahead:
            return Allocation.all_comp(num_cores), Reason.COMM_BLOCKED
        view = look()
        if view.rates is None and self._warm_up is not None:
            return self._warm_up, Reason.LEARNING
        allocation = policy.choose(view)
        return allocation, Reason.POLICY if allocation.pinned else Reason.UNMANAGED

    def _untried(self) -> Allocation | None:
        """What the policy wants to see measured next, before it plans."""
        if self.planner is None or self._has_profile or self.num_cores == 1:
            return None
        num_tasks = min(max(self.state.cycles // CYCLES_PER_WARM_UP, 1), MAX_WARM_UP_CYCLES)
        return self.estimates.untried(self.planner.warm_up_allocations(self.num_cores), self.num_cores, num_tasks)

    def _rates(self) -> RateTable | None:
        """The rates of the cores there are now, once they are known as well as the policy wants."""
        if not self.policy.needs_rates or self.num_cores == 1:
            self._warm_up = None
            return None
        if self._warm_up is not None or self.estimates.is_due or self._must_look:
            self._warm_up, self._must_look = self._untried(), False
        return self.estimates.table(self.num_cores) if self._warm_up is None else None

    def _view(self) -> View:
        rates = self._rates()
        state, work = self.state, self.estimates.workload
        comp_work = work.backward if state.num_forward > state.num_backward else work.forward
        comm_done = self.estimates.comm.work_done(self._comm_seconds)
        comp_done = self.estimates.comp.work_done(self._comp_seconds)
        return View.of(
            state,
            num_cores=self.num_cores,
            comm_left=_left(work.comm, comm_done),
            comp_left=_left(comp_work, comp_done),
            works=self._works or work,
            rates=rates,
            noise=self.estimates.noise,
            time=self._time,
        )


def _left(work: float, done: float) -> float:
    """Work that remains of a task that is running, so never nothing."""
    return work - done if done < work else _OVERDUE * work


def _add(seconds: dict[Share, float], share: Share, spent: float) -> None:
    seconds[share] = seconds.get(share, 0.0) + spent


def _readable(side: SideEstimate) -> dict[str, float]:
    return {str(cores) if terms == OWN else terms: rate for (cores, terms), rate in side.rates.items()}
