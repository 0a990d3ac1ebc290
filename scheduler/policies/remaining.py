"""Compute T* of the rest of a run from any position: the least seconds for the remaining work.

A position is a point (comp work done, comm work done). Without a prefetch limit, the optimal path follows the tangent from there
to the upper hull of the remaining points (W_m, Y_m). Then it follows the hull (docs/model.md, "The optimum"). This needs, for
every point, its successor on the hull of the points after it. The successors are computed once per run in O(N), backwards from
the end. With a limit, the path follows its own taut string until it meets the run's string.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from scheduler.model.optimum import Frontier, course, funnel
from scheduler.policies.view import View, Works

MOST_GATES = 32
"""Largest prefetch limit for `LimitedCycles`. A larger limit rarely matters, and a call would take milliseconds. It is then
predicted for one completion only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The speed of the rest: the frontier of the modes, and comp's rate when comp has every core."""

    frontier: Frontier
    comp_alone: float

    def seconds(self, comp: float, comm: float) -> float:
        """Return `Frontier.cost` of two numbers. A fast version, because it is called often."""
        return max([per_comp * comp + per_comm * comm for per_comp, per_comm in self.frontier.prices])


class Remaining(Protocol):
    """The remaining work of a run of N cycles."""

    def position(self, view: View) -> tuple[float, float]:
        """Return the comp work done and the comm work done."""

    def cycle_end(self, cycle: int) -> float:
        """Return the comp work done at the end of this cycle's Backward; cycles count from 0."""

    def time(self, num_comm: int, num_comp: int, comp_done: float, comm_done: float, pace: Pace) -> float:
        """Return the least seconds for the rest with these modes, after `num_comm` Comm tasks and `num_comp` comp tasks."""


def remaining_of(works: Works, cycles: int, prefetch: int | None) -> Remaining:
    """Return the implementation for these works and this limit."""
    if prefetch is None or prefetch >= cycles or prefetch > MOST_GATES:
        return UnlimitedCycles(works, cycles)
    return LimitedCycles(works, cycles, prefetch)


class _GivenTasks:
    """Positions in a run with one work per task, from running sums of the works of Comm [N] and of F, B, F, B, ... [2N]."""

    def __init__(self, comm: list[float], comp: list[float]) -> None:
        comp_done, comm_done = np.concatenate([[0.0], np.cumsum(comp)]), np.concatenate([[0.0], np.cumsum(comm)])
        self._x, self._y = comp_done[1::2], comm_done[1:]  # (W_m, Y_m), m from 0
        self._comp_done: list[float] = comp_done.tolist()
        self._comm_done: list[float] = comm_done.tolist()
        self._points = list(zip(self._x.tolist(), self._y.tolist(), strict=True))
        self._pace: Pace | None = None
        self._times: list[float] = []

    def position(self, view: View) -> tuple[float, float]:
        """Return the comp work done and the comm work done."""
        comp = self._comp_done[view.num_forward + view.num_backward + 1] - view.comp_left
        return comp, self._comm_done[view.num_comm + 1] - view.comm_left

    def cycle_end(self, cycle: int) -> float:
        """Return the comp work done at the end of this cycle's Backward; cycles count from 0."""
        return self._comp_done[2 * cycle + 2]


class UnlimitedCycles(_GivenTasks):
    """Every task has its own work. O(N) at first and after a change of the modes, then a short walk along the hull per call."""

    def __init__(self, works: Works, cycles: int) -> None:
        super().__init__(*works.tasks(0, cycles))
        self._next = _followers(self._points)

    def time(self, num_comm: int, num_comp: int, comp_done: float, comm_done: float, pace: Pace) -> float:
        """Return the least seconds for the rest: along the tangent to the point it touches, then along the hull."""
        if num_comm == len(self._points):
            return (self._comp_done[-1] - comp_done) / pace.comp_alone
        if pace is not self._pace:
            self._follow(pace)
        touched = num_comm
        x, y = self._points[touched]
        dx, dy = x - comp_done, y - comm_done
        while (further := self._next[touched]) > touched:
            x, y = self._points[further]
            if (y - comm_done) * dx < dy * (x - comp_done):
                break
            touched, dx, dy = further, x - comp_done, y - comm_done
        return pace.seconds(dx, dy) + self._times[touched]

    def _follow(self, pace: Pace) -> None:
        """Compute the seconds from every point to the end, along the hull of the points after it."""
        followers = np.array(self._next)
        steps = pace.frontier.cost(self._x[followers] - self._x, self._y[followers] - self._y).tolist()
        times = [(self._comp_done[-1] - self._comp_done[-2]) / pace.comp_alone] * len(steps)
        for point in range(len(steps) - 2, -1, -1):
            times[point] = steps[point] + times[self._next[point]]
        self._pace, self._times = pace, times


