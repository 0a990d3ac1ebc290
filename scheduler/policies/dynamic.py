"""`dynamic`, and the paper's programme that it follows (Eq. 13-15): the least time from a state to S_{N,N,N}, over splits.

Label-setting over states (i, q): i Comm tasks done, q comp tasks done. ONE label is kept per state, the smallest (T,
remaining comm work, remaining comp work). What the unfinished task still needs is part of the label but not of the state, so
a slower path with less left to do is forgotten: that is the paper's approximation, a few per cent off the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scheduler.model.cost import RateTable
from scheduler.model.state import Allocation
from scheduler.policies.view import View, split_trials

HORIZON = 8
"""Cycles that the policy plans ahead during a run."""

# Two tasks that end together in exact arithmetic end together here too: a residual below this share of a task is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """From state (`num_comm`, `num_comp`), `comm_cores` cores to comm and the rest to comp for `duration` seconds."""

    num_comm: int
    num_comp: int
    comm_cores: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The moves from one event to the next, and their whole time in seconds (T(S_NNN) when planned from the start)."""

    makespan: float
    moves: tuple[Move, ...]


class Dynamic:
    """The paper's policy (Eq. 15, `solve`): at every event plan the next `horizon` cycles, take the first move.

    With `horizon` None it plans the whole run once and follows that plan, as the paper does; where a run departs from the plan,
    it plans the rest again.
    """

    name: ClassVar[str] = "dynamic"
    is_work_conserving: ClassVar[bool] = True
    needs_rates: ClassVar[bool] = True

    def __init__(self, horizon: int | None = HORIZON) -> None:
        self._horizon = horizon
        self._planned: dict[tuple[int, int], int] = {}  # comm cores by (Comm tasks, comp tasks) done
        self._chosen: Allocation | None = None

    @property
    def strategy(self) -> str:
        """The split that was chosen last."""
        return str(self._chosen)

    def describe(self) -> dict[str, object]:
        """Nothing beside the rates."""
        return {}

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        """Three splits, if there are more than one."""
        return split_trials(num_cores) if num_cores > 2 else ()

    def choose(self, view: View) -> Allocation:
        """The split that the plan has here. A plan reaches at least to the batch that comm is at."""
        self._chosen = self._split(view)
        return self._chosen

    def _split(self, view: View) -> Allocation:
        if view.num_cores <= 2:  # one possible split, or none
            return Allocation.split(view.num_cores - 1, view.num_cores)
        here = view.num_comm, view.num_forward + view.num_backward
        if self._horizon is not None or here == (0, 0) or here not in self._planned:
            # The plan's cycles count from the first that is not trained yet.
            first = view.num_backward
            plan = self._plan(view, first)
            self._planned = {(first + move.num_comm, 2 * first + move.num_comp): move.comm_cores for move in plan.moves}
        return Allocation.split(self._planned[here], view.num_cores)

    def _plan(self, view: View, first: int) -> Plan:
        assert view.rates is not None, "the controller asks for a choice only once the rates are known"
        ahead, begun = view.num_comm - first, view.num_forward - first
        last = view.cycles
        if self._horizon is not None:
            last = min(last, first + max(self._horizon, ahead + 1))
        comm, comp = view.works.tasks(first, last)
        comm[ahead], comp[begun] = view.comm_left, view.comp_left
        return solve(comm=comm, comp=comp, rates=view.rates, prefetch=view.prefetch, num_comm=ahead, num_comp=begun)


@dataclass(frozen=True, slots=True)
class _Label:
    """How a state is reached soonest. `comm` and `comp` are what the two running tasks still need, 0 past the last."""

    time: float
    comm: float
    comp: float
    origin: tuple[int, int, int]  # the state before, and the comm cores that led from it here


def solve(
    *,
    comm: Sequence[float],
    comp: Sequence[float],
    rates: RateTable,
    prefetch: int | None = None,
    num_comm: int = 0,
    num_comp: int = 0,
) -> Plan:
    """Plan from the state (`num_comm`, `num_comp`) to the end of the N cycles of `comm`.

    `comm` is the work of Comm_1..N, `comp` that of F1 B1 F2 B2 ... (2N values); the entries of the two tasks that run now
    hold what remains of them, and those of completed tasks are not read. Time O(N^2 C) for whole runs.
    """
    assert len(comp) == 2 * len(comm), (len(comp), len(comm))
    search = _Search(comm=comm, comp=comp, rates=rates, prefetch=prefetch)
    return search.run(num_comm, num_comp)


