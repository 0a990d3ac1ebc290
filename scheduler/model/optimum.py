"""The optimum, exactly and in O(N): the least time that any schedule can take (T*), and the course that takes it.

A run is a path in a plane, comp work done to the right and comm work done upwards. What may be done in which order is a pair of
staircases that the path must stay between (`course`); what the cores are worth is the price of moving (`Frontier`). The price is
the same everywhere, so the straightest path is the best one whatever the rates are, and the two halves need nothing of each
other (docs/model.md, sections "The optimum" and "With a prefetch limit"). Events and policies are unknown here.
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
"""A point of the plane is one number: comp work + 1j * comm work."""
_Indices: TypeAlias = npt.NDArray[np.intp]

# A bend this small, as a share of the whole run, is rounding: a few times the precision of a float64.
_ROUNDING = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """What the cores are worth at best: h(s), the least seconds per unit of comp work while comm advances s per unit of it.

    h is the lower convex hull of the points (comm rate / comp rate, 1 / comp rate) of the modes. A side may idle, so h never
    falls: left of its lowest point it is flat, and comm idles some of the time. To the right it goes on with comp at rest,
    in the fastest mode that is comm only (Eq. 13; if there is none, in the mode with the fastest comm, its comp thrown away).
    """

    modes: tuple[Mode, ...]
    """The modes on the hull by rising slope, all others being wasteful. The comm-only one comes last, where there is any."""
    slopes: tuple[float, ...]
    """Of each of those, its comm work per unit of comp work; math.inf for comm-only."""
    prices: tuple[tuple[float, float], ...]
    """Seconds per unit of comp work and per unit of comm work, of each straight piece of h by rising slope.

    `prices[j]` is the piece that ends at `modes[j]`: the first is the flat one, the others begin at `modes[j - 1]`. Where no
    mode is comm only there is one piece more, which begins at the last mode and never ends. h is the largest of all pieces.
    """

    @classmethod
    def of(cls, modes: Sequence[Mode]) -> Frontier:
        """Keep the modes worth using. ValueError if comp work can be done in none of them, or comm work in none."""
        for side, rates in (("comp", [mode.comp_rate for mode in modes]), ("comm", [mode.comm_rate for mode in modes])):
            if not any(rates):
                names = ", ".join(mode.name for mode in modes) or "none"
                raise ValueError(f"no mode does any {side} work, so no run would end; the modes are: {names}")
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
        """The least seconds for `comp` and `comm` work done side by side; either may be 0. Numbers, or arrays of one shape."""
        seconds: float | Floats = 0.0
        for per_comp, per_comm in self.prices:
            seconds = np.maximum(seconds, per_comp * comp + per_comm * comm)
        return seconds

    def around(self, slope: float) -> tuple[Mode, Mode]:
        """The two modes that a move with this slope is made of: the one of lower slope, the one of higher slope.

        They are the same where a single mode does it: at its own slope, at or below the lowest (comm idles), and beyond
        the last (comp idles). math.inf is a move of comm alone.
        """
        right = bisect_left(self.slopes, slope)
        high = self.modes[min(right, len(self.modes) - 1)]
        is_between = 0 < right < len(self.modes) and self.slopes[right] != slope
        return (self.modes[right - 1] if is_between else high), high


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """The line to follow, from (0, 0) to (W_N, Y_N), in vertices where it bends: one alone if there is no work before B_N."""

    comp: Floats
    """Comp work done: float64 [vertices], never falling. Two alike are the ends of a vertical piece: comp waits."""
    comm: Floats
    """Comm work done: float64 [vertices], never falling."""
    is_ceiling: npt.NDArray[np.bool_]
    """True where the line bends upwards, held down by the prefetch limit so far: bool [vertices]. False at both ends."""


def course(*, forward: Floats, backward: Floats, comm: Floats, prefetch: int | None = None) -> Course:
    """The best path through a run, whatever the rates. Time and memory O(N).

    The works of the N cycles' tasks are float64 [N], 0 or more. Comm may run ahead of training by `prefetch` batches; None is no
    limit. With W_i the comp work before B_i, E_i that up to its end, and Y_i the comm work up to Comm_i, the path leaves
    each W_i at Y_i or above, and reaches each E_i at Y_{i-1+prefetch} or below. Without a limit it is the upper concave hull of
    the points (W_i, Y_i), with one the taut string between both staircases. ValueError for works or a limit that cannot be.
    """
    _check(prefetch, forward=forward, backward=backward, comm=comm)
    comp, levels = _sums(np.stack([forward, backward], axis=1).ravel()), _sums(comm)
    starts, ends = comp[0::2], comp[1::2]
    if prefetch == 1:
        # A slot is filled, then freed by the Backward that needs it. Comm and Backward take turns, and nothing is left to choose.
        return _bends(np.append(0, comp + 1j * np.repeat(levels, 2))[:-1])
    floors = starts + 1j * levels
    hull = _bends(_string(floors, floors[:0], reach=len(floors)))
    if prefetch is None or prefetch >= len(floors):
        return hull
    # The ceiling over the last cycles is Y_N itself, and nothing goes above that.
    ends, limits = ends[:-prefetch], levels[prefetch - 1 : -1]
    if np.all(np.interp(ends, hull.comp, hull.comm) <= limits):
        return hull
    return _bends(_string(floors, ends + 1j * limits, reach=prefetch - 1))


def lower_bound(*, modes: Sequence[Mode], forward: Floats, backward: Floats, comm: Floats, prefetch: int | None = None) -> float:
    """T*, in seconds: no schedule with these modes that obeys Eq. 13 ends sooner. Modes may change at any time, not at events only.

    It is the price of the course, and the last Backward with all cores (Eq. 13; if no mode is comp only, in the one that is
    fastest for comp). Works as for `course`; ValueError as there and in `Frontier.of`.
    """
    frontier = Frontier.of(modes)
    path = course(forward=forward, backward=backward, comm=comm, prefetch=prefetch)
    seconds = frontier.cost(np.diff(path.comp), np.diff(path.comm))
    alone = [mode.comp_rate for mode in modes if mode.comm_rate == 0] or [mode.comp_rate for mode in modes]
    return float(seconds.sum() + backward[-1] / max(alone))


def _hull_of_rates(modes: Sequence[Mode]) -> list[Mode]:
    """The modes on h by rising slope, which is by falling comp rate: from the fastest for comp to the fastest that is comm only.

    In the plane of both rates they are the outer corners of all that sharing time between modes, or idling, can do.
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
    """Seconds per unit of comp work and of comm work, such that what either mode does in a second is worth a second."""
    more_comm, less_comp = high.comm_rate - low.comm_rate, low.comp_rate - high.comp_rate
    area = high.comm_rate * less_comp + high.comp_rate * more_comm
    return more_comm / area, less_comp / area