AHEAD = 4
"""Cycles beyond the prefetch limit after which a taut string is assumed to have met the run's string. It nearly always has."""


class LimitedCycles(_GivenTasks):
    """Every task has its own work, and comm may run ahead by `prefetch` batches. Typically O(prefetch) per call."""

    def __init__(self, works: Works, cycles: int, prefetch: int) -> None:
        comm, comp = works.tasks(0, cycles)
        super().__init__(comm, comp)
        self._prefetch = prefetch
        path = course(forward=np.array(comp[0::2]), backward=np.array(comp[1::2]), comm=np.array(comm), prefetch=prefetch)
        # The last vertex is repeated, so that a run without work also has a segment.
        self._path_x, self._path_y = np.append(path.comp, path.comp[-1]), np.append(path.comm, path.comm[-1])
        # The height of the run's string at the end of each Backward. Where works are 0 the string may be vertical there: then every
        # height between the floor and the ceiling of that Backward is on it. The sum of both works always grows along the string,
        # so it identifies the segment.
        self._ends = np.array(self._comp_done[2::2])[: cycles - 1]
        ceilings = np.array(self._comm_done)[np.minimum(np.arange(cycles - 1) + prefetch, cycles)]
        arrivals = np.clip(np.interp(self._ends, path.comp, path.comm), self._y[: cycles - 1], ceilings)
        self._arrivals: list[float] = arrivals.tolist()
        units = path.comp[-1] or 1.0, path.comm[-1] or 1.0
        along = path.comp / units[0] + path.comm / units[1]
        segment = np.searchsorted(along, self._ends / units[0] + arrivals / units[1])
        self._segment = np.clip(segment, 1, len(along))

    def time(self, num_comm: int, num_comp: int, comp_done: float, comm_done: float, pace: Pace) -> float:
        """Return the least seconds for the rest: along a taut string from here to the run's string, then along that string."""
        last = len(self._points) - 1
        if num_comm > last:
            return (self._comp_done[-1] - comp_done) / pace.comp_alone
        if pace is not self._pace:
            self._follow(pace)
        first = num_comp // 2
        meeting = first + self._prefetch + AHEAD
        while meeting < last and self._arrivals[meeting] < comm_done:
            meeting += self._prefetch
        gates = self._gates(num_comm, num_comp, min(meeting, last))
        points, is_ceiling = zip(*gates, strict=True)
        steps = np.diff(funnel(np.array(points) - complex(comp_done, comm_done), np.array(is_ceiling)))
        return sum(pace.seconds(step.real, step.imag) for step in steps.tolist()) + self._times[min(meeting, last)]

    def _gates(self, num_comm: int, num_comp: int, meeting: int) -> Iterator[tuple[complex, bool]]:
        """Yield the points that the path must pass above, or below (True), until it meets the run's string, as comp + 1j * comm."""
        last = len(self._points) - 1
        for cycle in range(num_comp // 2, meeting + 1):
            if cycle >= num_comm:
                yield complex(*self._points[cycle]), False
            if cycle < meeting:
                limit = self._comm_done[min(cycle + self._prefetch, last + 1)]
                yield complex(self._comp_done[2 * cycle + 2], limit), True
        if meeting < last:
            yield complex(self._comp_done[2 * meeting + 2], self._arrivals[meeting]), False

    def _follow(self, pace: Pace) -> None:
        """Compute the seconds to the end from the run's string at the end of each cycle."""
        last = (self._comp_done[-1] - self._comp_done[-2]) / pace.comp_alone
        steps = pace.frontier.cost(np.diff(self._path_x), np.diff(self._path_y))
        from_vertices = np.append(np.cumsum(steps[::-1])[::-1], 0.0) + last
        x, y = self._path_x[self._segment], self._path_y[self._segment]
        rest = pace.frontier.cost(np.maximum(x - self._ends, 0), np.maximum(y - np.array(self._arrivals), 0))
        self._pace, self._times = pace, [*(rest + from_vertices[self._segment]).tolist(), last]


def _followers(points: list[tuple[float, float]]) -> list[int]:
    """Return, for every point, the next vertex of the upper concave hull of this and all later points; the last is its own."""
    last = len(points) - 1
    followers = [last] * len(points)
    for point in range(last - 1, -1, -1):
        x, y = points[point]
        nearest = point + 1
        while (further := followers[nearest]) > nearest:
            near_x, near_y = points[nearest]
            far_x, far_y = points[further]
            if (far_y - y) * (near_x - x) < (near_y - y) * (far_x - x):
                break
            nearest = further
        followers[point] = nearest
    return followers
