"""The controller: an event in, a decision out. No clock, no thread, no I/O; the live loop and the simulator share it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from scheduler.control.learning import Learning
from scheduler.model.checked_json import check_keys
from scheduler.model.scenario import Profile
from scheduler.model.state import Allocation, BrokenInvariant, Decision, Event, Reason, Started, State, TaskDone
from scheduler.policies.view import Planner, Policy, Remembering, View

STORY_LENGTH = 20
"""Number of past decisions in the message of a BrokenInvariant."""


class Controller:
    """Follows one run from Started to its last task and decides at every event.

    `learning` estimates rates from the times of events, for a policy that plans with them. It is None for other policies.
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
        self.learning = (
            Learning(policy, cycles=cycles, profile=profile, comp_moves_at_boundaries=comp_moves_at_boundaries)
            if isinstance(policy, Planner)
            else None
        )
        self._recalled_estimates: Any = None
        self._time = -math.inf
        self._sequence = 0
        self._story: deque[tuple[Event, Decision]] = deque(maxlen=STORY_LENGTH)

    def handle(self, event: Event) -> Decision:
        """Return the decision that holds from this event to the next.

        Events must be in order of time; equal times are allowed. Take the time under the lock that guards this call. Raises
        BrokenInvariant, with the last decisions in its message, for an impossible event.
        """
        try:
            self._apply(event)
            decision = self._decide(event.time)
            if self.learning is not None:
                self.learning.decided(event, decision.allocation, self.num_cores)
        except BrokenInvariant as broken:
            story = "\n  ".join(f"{earlier} -> {decided}" for earlier, decided in self._story) or "no event"
            raise BrokenInvariant(f"{broken}\nat {event}\nafter:\n  {story}") from None
        self._story.append((event, decision))
        return decision

    def to_json(self) -> dict[str, Any]:
        """Return the learnt state of the estimates and of the policy, for `recall` in a process that resumes this run.

        A policy that learns no rates passes on those of an earlier part of the run.
        """
        policy = self.policy.to_json() if isinstance(self.policy, Remembering) else None
        estimates = self.learning.estimates.to_json() if self.learning is not None else self._recalled_estimates
        return {"policy": self.policy.name, "num_cores": self.num_cores, "estimates": estimates, "learnt": policy}

    def recall(self, data: Any, where: str) -> None:
        """Restore the output of `to_json` before `Started`.

        State for another number of cores is ignored. Of another policy, only the rates are restored. Raises ValueError for anything
        that is not an output of `to_json`; rates are checked only for a policy that needs them.
        """
        check_keys(data, required=("policy", "num_cores", "estimates", "learnt"), where=where)
        if data["num_cores"] != self.num_cores:
            return
        self._recalled_estimates = data["estimates"]
        if self.learning is not None and data["estimates"] is not None:
            self.learning.estimates.recall(data["estimates"], f"{where}, estimates")
        if data["policy"] == self.policy.name and isinstance(self.policy, Remembering):
            self.policy.recall(data["learnt"], f"{where}, learnt")

    def _apply(self, event: Event) -> None:
        """Check the event, apply it to the state, and learn from it."""
        if isinstance(event, Started) != (self.allocation is None):
            raise BrokenInvariant("a run starts with exactly one Started")
        if not math.isfinite(event.time) or event.time < self._time:
            raise BrokenInvariant(f"event time is {event.time}, must be finite and at least {self._time}")
        before = self.state
        if isinstance(event, TaskDone):
            self.state = before.after(event.task)
        elif not isinstance(event, Started):
            self.num_cores = event.num_cores
        if self.learning is not None:
            self.learning.observe(event, before, event.time - self._time)
        self._time = event.time

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
        if view.rates is None and self.learning is not None and self.learning.warm_up is not None:
            return self.learning.warm_up, Reason.LEARNING
        allocation = policy.choose(view)
        return allocation, Reason.POLICY if allocation.pinned else Reason.UNMANAGED

    def _view(self) -> View:
        if self.learning is not None:
            return self.learning.view(self.state, self.num_cores)
        return View.without_rates(self.state, self.num_cores)