def _check(prefetch: int | None, **works: Floats) -> None:
    for task, work in works.items():
        if work.ndim != 1 or len(work) == 0 or len(work) != len(works["comm"]):
            shapes = ", ".join(f"{name} {value.shape}" for name, value in works.items())
            raise ValueError(f"works of these shapes: {shapes}; each task needs one number a cycle, for at least one cycle")
        is_right = np.isfinite(work) & (work >= 0)
        if not is_right.all():
            wrong = int(np.argmin(is_right))
            raise ValueError(f"the {task} work of cycle {wrong + 1} is {work[wrong]:g}; it must be finite and not negative")
    if prefetch is not None and prefetch < 1:
        raise ValueError(f"the prefetch limit is {prefetch}; it must be at least 1, or no batch could be received")


def _sums(works: Floats) -> Floats:
    """Running sums: float64, but summed in more than that, so that a million equal works make points on one line."""
    return np.cumsum(works, dtype=np.longdouble).astype(np.float64)


def _turn(a: Points, b: Points, c: Points) -> Floats:
    """Positive where c is above the chord from a to b, 0 on it, as twice the area between the three. No division."""
    return (np.conj(b - a) * (c - a)).imag


def _string(floors: Points, ceilings: Points, reach: int) -> Points:
    """The vertices of the taut string from 0 to the last of `floors`, above all others and below `ceilings`, from cycle 1 on.

    Of floor points one above the other the highest counts, for comp waits there until it may go on; of the ceiling's the lowest.
    """
    at_floor = _thinned(floors, np.flatnonzero(np.diff(floors.real, append=np.inf) > 0), 1, reach)
    at_ceiling = _thinned(ceilings, np.flatnonzero(np.diff(ceilings.real, prepend=0) > 0), -1, reach)
    order = np.sort(np.append(2 * at_floor, 2 * at_ceiling + 1))
    is_ceiling = order % 2 == 1
    points = floors[order // 2]
    points[is_ceiling] = ceilings[at_ceiling]
    return funnel(points, is_ceiling)


def _thinned(points: Points, left: _Indices, side: int, reach: int) -> _Indices:
    """Those of the points `left`, in different places, that the taut string may bend at: on side 1, the floor, or -1, the ceiling.

    The string bends at a floor point only if that is above the chord of the floor points before and after it, provided that no
    ceiling comes in between. None does within `reach` cycles, prefetch - 1: by its rule the ceiling over cycle j is no
    lower than the floor in cycle j + reach. The same goes for the ceiling, upside down. All that cannot be bends go at
    once; when few go, the funnel ends it in O(N).
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
    """The vertices, from 0 to the last point, of the taut string above the floor's points and below the ceiling's.

    complex128 and bool [points], in the order in which the path passes them: neither side's points ever go back or fall, and the
    last is the floor's. Points may lie on the line between two vertices, or be there twice. Each enters and leaves once.
    """
    # The string is certain up to `end`. From there it fans out: the way over all floor points, and the way below the ceiling's.
    end = 0j
    vertices = [end]
    floors: deque[complex] = deque()
    ceilings: deque[complex] = deque()
    for point, side in zip(points.tolist(), np.where(is_ceiling, -1.0, 1.0).tolist(), strict=True):
        own, other = (floors, ceilings) if side > 0 else (ceilings, floors)
        if side < 0 and point.real == (own[-1] if own else end).real:
            continue  # the path is here already, below what came first
        while own:
            before = own[-2] if len(own) > 1 else end
            if side * ((own[-1] - before).conjugate() * (point - before)).imag < 0:
                break
            own.pop()
        else:
            # It is the first of its side that can be seen from `end`, unless the other side is in between: go along that.
            while other and side * ((other[0] - end).conjugate() * (point - end)).imag >= 0:
                end = other.popleft()
                vertices.append(end)
        own.append(point)
    return np.array([*vertices, *floors])


def _bends(points: Points) -> Course:
    """The course through these points, without those where it does not bend: all that go are within rounding of the line."""
    points = points[np.append(True, points[1:] != points[:-1])]
    unit = points.real / (points.real[-1] or 1.0) + 1j * (points.imag / (points.imag[-1] or 1.0))
    stays = np.full(len(points), True)
    stays[1:-1] = _distance(unit[:-2], unit[2:], unit[1:-1]) > _ROUNDING
    while not stays.all():
        corners, loose = np.flatnonzero(stays), np.flatnonzero(~stays)
        right = np.searchsorted(corners, loose)
        distance = _distance(unit[corners[right - 1]], unit[corners[right]], unit[loose])
        # Many small bends may make a large one: of each run of loose points the farthest stays, until all are near.
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
    """How far the middle points are from the chords, whose ends are in order and not the same."""
    return np.abs(_turn(left, right, middle)) / ((right - left).real + (right - left).imag)
