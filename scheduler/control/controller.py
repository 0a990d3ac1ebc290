"""The controller: an event in, a decision out. No clock, no thread, no I/O; the live loop and the simulator share it.

Cores do not change between two events. The times of the events therefore determine how long each running task has had how many
cores. From these times follow the remaining work of the running tasks and, when a task finishes, the rate of its side.
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
"""Number of past decisions in the message of a BrokenInvariant."""

CYCLES_PER_WARM_UP = 100
MAX_WARM_UP_CYCLES = 3
"""Without a profile, every mode is measured for one cycle per CYCLES_PER_WARM_UP cycles of the run, 1 to MAX_WARM_UP_CYCLES."""

_OVERDUE = 0.05
"""Remaining part of a task that takes longer than its rate predicts. With 0, a policy would ignore the task."""


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
        """Create a controller for one run.

        `comp_moves_at_boundaries`: training keeps its cores until its task ends, as one team of threads does in a live run. Without
        it, a decision takes effect at once, as in the paper's model and with compute workers.
        `inputs_travel`: a Forward needs its Comm (see `State`). Policies plan as if it did not.
        `done`: completed cycles, for a resumed run.

        Raises ValueError for cycles, cores or prefetch below 1, and for a profile of another number of cores.
        """
        if num_cores < 1:
            raise ValueError(f"num_cores is {num_cores}; a run needs at least 1")
        if profile is not None:
            profile.check_cores(num_cores)
        self.policy = policy
        self.state = State.initial(cycles=cycles, prefetch=prefetch, inputs_travel=inputs_travel, done=done)
        self.num_cores = num_cores
        self.allocation: Allocation | None = None
        self._most_ahead: float = math.inf if prefetch is None else prefetch
        self._in_force: Allocation | None = None  # the cores that both sides hold; time is attributed to them
        self._comp_moves_at_boundaries = comp_moves_at_boundaries
        self.estimates = Estimates(profile.workload, profile.rates) if profile else Estimates()
        # The works of a profile never change, so a policy may plan all of them. Learnt works are visible one cycle at a time.
        self._works = TaskWorks.equal(profile.workload, cycles) if profile else None
        self.planner = policy if isinstance(policy, Planner) else None
        self._has_profile = profile is not None
        self._time = -math.inf
        self._sequence = 0
        self._warm_up: Allocation | None = None
        self._must_look = True
        self._story: deque[tuple[Event, Decision]] = deque(maxlen=STORY_LENGTH)
        # Seconds that the two running tasks have had with each share of the cores.
        self._comm_seconds: dict[Share, float] = {}
        self._comp_seconds: dict[Share, float] = {}

    def handle(self, event: Event) -> Decision:
        """Return the decision that holds from this event to the next.

        Events must be in order of time; equal times are allowed. Take the time under the lock that guards this call. Raises
        BrokenInvariant, with the last decisions in its message, for an impossible event.
        """
        try:
            comp_was_running = self._comp_is_running()
            self._account(event)
            decision = self._decide(event.time)
            self._in_force = self._effective(event, decision.allocation, comp_was_running)
        except BrokenInvariant as broken:
            story = "\n  ".join(f"{earlier} -> {decided}" for earlier, decided in self._story) or "no event"
            raise BrokenInvariant(f"{broken}\nat {event}\nafter:\n  {story}") from None
        self._story.append((event, decision))
        return decision

    def rates(self) -> dict[str, Any]:
        """Return the learnt rates for the log.

        - the strategy of a planner
        - work per second of each side by number of cores
        - the link's rate, null if unknown
        - the work of a cycle
        """
        self.estimates.refresh()
        work = self.estimates.workload
        own = {"stance": self.planner.strategy} if self.planner else {}
        return {
            **own,
            "comm": _readable(self.estimates.comm),
            "comp": _readable(self.estimates.comp),
            "link": None if math.isinf(self.estimates.link.rate) else self.estimates.link.rate,
            "workload": {"forward": work.forward, "backward": work.backward, "comm": work.comm},
        }

    def to_json(self) -> dict[str, Any]:
        """Return the learnt state of the estimates and of the policy, for `recall` in a process that resumes this run."""
        policy = self.policy.to_json() if isinstance(self.policy, Remembering) else None
        return {"policy": self.policy.name, "num_cores": self.num_cores, "estimates": self.estimates.to_json(), "learnt": policy}

    def recall(self, data: Any, where: str) -> None:
        """Restore the output of `to_json` before `Started`.

        State for another number of cores is ignored. Of another policy, only the rates are restored. Raises ValueError for anything
        that is not an output of `to_json`.
        """
        check_keys(data, required=("policy", "num_cores", "estimates", "learnt"), where=where)
        if data["num_cores"] != self.num_cores:
            return
        self.estimates.recall(data["estimates"], f"{where}, estimates")
        if data["policy"] == self.policy.name and isinstance(self.policy, Remembering):
            self.policy.recall(data["learnt"], f"{where}, learnt")

    def _account(self, event: Event) -> None:
        """Attribute the time since the last event, then apply the event."""
        if isinstance(event, Started) != (self.allocation is None):
            raise BrokenInvariant("a run starts with exactly one Started")
        if not math.isfinite(event.time) or event.time < self._time:
            raise BrokenInvariant(f"event time is {event.time}, must be finite and at least {self._time}")
        if self._in_force is not None:
            self._attribute(event.time - self._time, self._in_force)
        self._time = event.time
        if isinstance(event, TaskDone):
            assert self._in_force is not None
            after = self.state.after(event.task)
            self._finish(event, self._in_force)
            self.state = after
        elif not isinstance(event, Started):
            self.num_cores = event.num_cores
            self._must_look = True

    def _comp_is_running(self) -> bool:
        """Return whether training is in the middle of a task and therefore keeps its cores."""
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

    def _attribute(self, seconds: float, allocation: Allocation) -> None:
        """Attribute `seconds` to the running sides. A side runs if it has cores and is neither done nor blocked."""
        state = self.state
        if allocation.comm and not state.comm_is_done and not state.comm_is_blocked:
            _add(self._comm_seconds, Share.of(allocation.comm, allocation), seconds)
        if allocation.comp and not state.comp_is_done and not state.comp_is_blocked:
            _add(self._comp_seconds, Share.of(allocation.comp, allocation), seconds)

    def _finish(self, done: TaskDone, allocation: Allocation) -> None:
        """Learn from a finished task.

        Skipped: a task of a side that ends without cores, because a hold takes effect after its decision. Also skipped: the first
        batch of a live run, which includes opening the stream.
        """
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
        """Return the allocation in state S_{i,j,k}: by Eq. 13, else for a warm-up measurement, else by the policy.

        The controller's state does not change. `handle` calls this with learnt rates, the simulator with exact ones. `look` returns
        the policy's view and is called only if a policy needs it.
        """
        policy, num_cores, cycles = self.policy, self.num_cores, self.state.cycles
        if not policy.is_work_conserving:
            return policy.choose(look()), Reason.FINISHED if num_comm == num_backward == cycles else Reason.UNMANAGED
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
        """Return the next allocation that a planner needs measured before it plans, or None."""
        if self.planner is None or self._has_profile or self.num_cores == 1:
            return None
        num_tasks = min(max(self.state.cycles // CYCLES_PER_WARM_UP, 1), MAX_WARM_UP_CYCLES)
        return self.estimates.untried(self.planner.warm_up_allocations(self.num_cores), self.num_cores, num_tasks)

    def _rates(self) -> RateTable | None:
        """Return the rates of the present cores, or None while warm-up measurements are missing."""
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
        )


def _left(work: float, done: float) -> float:
    """Return the remaining work of a running task; always above 0."""
    return work - done if done < work else _OVERDUE * work


def _add(seconds: dict[Share, float], share: Share, spent: float) -> None:
    seconds[share] = seconds.get(share, 0.0) + spent


def _readable(side: SideEstimate) -> dict[str, float]:
    return {str(cores) if terms == OWN else terms: rate for (cores, terms), rate in side.rates.items()}
