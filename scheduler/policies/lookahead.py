"""Lookahead: at every event, choose the mode after which the predicted end of the run is earliest.

The rest of a run has an exact optimum. It takes microseconds to compute once the run's optimal path is known (docs/model.md).
For each mode, the prediction is the time to the next completion plus the optimum from there. On the path, the two modes next to
its slope lose no time. Off the path, and near the end, where modes can change only at events, the mode with the best correction
has the earliest predicted end.
"""

from __future__ import annotations

import math

from scheduler.model.cost import Mode
from scheduler.model.optimum import Frontier
from scheduler.model.state import Allocation
from scheduler.policies.remaining import Pace, Remaining, remaining_of
from scheduler.policies.view import View

TIE = 1e-12
"""Relative difference below which two predicted times are equal."""


class Lookahead:
    """Predicts the end of the run for every mode that the optimum can use, one completion ahead."""

    def __init__(self) -> None:
        self._prepared: tuple[Remaining, Pace] | None = None

    def choose(self, view: View) -> Allocation:
        """Return the allocation with the earliest predicted end; of equal ones, the one with the most comm."""
        self._prepared = self._prepared or self._prepare(view)
        remaining, pace = self._prepared
        position, modes = remaining.position(view), pace.frontier.modes
        ends = {mode: _seconds_to_end(view, mode, position, remaining, pace) for mode in reversed(modes)}
        best, least = modes[-1], math.inf
        for mode, predicted in ends.items():
            if predicted < least * (1 - TIE):
                best, least = mode, predicted
        return self._allocations[best.name]

    def _prepare(self, view: View) -> tuple[Remaining, Pace]:
        """Compute the optimal path and the frontier, once: works and rates of a simulation never change."""
        rates, works = view.rates, view.works
        assert rates is not None, "lookahead needs known rates"
        assert works is not None
        splits = [Allocation.split(c, rates.num_cores) for c in range(rates.num_cores + 1)]
        shared = [Allocation.sharing(mode.name, rates.num_cores) for mode in rates.shared]
        self._allocations = {mode.name: kept for mode, kept in zip(rates.modes(), [*splits, *shared], strict=True)}
        pace = Pace(frontier=Frontier.of(rates.modes()), comp_alone=rates.comp[0])
        return remaining_of(works, view.cycles, view.prefetch), pace


def _seconds_to_end(view: View, mode: Mode, position: tuple[float, float], remaining: Remaining, pace: Pace) -> float:
    """Return the seconds to the next completion in `mode`, plus the wait for a full buffer, plus the optimum of the rest."""
    comm_time = view.comm_left / mode.comm_rate if mode.comm_rate else math.inf
    comp_time = view.comp_left / mode.comp_rate if mode.comp_rate else math.inf
    seconds = min(comm_time, comp_time)
    together = seconds * (1 + TIE)
    comp_done, comm_done = position[0] + mode.comp_rate * seconds, position[1] + mode.comm_rate * seconds
    num_comm = view.num_comm + (comm_time <= together)
    num_comp = view.num_forward + view.num_backward + (comp_time <= together)
    if view.prefetch is not None and num_comm < view.cycles and num_comm - num_comp // 2 >= view.prefetch:
        cycle = num_comp // 2
        freed = remaining.cycle_end(cycle)
        seconds += (freed - comp_done) / pace.comp_alone
        comp_done, num_comp = freed, 2 * cycle + 2
    return seconds + remaining.time(num_comm, num_comp, comp_done, comm_done, pace)
