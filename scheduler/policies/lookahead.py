"""Foresight: at every event, the mode after which the rest of the run could still end soonest, as far as the rates can tell.

The rest of a run has an exact optimum, a matter of microseconds once the run's line is known (docs/model.md). So modes are tried in
thought up to the next completion, and judged by the time to there plus the optimum from there. While the run keeps to the line,
the two modes next to its slope lose nothing; off it, and near the end, where events are the only moments to switch, the best
correction wins by itself.
"""

from __future__ import annotations

import math

from scheduler.model.cost import Mode, RateTable, Workload
from scheduler.model.optimum import Frontier
from scheduler.model.state import Allocation
from scheduler.policies.remaining import Pace, Remaining, remaining_of
from scheduler.policies.view import View, Works

TIE = 1e-12
"""Relative difference of two predicted times that is rounding."""

DRIFT = 0.01
"""Relative change of a learnt work below which the run's line is not drawn again."""


class Lookahead:
    """Looks one completion ahead, with every mode that the optimum could use."""

    def __init__(self) -> None:
        self._chosen: Mode | None = None
        self._rates: RateTable | None = None
        self._works: Works | None = None
        self._run: tuple[int, int | None] | None = None

    @property
    def chosen(self) -> str:
        """The mode that was chosen last; "nothing yet"."""
        return self._chosen.name if self._chosen else "nothing yet"

    def choose(self, view: View) -> Allocation:
        """The mode with the least predicted end; of equals the one that has comm furthest ahead."""
        remaining, pace = self._prepare(view)
        position, modes = remaining.position(view), pace.frontier.modes
        ends = {mode: _seconds_to_end(view, mode, position, remaining, pace) for mode in reversed(modes)}
        best, least = modes[-1], math.inf
        for mode, predicted in ends.items():
            if predicted < least * (1 - TIE):
                best, least = mode, predicted
        known = self._known(modes)
        # A gain is judged against the time until the next completion, in which alone the modes differ.
        if known is not None and view.noise and ends[known] - least <= view.noise * _seconds_to_event(view, known):
            best = known
        self._chosen = best
        return self._allocations[best.name]

    def cycle_work(self, view: View) -> tuple[float, float]:
        """Comp work and comm work of a cycle, in the mean."""
        comp, comm = self._prepare(view)[0].total
        return comp / view.cycles, comm / view.cycles

    def prices(self, view: View) -> tuple[float, float]:
        """Seconds that a unit of comp work and a unit of comm work are worth on the best way from here to the end."""
        remaining, pace = self._prepare(view)
        comp, comm = remaining.position(view)
        comp_left, comm_left = remaining.total[0] - comp, remaining.total[1] - comm
        return max(pace.frontier.prices, key=lambda price: price[0] * comp_left + price[1] * comm_left)

    def _known(self, modes: tuple[Mode, ...]) -> Mode | None:
        """The mode chosen last, at its rates of now; None if it is no longer worth using."""
        return next((mode for mode in modes if self._chosen is not None and mode.name == self._chosen.name), None)

    def _prepare(self, view: View) -> tuple[Remaining, Pace]:
        """Draw the run's line once, and the frontier once per table of rates."""
        rates = view.rates
        assert rates is not None, "nothing can be foreseen before the rates are known"
        if rates is not self._rates and rates != self._rates:
            self._rates = rates
            self._pace = Pace(frontier=Frontier.of(rates.modes()), comp_alone=rates.comp[0])
            splits = [Allocation.split(c, rates.num_cores) for c in range(rates.num_cores + 1)]
            shared = [Allocation.sharing(mode.name, rates.num_cores) for mode in rates.shared]
            self._allocations = {mode.name: kept for mode, kept in zip(rates.modes(), [*splits, *shared], strict=True)}
        run = view.cycles, view.prefetch
        if run != self._run or not _is_like(view.works, self._works):
            self._run, self._works = run, view.works
            self.remaining = remaining_of(view.works, view.cycles, view.prefetch)
        return self.remaining, self._pace


def _seconds_to_event(view: View, mode: Mode) -> float:
    """Seconds to the next completion under `mode`."""
    return min(left / rate for left, rate in ((view.comm_left, mode.comm_rate), (view.comp_left, mode.comp_rate)) if rate)


def _seconds_to_end(view: View, mode: Mode, position: tuple[float, float], remaining: Remaining, pace: Pace) -> float:
    """Seconds to the next completion under `mode`, then what is forced by a full buffer, then the optimum of the rest."""
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


def _is_like(works: Works, known: Works | None) -> bool:
    """Whether works are those known, or learnt ones that have hardly changed."""
    if not (isinstance(works, Workload) and isinstance(known, Workload)):
        return works is known
    pairs = ((works.forward, known.forward), (works.backward, known.backward), (works.comm, known.comm))
    return all(math.isclose(now, before, rel_tol=DRIFT) for now, before in pairs)
