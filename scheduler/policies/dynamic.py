"""`dynamic`: the paper's dynamic program (Eq. 13-15), which minimises the time from a state to S_{N,N,N} over splits.

The program is label-setting over states (i, q): i Comm tasks and q comp tasks done. It keeps ONE label per state, the smallest
(T, remaining comm work, remaining comp work). The remaining work of the unfinished task is part of the label but not of the
state. So a slower path with less remaining work is dropped: this is the paper's approximation, a few per cent above the optimum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scheduler.model.cost import RateTable
from scheduler.model.state import Allocation
from scheduler.policies.view import View, warm_up_splits

HORIZON = 8
"""Cycles that the policy plans ahead during a run."""

# A residual below this share of a task is a rounding error. So tasks that end together in exact arithmetic end together here.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """From state (`num_comm`, `num_comp`): comm has `comm_cores` cores and comp the others, for `duration` seconds."""

    num_comm: int
    num_comp: int
    comm_cores: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The moves from event to event, and their total time in seconds (T(S_NNN) for a plan from the start)."""

    makespan: float
    moves: tuple[Move, ...]


class Dynamic:
    """The paper's policy (Eq. 15, `solve`): at every event, plan the next `horizon` cycles and take the first move.

    With `horizon` None it plans the whole run once and follows the plan, as the paper does. If the run leaves the plan, it plans
    the rest again.
    """

    name: ClassVar[str] = "dynamic"
    is_work_conserving: ClassVar[bool] = True

    def __init__(self, horizon: int | None = HORIZON) -> None:
        self._horizon = horizon
        self._planned: dict[tuple[int, int], int] = {}  # comm cores by (Comm tasks, comp tasks) done
        self._chosen: Allocation | None = None

    @property
    def strategy(self) -> str:
        """The last chosen split."""
        return str(self._chosen)

    def warm_up_allocations(self, num_cores: int) -> tuple[Allocation, ...]:
        """Return three splits; none if there is only one split."""
        return warm_up_splits(num_cores) if num_cores > 2 else ()

    def choose(self, view: View) -> Allocation:
        """Return the split of the plan. A plan always reaches the batch that comm receives now."""
        self._chosen = self._split(view)
        return self._chosen

    def _split(self, view: View) -> Allocation:
        if view.num_cores <= 2:  # at most one split
            return Allocation.split(view.num_cores - 1, view.num_cores)
        here = view.num_comm, view.num_forward + view.num_backward
        if self._horizon is not None or here == (0, 0) or here not in self._planned:
            # The plan counts cycles from the first cycle that is not trained yet.
            first = view.num_backward
            plan = self._plan(view, first)
            self._planned = {(first + move.num_comm, 2 * first + move.num_comp): move.comm_cores for move in plan.moves}
        return Allocation.split(self._planned[here], view.num_cores)

    def _plan(self, view: View, first: int) -> Plan:
        assert view.rates is not None, "the controller calls `choose` only when the rates are known"
        assert view.works is not None
        ahead, begun = view.num_comm - first, view.num_forward - first
        last = view.cycles
        if self._horizon is not None:
            last = min(last, first + max(self._horizon, ahead + 1))
        comm, comp = view.works.tasks(first, last)
        comm[ahead], comp[begun] = view.comm_left, view.comp_left
        return solve(comm=comm, comp=comp, rates=view.rates, prefetch=view.prefetch, num_comm=ahead, num_comp=begun)


@dataclass(frozen=True, slots=True)
class _Label:
    """The earliest way to a state. `comm` and `comp` are the remaining work of the two running tasks, 0 after the last task."""

    time: float
    comm: float
    comp: float
    origin: tuple[int, int, int]  # the previous state, and the comm cores of the move


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

    `comm` is the work of Comm_1..N [N], `comp` the work of F1 B1 F2 B2 ... [2N]. The entries of the two running tasks hold their
    remaining work. The entries of completed tasks are not read. Time O(N^2 C) for whole runs.
    """
    assert len(comp) == 2 * len(comm), (len(comp), len(comm))
    search = _Search(comm=comm, comp=comp, rates=rates, prefetch=prefetch)
    return search.run(num_comm, num_comp)


def _is_better(time: float, comm_left: float, comp_left: float, known: _Label) -> bool:
    """Whether these values are smaller than the known label in order. Times that differ by rounding are equal."""
    if time < known.time * (1 - _ROUNDING):
        return True
    return time <= known.time * (1 + _ROUNDING) and (comm_left, comp_left) < (known.comm, known.comp)


class _Search:
    """One label-setting search: `rows[q][i]` is the label of state (i, q)."""

    def __init__(self, *, comm: Sequence[float], comp: Sequence[float], rates: RateTable, prefetch: int | None) -> None:
        # A zero after the last task: the remaining work of a side that is done.
        self.comm = [*comm, 0.0]
        self.comp = [*comp, 0.0]
        self.rates = rates
        self.prefetch = math.inf if prefetch is None else prefetch
        self.moves = [(c, rates.comm[c], rates.comp[c]) for c in range(rates.num_cores + 1)]
        self.rows: list[dict[int, _Label]] = [{} for _ in self.comp]

    def run(self, num_comm: int, num_comp: int) -> Plan:
        """Set the labels from the start state on. The order has comp outermost: every move leads to a later state."""
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
        """Return the moves of Eq. 13 from state (i, q): one if the move is forced, else every split."""
        last_comm, last_comp = len(self.comm) - 1, len(self.comp) - 1
        if i == last_comm:
            return [] if q == last_comp else self.moves[:1]
        if i < (q + 1) // 2:  # (q + 1) // 2 is j: comp waits for logits
            return self.moves[-1:]
        if i + 1 > q // 2 + self.prefetch:  # q // 2 is k: no slot is free
            return self.moves[:1]
        return self.moves[1:-1]

    def relax(self, i: int, q: int, label: _Label, move: tuple[int, float, float]) -> None:
        """Advance to the next completion (Eq. 15) and keep the residual of the task that did not complete."""
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
        """Return the plan, read backwards from the last state."""
        i, q = len(self.comm) - 1, len(self.comp) - 1
        label = self.rows[q].get(i)
        assert label is not None, "every state but the last has a move, so the search reaches the end"
        makespan = label.time
        moves: list[Move] = []
        while label.origin[0] >= 0:
            i, q, split = label.origin
            before = self.rows[q][i]
            moves.append(Move(num_comm=i, num_comp=q, comm_cores=split, duration=label.time - before.time))
            label = before
        return Plan(makespan=makespan, moves=tuple(reversed(moves)))