def _is_better(time: float, comm_left: float, comp_left: float, known: _Label) -> bool:
    """Whether these come before the known label's in order; times that differ by rounding are the same time."""
    if time < known.time * (1 - _ROUNDING):
        return True
    return time <= known.time * (1 + _ROUNDING) and (comm_left, comp_left) < (known.comm, known.comp)


class _Search:
    """One label-setting: `rows[q][i]` is the label of state (i, q)."""

    def __init__(self, *, comm: Sequence[float], comp: Sequence[float], rates: RateTable, prefetch: int | None) -> None:
        # A zero behind the last task: what is left to do once a side is done.
        self.comm = [*comm, 0.0]
        self.comp = [*comp, 0.0]
        self.rates = rates
        self.prefetch = math.inf if prefetch is None else prefetch
        self.moves = [(c, rates.comm[c], rates.comp[c]) for c in range(rates.num_cores + 1)]
        self.rows: list[dict[int, _Label]] = [{} for _ in self.comp]

    def run(self, num_comm: int, num_comp: int) -> Plan:
        """Labels from the start state on. Comp advances slowest: every move leads to a later state of this order."""
        start = _Label(0.0, self.comm[num_comm], self.comp[num_comp], (-1, -1, -1))
        self.rows[num_comp][num_comm] = start
        for q in range(num_comp, len(self.comp)):
            row = self.rows[q]
            for i in range(num_comm, len(self.comm)):
                label = row.get(i)
                if label is not None:
                    for move in self.allowed(i, q):
                        self.relax(i, q, label, move)
        return self.trace()

    def allowed(self, i: int, q: int) -> list[tuple[int, float, float]]:
        """The moves of Eq. 13 from state (i, q): one where it is forced, else every split."""
        last_comm, last_comp = len(self.comm) - 1, len(self.comp) - 1
        if i == last_comm:
            return [] if q == last_comp else self.moves[:1]
        if i < (q + 1) // 2:  # (q + 1) // 2 is j: comp waits for its logits
            return self.moves[-1:]
        if i + 1 > q // 2 + self.prefetch:  # q // 2 is k: no slot is free
            return self.moves[:1]
        return self.moves[1:-1]

    def relax(self, i: int, q: int, label: _Label, move: tuple[int, float, float]) -> None:
        """Advance to the next completion (Eq. 15), carry the residual of the task that did not complete."""
        split, comm_rate, comp_rate = move
        comm_time = label.comm / comm_rate if comm_rate else math.inf
        comp_time = label.comp / comp_rate if comp_rate else math.inf
        delta = min(comm_time, comp_time)
        comm_left = label.comm - comm_rate * delta
        comp_left = label.comp - comp_rate * delta
        if comm_time <= delta or (comm_rate and comm_left <= _ROUNDING * self.comm[i]):
            i2, comm_left = i + 1, self.comm[i + 1]
        else:
            i2 = i
        if comp_time <= delta or (comp_rate and comp_left <= _ROUNDING * self.comp[q]):
            q2, comp_left = q + 1, self.comp[q + 1]
        else:
            q2 = q
        time = label.time + delta
        known = self.rows[q2].get(i2)
        if known is None or _is_better(time, comm_left, comp_left, known):
            self.rows[q2][i2] = _Label(time, comm_left, comp_left, (i, q, split))

    def trace(self) -> Plan:
        """Walk back from the last state."""
        i, q = len(self.comm) - 1, len(self.comp) - 1
        label = self.rows[q].get(i)
        assert label is not None, "every state is followed by a move, so the end is reached"
        makespan = label.time
        moves: list[Move] = []
        while label.origin[0] >= 0:
            i, q, split = label.origin
            before = self.rows[q][i]
            moves.append(Move(num_comm=i, num_comp=q, comm_cores=split, duration=label.time - before.time))
            label = before
        return Plan(makespan=makespan, moves=tuple(reversed(moves)))
