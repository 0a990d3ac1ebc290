"""Compute the optimum, exactly and in O(N): the least time of any schedule (T*), and the path of this schedule.

A run is a path in a plane: comp work done on the x axis, comm work done on the y axis. The order of the tasks gives two
staircases, and the path must stay between them (`course`). The rates give the cost of each step (`Frontier`). The cost does not
depend on the position, so the straightest path is optimal for all rates. Therefore both parts are independent of each other
(docs/model.md, sections "The optimum" and "With a prefetch limit"). This module has no events and no policies.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from scheduler.model.cost import Mode

Floats: TypeAlias = npt.NDArray[np.float64]
Points: TypeAlias = npt.NDArray[np.complex128]
"""Points of the plane as complex numbers: comp work + 1j * comm work."""
_Indices: TypeAlias = npt.NDArray[np.intp]

# A smaller bend, relative to the whole run, is a rounding error: a few times the precision of a float64.
_ROUNDING = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """The best use of the cores: h(s), the least seconds per unit of comp work while comm advances s units per unit of comp work.

    h is the lower convex hull of the points (comm rate / comp rate, 1 / comp rate) of the modes. A side may idle, so h never
    falls: left of its lowest point it is flat, and comm idles part of the time. To the right it continues with comp idle, in the
    fastest comm-only mode (Eq. 13). Without a comm-only mode, it continues in the mode with the fastest comm, and its comp is
    unused.
    """

    modes: tuple[Mode, ...]
    """The modes on the hull by rising slope; all other modes are slower. The comm-only mode is last, if one exists."""
    slopes: tuple[float, ...]
    """Comm work per unit of comp work of each of `modes`; math.inf for comm-only."""
    prices: tuple[tuple[float, float], ...]
    """Seconds per unit of comp work and per unit of comm work, for each linear piece of h by rising slope.

    `prices[j]` is the piece that ends at `modes[j]`. The first piece is flat, the others begin at `modes[j - 1]`. Without a
    comm-only mode there is one more piece, which begins at the last mode and has no end. h is the maximum of all pieces.
    """

    @classmethod
    def of(cls, modes: Sequence[Mode]) -> Frontier:
        """Build the frontier of these modes. Raises ValueError if no mode does comp work, or no mode does comm work."""
        for side, rates in (("comp", [mode.comp_rate for mode in modes]), ("comm", [mode.comm_rate for mode in modes])):
            if not any(rates):
                names = ", ".join(mode.name for mode in modes) or "none"
                raise ValueError(f"no mode does any {side} work, so a run would never end; the modes are: {names}")
        has_comm_only = not all(mode.comp_rate for mode in modes)
        resting = Mode(name="comp at rest", comm_rate=max(mode.comm_rate for mode in modes), comp_rate=0.0)
        hull = _hull_of_rates(modes if has_comm_only else [*modes, resting])
        kept = hull if has_comm_only else hull[:-1]
        return cls(
            modes=tuple(kept),
            slopes=tuple(mode.comm_rate / mode.comp_rate if mode.comp_rate else math.inf for mode in kept),
            prices=((1 / hull[0].comp_rate, 0.0), *(_price(low, high) for low, high in pairwise(hull))),
        )

    @overload
    def cost(self, comp: float, comm: float) -> float: ...

    @overload
    def cost(self, comp: Floats, comm: Floats) -> Floats: ...

    def cost(self, comp: float | Floats, comm: float | Floats) -> float | Floats:
        """Return the least seconds for `comp` and `comm` work done in parallel; one may be 0. Numbers, or arrays of one shape."""
        seconds: float | Floats = 0.0
        for per_comp, per_comm in self.prices:
            seconds = np.maximum(seconds, per_comp * comp + per_comm * comm)
        return seconds

    def around(self, slope: float) -> tuple[Mode, Mode]:
        """Return the two modes that together give this slope: first the mode of lower slope, then the mode of higher slope.

        Both are the same mode in three cases: at the slope of a mode, at or below the lowest slope (comm idles), and above the last
        slope (comp idles). math.inf is the slope of comm alone.
        """
        right = bisect_left(self.slopes, slope)
        high = self.modes[min(right, len(self.modes) - 1)]
        is_between = 0 < right < len(self.modes) and self.slopes[right] != slope
        return (self.modes[right - 1] if is_between else high), high


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """The optimal path from (0, 0) to (W_N, Y_N), as the vertices where it bends; one vertex if there is no work before B_N."""

    comp: Floats
    """Comp work done: float64 [vertices], never falling. Two equal values are the ends of a vertical piece: comp waits."""
    comm: Floats
    """Comm work done: float64 [vertices], never falling."""
    is_ceiling: npt.NDArray[np.bool_]
    """True where the path bends upwards, because the prefetch limit kept it low: bool [vertices]. False at both ends."""


def course(*, forward: Floats, backward: Floats, comm: Floats, prefetch: int | None = None) -> Course:
    """Compute the optimal path of a run, which is the same for all rates. Time and memory O(N).

    The works of the N cycles' tasks are float64 [N], 0 or more. Comm may run ahead of training by `prefetch` batches; None is no
    limit. W_i is the comp work before B_i, E_i the comp work up to its end, and Y_i the comm work up to Comm_i. The path leaves
    each W_i at Y_i or above, and reaches each E_i at Y_{i-1+prefetch} or below. Without a limit it is the upper concave hull of
    the points (W_i, Y_i). With a limit it is the taut string between both staircases. Raises ValueError for invalid works or an
    invalid limit.
    """
    _check(prefetch, forward=forward, backward=backward, comm=comm)
    comp, levels = _sums(np.stack([forward, backward], axis=1).ravel()), _sums(comm)
    starts, ends = comp[0::2], comp[1::2]
    if prefetch == 1:
        # The only slot is filled, then freed by its Backward. Comm and Backward alternate, so only one path exists.
        return _bends(np.append(0, comp + 1j * np.repeat(levels, 2))[:-1])
    floors = starts + 1j * levels
    hull = _bends(_string(floors, floors[:0], reach=len(floors)))
    if prefetch is None or prefetch >= len(floors):
        return hull
    # The ceiling over the last cycles is Y_N, which no path exceeds.
    ends, limits = ends[:-prefetch], levels[prefetch - 1 : -1]
    if np.all(np.interp(ends, hull.comp, hull.comm) <= limits):
        return hull
    return _bends(_string(floors, ends + 1j * limits, reach=prefetch - 1))


def lower_bound(*, modes: Sequence[Mode], forward: Floats, backward: Floats, comm: Floats, prefetch: int | None = None) -> float:
    """Return T* in seconds: no schedule with these modes that obeys Eq. 13 ends earlier. Modes may change at any time.

    T* is the cost of the course plus the last Backward with all cores (Eq. 13). Without a comp-only mode, the last Backward runs
    in the mode that is fastest for comp. Works as for `course`. Raises ValueError as `course` and `Frontier.of`.
    """
    frontier = Frontier.of(modes)
    path = course(forward=forward, backward=backward, comm=comm, prefetch=prefetch)
    seconds = frontier.cost(np.diff(path.comp), np.diff(path.comm))
    alone = [mode.comp_rate for mode in modes if mode.comm_rate == 0] or [mode.comp_rate for mode in modes]
    return float(seconds.sum() + backward[-1] / max(alone))


def _hull_of_rates(modes: Sequence[Mode]) -> list[Mode]:
    """Return the modes on h by rising slope, from the fastest for comp to the fastest comm-only mode.

    The order is also by falling comp rate. Switching between modes and idling can reach a set of mean rates. In the plane of both
    rates, these modes are the outer corners of this set.
    """
    hull: list[Mode] = []
    for mode in sorted(modes, key=lambda mode: (-mode.comp_rate, -mode.comm_rate)):
        if hull and mode.comp_rate == hull[-1].comp_rate:
            continue
        while len(hull) > 1:
            before, last = hull[-2:]
            turn = (last.comp_rate - before.comp_rate) * (mode.comm_rate - last.comm_rate)
            if turn - (last.comm_rate - before.comm_rate) * (mode.comp_rate - last.comp_rate) > 0:
                break
            hull.pop()
        hull.append(mode)
    return hull


def _price(low: Mode, high: Mode) -> tuple[float, float]:
    """Return seconds per unit of comp work and of comm work, at which the work of either mode in one second costs one second."""
    more_comm, less_comp = high.comm_rate - low.comm_rate, low.comp_rate - high.comp_rate
    area = high.comm_rate * less_comp + high.comp_rate * more_comm
    return more_comm / area, less_comp / area


def _check(prefetch: int | None, **works: Floats) -> None:
    for task, work in works.items():
        if work.ndim != 1 or len(work) == 0 or len(work) != len(works["comm"]):
            shapes = ", ".join(f"{name} {value.shape}" for name, value in works.items())
            raise ValueError(f"works have the shapes {shapes}; each task needs one number per cycle, for at least one cycle")
        is_right = np.isfinite(work) & (work >= 0)
        if not is_right.all():
            wrong = int(np.argmin(is_right))
            raise ValueError(f"the {task} work of cycle {wrong + 1} is {work[wrong]:g}; it must be finite and not negative")
    if prefetch is not None and prefetch < 1:
        raise ValueError(f"the prefetch limit is {prefetch}; it must be at least 1, or comm could not receive a batch")


def _sums(works: Floats) -> Floats:
    """Return running sums as float64, computed in long double so that a million equal works give points on one line."""
    return np.cumsum(works, dtype=np.longdouble).astype(np.float64)


def _turn(a: Points, b: Points, c: Points) -> Floats:
    """Return twice the signed area of the triangle a, b, c: positive where c is above the chord from a to b, 0 on it."""
    return (np.conj(b - a) * (c - a)).imag


def _string(floors: Points, ceilings: Points, reach: int) -> Points:
    """Return the vertices of the taut string from 0 to the last of `floors`, above all other floors and below `ceilings`.

    The points begin at cycle 1. Of several floor points at the same x only the highest counts, because comp waits there. Of
    several ceiling points at the same x only the lowest counts.
    """
    at_floor = _thinned(floors, np.flatnonzero(np.diff(floors.real, append=np.inf) > 0), 1, reach)
    at_ceiling = _thinned(ceilings, np.flatnonzero(np.diff(ceilings.real, prepend=0) > 0), -1, reach)
    order = np.sort(np.append(2 * at_floor, 2 * at_ceiling + 1))
    is_ceiling = order % 2 == 1
    points = floors[order // 2]
    points[is_ceiling] = ceilings[at_ceiling]
    return funnel(points, is_ceiling)


def _thinned(points: Points, left: _Indices, side: int, reach: int) -> _Indices:
    """Drop the points of `left` where the taut string cannot bend. `side` is 1 for the floor, -1 for the ceiling.

    The points have distinct x. If no ceiling lies between, the string bends only at floor points above the chord of the
    floor points before and after them. No ceiling does within `reach` = prefetch - 1 cycles: by its definition the
    ceiling over cycle j is at least as high as the floor in cycle j + reach. The mirrored rule holds for the ceiling. Each pass
    drops all such points. When a pass drops few, `funnel` does the rest in O(N).
    """
    while len(left) > 2:
        before, middle, after = left[:-2], left[1:-1], left[2:]
        may_bend = side * _turn(points[before], points[after], points[middle]) > 0
        may_bend |= np.maximum(middle - before, after - middle) > reach
        num_before, left = len(left), np.concatenate([left[:1], middle[may_bend], left[-1:]])
        if len(left) > 0.9 * num_before:
            break
    return left


def funnel(points: Points, is_ceiling: npt.NDArray[np.bool_]) -> Points:
    """Return the vertices of the taut string above the floor points and below the ceiling points, from 0 to the last point.

    complex128 and bool [points], in the order in which the path passes them. Neither side's points go back or fall, and the last
    point is a floor point. Points may be collinear or repeated. Each point is added and removed at most once, so this is O(N).
    """
    # The string is final up to `end`. From there two chains are open: over all floor points, and below all ceiling points.
    end = 0j
    vertices = [end]
    floors: deque[complex] = deque()
    ceilings: deque[complex] = deque()
    for point, side in zip(points.tolist(), np.where(is_ceiling, -1.0, 1.0).tolist(), strict=True):
        own, other = (floors, ceilings) if side > 0 else (ceilings, floors)
        if side < 0 and point.real == (own[-1] if own else end).real:
            continue  # an earlier ceiling point at this x is lower
        while own:
            before = own[-2] if len(own) > 1 else end
            if side * ((own[-1] - before).conjugate() * (point - before)).imag < 0:
                break
            own.pop()
        else:
            # The chain of this side is empty: the string follows the other side until the point is visible from `end`.
            while other and side * ((other[0] - end).conjugate() * (point - end)).imag >= 0:
                end = other.popleft()
                vertices.append(end)
        own.append(point)
    return np.array([*vertices, *floors])


def _bends(points: Points) -> Course:
    """Return the course through these points, without the points that are on a straight line up to rounding."""
    points = points[np.append(True, points[1:] != points[:-1])]
    unit = points.real / (points.real[-1] or 1.0) + 1j * (points.imag / (points.imag[-1] or 1.0))
    stays = np.full(len(points), True)
    stays[1:-1] = _distance(unit[:-2], unit[2:], unit[1:-1]) > _ROUNDING
    while not stays.all():
        corners, loose = np.flatnonzero(stays), np.flatnonzero(~stays)
        right = np.searchsorted(corners, loose)
        distance = _distance(unit[corners[right - 1]], unit[corners[right]], unit[loose])
        # Many small bends can add up to a large one. Keep the farthest of each run of loose points until all are near.
        first = np.flatnonzero(np.diff(right, prepend=0))
        farthest = np.repeat(np.maximum.reduceat(distance, first), np.diff(first, append=len(loose)))
        is_bend = (distance > _ROUNDING) & (distance == farthest)
        if not is_bend.any():
            break
        stays[loose[is_bend]] = True
    points = points[stays]
    is_ceiling = np.full(len(points), False)
    is_ceiling[1:-1] = _turn(points[:-2], points[2:], points[1:-1]) < 0
    return Course(comp=points.real.copy(), comm=points.imag.copy(), is_ceiling=is_ceiling)


def _distance(left: Points, right: Points, middle: Points) -> Floats:
    """Return the distances of the middle points from their chords. The ends of a chord are in order and distinct."""
    return np.abs(_turn(left, right, middle)) / ((right - left).real + (right - left).imag)
