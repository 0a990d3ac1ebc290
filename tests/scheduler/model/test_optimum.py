"""The optimum, compared with a linear program without hulls and strings, and with cases computed by hand."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, pairwise
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from scheduler.model.cost import CostModel, Mode, RateTable
from scheduler.model.optimum import Course, Floats, Frontier, course, funnel, lower_bound
from scheduler.model.scenario import Scenario, TaskWorks


@dataclass(frozen=True)
class Case:
    modes: tuple[Mode, ...]
    forward: Floats
    backward: Floats
    comm: Floats
    prefetch: int | None

    @property
    def cycles(self) -> int:
        return len(self.comm)

    def course(self) -> Course:
        return course(forward=self.forward, backward=self.backward, comm=self.comm, prefetch=self.prefetch)

    def lower_bound(self) -> float:
        return lower_bound(modes=self.modes, forward=self.forward, backward=self.backward, comm=self.comm, prefetch=self.prefetch)

    def comp_before(self) -> tuple[Floats, Floats]:
        """W and E: the comp work before each Backward, and the comp work up to its end."""
        comp = np.cumsum(np.stack([self.forward, self.backward], axis=1))
        return comp[0::2], comp[1::2]

    def levels(self) -> tuple[Floats, Floats]:
        """The least comm work at W_i, and the most comm work at E_i."""
        floors = np.cumsum(self.comm)
        ahead = self.cycles if self.prefetch is None else self.prefetch
        return floors, floors[np.minimum(np.arange(self.cycles) - 1 + ahead, self.cycles - 1)]


def positive(generator: random.Random, spread: float = 20.0) -> float:
    return math.exp(generator.uniform(-math.log(spread), math.log(spread)))


def cost_modes(generator: random.Random, num_cores: int) -> tuple[Mode, ...]:
    return (
        CostModel(
            a1=positive(generator, 5),
            a2=generator.uniform(0.0, 0.95) / max(num_cores - 1, 1),
            b1=positive(generator, 5),
            b2=generator.uniform(0.0, 2.0),
            b3=generator.uniform(1.0, 5.0),
        )
        .rates(num_cores)
        .modes()
    )


def table_modes(generator: random.Random, num_cores: int, *, is_monotone: bool) -> tuple[Mode, ...]:
    comm = [positive(generator) for _ in range(num_cores)]
    comp = [positive(generator) for _ in range(num_cores)]
    if is_monotone:
        comm.sort()
        comp.sort(reverse=True)
    return RateTable(comm=(0.0, *comm), comp=(*comp, 0.0)).modes()


def loose_modes(generator: random.Random, num_cores: int) -> tuple[Mode, ...]:
    """Random rates, possibly without a comp-only mode or without a comm-only mode."""
    kept = [mode for mode in table_modes(generator, num_cores, is_monotone=False) if generator.random() < 0.7]
    shared = Mode(name="shared", comm_rate=positive(generator), comp_rate=positive(generator))
    return (*kept, shared)


def works(generator: random.Random, cycles: int, kind: str) -> Floats:
    """Works of any size, works with zeros, or small whole numbers that put many points on one line."""
    if kind == "whole":
        return np.array([float(generator.randrange(4)) for _ in range(cycles)])
    return np.array([0.0 if kind == "zeros" and generator.random() < 0.4 else positive(generator, 5) for _ in range(cycles)])


def make_case(generator: random.Random, *, max_cycles: int = 12) -> Case:
    num_cores, cycles = generator.randint(1, 12), generator.randint(1, max_cycles)
    kind = generator.choice(["any", "any", "zeros", "whole"])
    modes = generator.choice(
        [
            cost_modes(generator, num_cores),
            table_modes(generator, num_cores, is_monotone=True),
            table_modes(generator, num_cores, is_monotone=False),
            loose_modes(generator, num_cores),
        ]
    )
    return Case(
        modes=modes,
        forward=works(generator, cycles, kind),
        backward=works(generator, cycles, kind),
        comm=works(generator, cycles, kind),
        prefetch=generator.choice([None, 1, 2, generator.randint(1, cycles + 1)]),
    )


def cases(**limits: int) -> st.SearchStrategy[Case]:
    return st.integers(0, 2**32).map(lambda seed: make_case(random.Random(seed), **limits))


FEW_ROUNDINGS = 16 * sys.float_info.epsilon
"""The relative error of a price: all its terms are positive, so no digit is lost."""

FEASIBLE = 1e-10
"""How far HiGHS may miss a condition of the program or of its dual."""


def least_time(case: Case) -> tuple[float, float]:
    """The optimum by HiGHS, and how far that may be off: by what HiGHS may miss, times what that is worth.

    Variables: the seconds of every mode in each piece F1, B1, F2, ... F_N; B_N comes on top. A mode may be used with comm idle.
    Comp may idle in one only if no mode is comm only.
    """
    ways = [(mode.comm_rate, mode.comp_rate) for mode in case.modes]
    alone = [comp for comm, comp in ways if comm == 0] or [comp for _, comp in ways]
    last = case.backward[-1] / max(alone)
    if all(comp for _, comp in ways):
        ways += [(comm, 0.0) for comm, _ in ways]
    ways += [(0.0, comp) for _, comp in ways if comp]
    comm_rates, comp_rates = np.array(ways).T
    pieces = np.stack([case.forward, case.backward], axis=1).ravel()[:-1]
    floors, ceilings = case.levels()
    # Scale all numbers to about 1: HiGHS has absolute tolerances only.
    comp_unit, comm_unit = pieces.mean() or 1.0, case.comm.mean() or 1.0
    comp_rates, comm_rates = comp_rates / comp_unit, comm_rates / comm_unit
    time_unit = 1 / comp_rates.max() + 1 / comm_rates.max()
    comp_rates, comm_rates = comp_rates * time_unit, comm_rates * time_unit
    num_pieces, num_ways = len(pieces), len(ways)
    comp_done = np.kron(np.eye(num_pieces), comp_rates)
    comm_done = np.kron(np.tri(num_pieces), comm_rates)
    limits = comm_done[0::2], comm_done[1::2]
    found = linprog(
        np.ones(num_pieces * num_ways),
        A_eq=comp_done,
        b_eq=pieces / comp_unit,
        A_ub=np.concatenate([-limits[0], limits[1]]),
        b_ub=np.concatenate([-floors, ceilings[:-1]]) / comm_unit,
        method="highs",
        options={"primal_feasibility_tolerance": FEASIBLE, "dual_feasibility_tolerance": FEASIBLE},
    )
    assert found.status == 0, found.message
    # The duals are the conditioning: seconds for each unit that a condition is missed by. The variables are that of the dual.
    worth = np.abs(found.eqlin.marginals).sum() + np.abs(found.ineqlin.marginals).sum() + found.x.sum()
    seconds = float(found.fun * time_unit + last)
    return seconds, float(FEASIBLE * worth * time_unit) + FEW_ROUNDINGS * num_pieces * seconds


@given(cases())
@settings(max_examples=600, deadline=None)
def test_the_lower_bound_is_the_optimum_of_the_linear_program(case: Case) -> None:
    seconds, error = least_time(case)
    assert abs(case.lower_bound() - seconds) <= error


def as_scenario(case: Case) -> Scenario:
    """The case as a scenario. Its rate table is not used: `lower_bound` of a case has modes of its own."""
    works = TaskWorks(forward=case.forward, backward=case.backward, comm=case.comm)
    rates = RateTable(comm=(0.0, 1.0, 1.0), comp=(1.0, 1.0, 0.0))
    return Scenario(cores=2, works=works, prefetch=case.prefetch, rates=rates, cost=None)


def in_shards(case: Case, num_shards: int) -> Case:
    cut = as_scenario(case).in_shards(num_shards)
    return replace(case, forward=cut.works.forward, backward=cut.works.backward, comm=cut.works.comm, prefetch=cut.prefetch)


ROUNDED = 1e-12


@given(cases(max_cycles=4), st.integers(2, 4))
@settings(max_examples=100, deadline=None)
def test_the_lower_bound_in_shards_is_the_optimum_of_the_linear_program(case: Case, num_shards: int) -> None:
    cut = in_shards(case, num_shards)
    seconds, error = least_time(cut)
    assert abs(cut.lower_bound() - seconds) <= error


@given(cases(), st.integers(1, 5))
def test_shards_gain_at_most_the_rest_of_the_largest_batch_on_all_cores(case: Case, num_shards: int) -> None:
    fastest = max(case.modes, key=lambda mode: mode.comp_rate)
    assume(fastest.comm_rate == 0)  # Eq. 13 forces the last Backward into comp-only, and a part of it is shorter
    case = replace(case, prefetch=None)
    whole, cut = case.lower_bound(), in_shards(case, num_shards).lower_bound()
    rest = (1 - 1 / num_shards) * case.comm.max() / max(mode.comm_rate for mode in case.modes)
    assert cut <= whole * (1 + ROUNDED)
    assert whole <= (cut + rest) * (1 + ROUNDED)


def heights(path: Course, comp: Floats) -> tuple[Floats, Floats]:
    """The heights at which the path reaches and leaves each x; they differ where the path is vertical."""
    last = len(path.comp) - 1
    found = []
    for side in ("left", "right"):
        end = np.clip(np.searchsorted(path.comp, comp, side=side), 1, last)
        start = end - 1
        width = path.comp[end] - path.comp[start]
        share = np.divide(comp - path.comp[start], width, out=np.ones_like(comp), where=width > 0)
        found.append(path.comm[start] + np.clip(share, 0, 1) * (path.comm[end] - path.comm[start]))
    return np.where(comp > 0, found[0], 0.0), found[1]


def assert_taut(case: Case) -> None:
    """Check that the path obeys the rules and bends only where a rule forces it: only the taut string does."""
    path = case.course()
    (starts, ends), (floors, ceilings) = case.comp_before(), case.levels()
    assert (path.comp[0], path.comm[0]) == (0, 0)
    assert path.comp[-1] == pytest.approx(starts[-1])
    assert path.comm[-1] == pytest.approx(floors[-1])
    assert np.all((np.diff(path.comp) >= 0) & (np.diff(path.comm) >= 0))
    assert not path.is_ceiling[[0, -1]].any()
    if len(path.comp) == 1:
        assert starts[-1] == floors[-1] == 0
        return
    small = 1e-11 * floors[-1]
    steps = np.diff(path.comp + 1j * path.comm)
    assert np.array_equal((steps[:-1].conj() * steps[1:]).imag > 0, path.is_ceiling[1:-1])
    if (case.prefetch or case.cycles) >= case.cycles:
        assert not path.is_ceiling.any()
    # Rounding may move a corner of the path next to an x. On a steep piece that changes the height, so look next to x too.
    beside = 1e-11 * ends[-1]
    assert np.all(heights(path, starts + beside)[1] >= floors - small)
    assert np.all(heights(path, np.maximum(ends - beside, 0))[0][:-1] <= ceilings[:-1] + small)
    for comp, comm, is_ceiling in zip(path.comp[1:-1], path.comm[1:-1], path.is_ceiling[1:-1], strict=True):
        places, levels = (ends, ceilings) if is_ceiling else (starts, floors)
        assert np.any((np.abs(places - comp) <= beside) & (np.abs(levels - comm) <= small)), (comp, comm, is_ceiling)


@given(cases(max_cycles=40))
@settings(max_examples=400, deadline=None)
def test_the_course_is_the_taut_string_between_both_staircases(case: Case) -> None:
    assert_taut(case)


@pytest.mark.parametrize("prefetch", [None, 1, 2, 3, 8, 50])
@pytest.mark.parametrize("kind", ["any", "zeros", "whole"])
def test_the_course_of_many_cycles_is_taut_too(kind: str, prefetch: int | None) -> None:
    generator = random.Random(f"{kind} {prefetch}")
    forward, backward, comm = (works(generator, 5_000, kind) for _ in range(3))
    assert_taut(Case(modes=(), forward=forward, backward=backward, comm=comm, prefetch=prefetch))


Numbers: TypeAlias = Sequence[float]


def vertices(forward: Numbers, backward: Numbers, comm: Numbers, prefetch: int | None = None) -> list[tuple[float, float]]:
    path = course(forward=np.array(forward), backward=np.array(backward), comm=np.array(comm), prefetch=prefetch)
    return list(zip(path.comp.tolist(), path.comm.tolist(), strict=True))


def test_without_a_limit_the_course_is_the_upper_hull() -> None:
    # The points are (1, 4), (3, 5), (5, 8), (7, 9): the second and the third are on or below a chord.
    assert vertices([1, 1, 1, 1], [1, 1, 1, 1], [4, 1, 3, 1]) == [(0, 0), (1, 4), (5, 8), (7, 9)]
    assert vertices([1, 1, 1, 1], [1, 1, 1, 1], [4, 1, 2, 2]) == [(0, 0), (1, 4), (7, 9)]


@given(cases(max_cycles=20))
@settings(max_examples=400, deadline=None)
def test_the_funnel_takes_the_points_of_both_staircases_as_they_come(case: Case) -> None:
    """Includes repeated points, and limits that never bind."""
    (starts, ends), (floors, ceilings) = case.comp_before(), case.levels()
    points = np.stack([starts + 1j * floors, ends + 1j * ceilings], axis=1).ravel()[:-1]
    string = funnel(points, np.arange(len(points)) % 2 == 1)
    path, frontier = case.course(), Frontier.of(case.modes)
    steps = np.diff(string)
    assert string[0] == 0
    assert string[-1] == points[-1]
    assert np.all((steps.real >= 0) & (steps.imag >= 0))
    whole = frontier.cost(np.diff(path.comp), np.diff(path.comm)).sum()
    assert frontier.cost(steps.real, steps.imag).sum() == pytest.approx(whole, rel=1e-12)


def test_one_cycle_is_one_line() -> None:
    assert vertices([2], [5], [3]) == [(0, 0), (2, 3)]
    assert vertices([2], [5], [3], prefetch=1) == [(0, 0), (2, 3)]


def test_with_one_slot_comm_and_backward_take_turns() -> None:
    zigzag = [(0, 0), (1, 3), (3, 3), (4, 6), (6, 6), (7, 9)]
    assert vertices([1, 1, 1], [2, 2, 2], [3, 3, 3], prefetch=1) == zigzag
    path = course(forward=np.ones(3), backward=np.full(3, 2.0), comm=np.full(3, 3.0), prefetch=1)
    assert path.is_ceiling.tolist() == [False, False, True, False, True, False]


def test_a_full_buffer_bends_the_course() -> None:
    # The hull is the straight line to (5, 10), which would be at 4 when B_1 ends at w = 2: two slots hold Y_2 = 2 only.
    works = [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 8.0]
    assert vertices(*works) == [(0, 0), (5, 10)]
    assert vertices(*works, prefetch=2) == [(0, 0), (2, 2), (5, 10)]
    # The floor bends it back: Y_2 = 9 is due at w = 3, Y_3 = 10 at w = 5. Until w = 2 the buffer has room for Y_2 only.
    assert vertices([1, 1, 1], [1, 1, 1], [1, 8, 1], prefetch=2) == [(0, 0), (3, 9), (5, 10)]
    assert vertices([1, 1, 1], [1, 1, 1], [1, 8, 1], prefetch=1) == [(0, 0), (1, 1), (2, 1), (3, 9), (4, 9), (5, 10)]


def test_a_forward_of_no_work_makes_the_course_vertical() -> None:
    assert vertices([0, 1], [1, 1], [2, 2]) == [(0, 0), (0, 2), (2, 4)]
    # B_1 ends at w = 2 with one slot, and B_2 starts there.
    assert vertices([1, 0], [1, 1], [2, 3], prefetch=1) == [(0, 0), (1, 2), (2, 2), (2, 5)]


def test_tasks_of_no_work_leave_no_vertex() -> None:
    assert vertices([1, 0, 1], [1, 0, 1], [2, 0, 0]) == [(0, 0), (1, 2), (3, 2)]
    assert vertices([1, 0, 0], [0, 0, 0], [1, 1, 1], prefetch=1) == [(0, 0), (1, 1), (1, 3)]
    assert vertices([1, 1], [1, 1], [0, 0]) == [(0, 0), (3, 0)]
    assert vertices([0, 0], [0, 1], [1, 1]) == [(0, 0), (0, 2)]
    assert vertices([0, 0], [0, 1], [0, 0]) == [(0, 0)]
    assert vertices([0, 0, 0], [0, 0, 0], [0, 0, 0], prefetch=2) == [(0, 0)]


@pytest.mark.parametrize("prefetch", [None, 2, 3])
def test_equal_cycles_make_one_straight_line_after_the_first_forward(prefetch: int | None) -> None:
    cycles = 100_000
    path = course(forward=np.full(cycles, 0.1), backward=np.full(cycles, 0.3), comm=np.full(cycles, 0.7), prefetch=prefetch)
    assert path.comp.tolist() == pytest.approx([0, 0.1, 0.4 * cycles - 0.3], rel=1e-14)
    assert path.comm.tolist() == pytest.approx([0, 0.7, 0.7 * cycles], rel=1e-14)


def test_bends_within_rounding_are_kept_where_they_add_up_to_a_large_one() -> None:
    cycles = 200_000
    comm = np.linspace(1.0, 1.0 - 1e-11 * cycles, cycles)
    case = Case(modes=(), forward=np.zeros(cycles), backward=np.ones(cycles), comm=comm, prefetch=None)
    path, (starts, _), (floors, _) = case.course(), case.comp_before(), case.levels()
    assert 3 < len(path.comp) < cycles
    assert np.abs(heights(path, starts)[1] - floors).max() < 1e-14 * floors[-1]


@given(cases(), st.integers(0, 5))
def test_a_limit_of_all_cycles_is_none(case: Case, more: int) -> None:
    limited, unlimited = replace(case, prefetch=case.cycles + more), replace(case, prefetch=None)
    assert limited.course().comp.tolist() == unlimited.course().comp.tolist()
    assert limited.course().comm.tolist() == unlimited.course().comm.tolist()
    assert limited.lower_bound() == unlimited.lower_bound()


@given(cases(max_cycles=20))
def test_more_prefetch_never_hurts(case: Case) -> None:
    bounds = [replace(case, prefetch=prefetch).lower_bound() for prefetch in (*range(1, case.cycles + 1), None)]
    assert all(more <= less * (1 + 1e-12) for less, more in pairwise(bounds))


@given(cases(), st.integers(0, 2**32), st.sampled_from([(0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]))
def test_one_mode_more_never_hurts(case: Case, seed: int, kind: tuple[float, float]) -> None:
    generator = random.Random(seed)
    # The modes that Eq. 13 prescribes exist already: a first comm-only mode may be slower than the mode that it replaces.
    base = (*case.modes, *table_modes(generator, 1, is_monotone=True))
    extra = Mode(name="extra", comm_rate=kind[0] * positive(generator), comp_rate=kind[1] * positive(generator))
    assert replace(case, modes=(*base, extra)).lower_bound() <= replace(case, modes=base).lower_bound() * (1 + 1e-12)


@given(cases(), st.integers(0, 2**32))
def test_on_one_core_everything_takes_its_turn(case: Case, seed: int) -> None:
    modes = table_modes(random.Random(seed), 1, is_monotone=True)
    one_by_one = case.comm.sum() / modes[1].comm_rate + (case.forward.sum() + case.backward.sum()) / modes[0].comp_rate
    assert replace(case, modes=modes).lower_bound() == pytest.approx(one_by_one, rel=1e-12)


def test_the_lower_bound_of_a_case_done_by_hand() -> None:
    modes = (
        Mode(name="comp-only", comm_rate=0.0, comp_rate=4.0),
        Mode(name="split:1", comm_rate=2.0, comp_rate=3.0),
        Mode(name="comm-only", comm_rate=3.0, comp_rate=0.0),
    )
    forward, backward, comm = np.array([[1.0, 1.0], [5.0, 8.0], [3.0, 4.0]])
    # To (1, 3): a third of a second split, 7/9 s of comm. On to (7, 7): 2 s split. B_2: 2 s.
    bound = lower_bound(modes=modes, forward=forward, backward=backward, comm=comm)
    assert bound == pytest.approx(1 / 3 + 7 / 9 + 2 + 2, rel=1e-15)
    # One slot: B_1 alone takes 5/4 s, and F_2 goes with Comm_2 as F_1 did: a third of a second split, 10/9 s of comm.
    bound = lower_bound(modes=modes, forward=forward, backward=backward, comm=comm, prefetch=1)
    assert bound == pytest.approx(1 / 3 + 7 / 9 + 5 / 4 + 1 / 3 + 10 / 9 + 2, rel=1e-15)


def best_of_pairs(modes: Sequence[Mode], comp: float, comm: float) -> float:
    """The least time over all pairs of modes, without rounding: two modes are enough for two kinds of work."""
    ways = [(Fraction(mode.comm_rate), Fraction(mode.comp_rate)) for mode in modes]
    if all(comp_rate for _, comp_rate in ways):
        ways.append((max(comm_rate for comm_rate, _ in ways), Fraction(0)))
    ways += [(Fraction(0), comp_rate) for _, comp_rate in ways if comp_rate]
    times = []
    for (comm1, comp1), (comm2, comp2) in combinations(ways, 2):
        area = comp1 * comm2 - comp2 * comm1
        if area:
            seconds = (
                (Fraction(comp) * comm2 - comp2 * Fraction(comm)) / area,
                (comp1 * Fraction(comm) - Fraction(comp) * comm1) / area,
            )
            if min(seconds) >= 0:
                times.append(sum(seconds))
    return float(min(times))


@given(cases(), st.floats(0, 1))
@settings(max_examples=300)
def test_the_cost_is_that_of_the_best_two_modes(case: Case, share: float) -> None:
    frontier = Frontier.of(case.modes)
    assert frontier.cost(share, 1 - share) == pytest.approx(best_of_pairs(case.modes, share, 1 - share), rel=FEW_ROUNDINGS)


@given(cases())
def test_the_cost_of_arrays_is_that_of_each_of_their_numbers(case: Case) -> None:
    frontier = Frontier.of(case.modes)
    one_by_one = [frontier.cost(comp, comm) for comp, comm in zip(case.forward.tolist(), case.comm.tolist(), strict=True)]
    assert frontier.cost(case.forward, case.comm).tolist() == one_by_one


@given(cases(), st.floats(0, 100))
@settings(max_examples=300)
def test_the_two_modes_around_a_slope_make_it_at_the_least_cost(case: Case, slope: float) -> None:
    frontier = Frontier.of(case.modes)
    low, high = frontier.around(slope)
    if low is high:
        assert low in (frontier.modes[0], frontier.modes[-1]) or slope in frontier.slopes
        assert frontier.cost(low.comp_rate, low.comm_rate) == pytest.approx(1.0)
    else:
        # Seconds of `low` and `high` that add up to (1, slope). Exact, for modes that are nearly alike would cancel all digits.
        low_comp, low_comm, high_comp, high_comm, up = map(
            Fraction, (low.comp_rate, low.comm_rate, high.comp_rate, high.comm_rate, slope)
        )
        area = low_comp * high_comm - high_comp * low_comm
        seconds_low = (high_comm - up * high_comp) / area
        seconds_high = (up * low_comp - low_comm) / area
        assert min(seconds_low, seconds_high) >= 0
        assert float(seconds_low + seconds_high) == pytest.approx(frontier.cost(1.0, slope), rel=FEW_ROUNDINGS)


@given(cases())
def test_a_piece_of_the_price_ends_at_its_mode_and_begins_at_the_one_before(case: Case) -> None:
    frontier = Frontier.of(case.modes)
    has_comm_only = any(mode.comp_rate == 0 for mode in case.modes)
    assert len(frontier.prices) == len(frontier.modes) + (not has_comm_only)
    assert list(frontier.slopes) == sorted(set(frontier.slopes))
    assert has_comm_only == (frontier.slopes[-1] == math.inf)
    for index, (per_comp, per_comm) in enumerate(frontier.prices):
        for mode in frontier.modes[max(index - 1, 0) : index + 1]:
            assert per_comp * mode.comp_rate + per_comm * mode.comm_rate == pytest.approx(1.0, rel=FEW_ROUNDINGS)


def modes_of(*rates: tuple[float, float]) -> list[Mode]:
    return [Mode(name=f"{comm:g}|{comp:g}", comm_rate=comm, comp_rate=comp) for comm, comp in rates]


def test_modes_that_another_or_a_mixture_of_two_beats_are_dropped() -> None:
    # (2, 3) is better than (1, 1), and (1, 3.5) is half (0, 4) and half (2, 3).
    modes = modes_of((4, 0), (2, 3), (1, 1), (0, 4), (1, 3.5), (3, 0))
    frontier = Frontier.of(modes)
    assert [mode.name for mode in frontier.modes] == ["0|4", "2|3", "4|0"]
    assert frontier.slopes == (0, 2 / 3, math.inf)
    assert np.array(frontier.prices) == pytest.approx(np.array([(1 / 4, 0), (1 / 4, 1 / 8), (1 / 6, 1 / 4)]))


def test_a_mode_that_is_faster_at_both_is_used_with_comm_idle() -> None:
    frontier = Frontier.of(modes_of((0, 4), (2, 5), (4, 0)))
    assert [mode.name for mode in frontier.modes] == ["2|5", "4|0"]
    assert frontier.cost(10.0, 0.0) == frontier.cost(10.0, 4.0) == 2.0
    assert frontier.around(0.0) == (frontier.modes[0], frontier.modes[0])


def test_without_a_mode_for_comm_alone_comp_idles_in_the_one_with_the_fastest_comm() -> None:
    frontier = Frontier.of(modes_of((0, 4), (2, 3), (3, 1), (1, 0.1)))
    assert [mode.name for mode in frontier.modes] == ["0|4", "2|3", "3|1"]
    assert frontier.prices[-1] == pytest.approx((0, 1 / 3))
    assert frontier.cost(0.0, 6.0) == pytest.approx(2.0)
    assert frontier.around(math.inf) == (frontier.modes[-1], frontier.modes[-1])


def test_a_slow_mode_for_comm_alone_takes_what_is_left_of_comm() -> None:
    # Eq. 13: while comp is blocked comm has all cores, also where comm would be faster in a split.
    frontier = Frontier.of(modes_of((0, 1), (2, 0.5), (1, 0)))
    assert frontier.cost(1.0, 4.0) == pytest.approx(2.0)
    assert frontier.cost(1.0, 10.0) == pytest.approx(8.0)


def test_around_names_the_neighbours_of_a_slope() -> None:
    frontier = Frontier.of(modes_of((0, 4), (2, 3), (3, 2), (4, 0)))
    a, b, c, d = frontier.modes
    slopes = (0.0, 0.5, 2 / 3, 1.0, 1.5, 4.0, math.inf)
    assert [frontier.around(slope) for slope in slopes] == [(a, a), (a, b), (b, b), (b, c), (c, c), (c, d), (d, d)]


@given(st.integers(0, 2**32), st.floats(0, 1))
@settings(max_examples=300)
def test_rates_that_differ_by_rounding_do_no_harm(seed: int, share: float) -> None:
    """Rates on a coarse grid, each changed by a few units in the last place: many are collinear or equal."""
    generator = random.Random(seed)

    def rate() -> float:
        near = generator.randrange(1, 4) * generator.choice([1.0, 0.1, 1 / 3])
        return near * (1 + generator.randrange(-3, 4) * 2.0**-52)

    modes = modes_of(*((rate(), rate()) for _ in range(6)), (rate(), 0.0), (0.0, rate()))[: generator.randint(1, 8)]
    frontier = Frontier.of(modes)
    for comp, comm in ((share, 1 - share), (1.0, 0.0), (0.0, 1.0)):
        assert frontier.cost(comp, comm) == pytest.approx(best_of_pairs(modes, comp, comm), rel=1e-12)


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([(1.0, 0.0), (2.0, 0.0)], r"no mode does any comp work, so a run would never end; the modes are: 1\|0, 2\|0"),
        ([(0.0, 3.0)], r"no mode does any comm work, so a run would never end; the modes are: 0\|3"),
        ([], "no mode does any comp work, so a run would never end; the modes are: none"),
    ],
)
def test_modes_that_cannot_end_a_run_are_refused(rates: list[tuple[float, float]], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}$"):
        Frontier.of(modes_of(*rates))
    with pytest.raises(ValueError, match=f"^{words}$"):
        lower_bound(modes=modes_of(*rates), forward=np.ones(1), backward=np.ones(1), comm=np.ones(1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prefetch": 0}, "the prefetch limit is 0; it must be at least 1, or comm could not receive a batch"),
        ({"forward": [1.0, -2.0]}, "the forward work of cycle 2 is -2; it must be finite and not negative"),
        ({"comm": [math.nan, 1.0]}, "the comm work of cycle 1 is nan; it must be finite and not negative"),
        ({"backward": [math.inf, 1.0]}, "the backward work of cycle 1 is inf; it must be finite and not negative"),
        ({"comm": [1.0]}, r"forward \(2,\), backward \(2,\), comm \(1,\); each task needs one number per cycle"),
        ({"forward": [], "backward": [], "comm": []}, r"comm \(0,\); each task needs one number per cycle, for at least one cycle"),
        ({"forward": [[1.0], [1.0]]}, r"forward \(2, 1\), backward"),
    ],
)
def test_works_and_limits_that_cannot_be_are_refused(changes: dict[str, object], words: str) -> None:
    given_works = {"forward": [1.0, 1.0], "backward": [1.0, 1.0], "comm": [1.0, 1.0]} | changes
    prefetch = given_works.pop("prefetch", None)
    arrays = {task: np.array(work, dtype=np.float64) for task, work in given_works.items()}
    with pytest.raises(ValueError, match=words):
        course(**arrays, prefetch=prefetch)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefetch", [None, 1, 2, 8])
def test_a_hundred_thousand_cycles_add_up(prefetch: int | None) -> None:
    """The cost of all segments, summed exactly, is the cost of the whole."""
    rng = np.random.default_rng(7)
    forward, backward, comm = rng.uniform(0.5, 1.5, (3, 100_000))
    case = Case(modes=cost_modes(random.Random(7), 8), forward=forward, backward=backward, comm=comm, prefetch=prefetch)
    path, frontier = case.course(), Frontier.of(case.modes)
    steps = zip(np.diff(path.comp).tolist(), np.diff(path.comm).tolist(), strict=True)
    total = math.fsum(frontier.cost(comp, comm) for comp, comm in steps) + backward[-1] / case.modes[0].comp_rate
    assert case.lower_bound() == pytest.approx(total, rel=1e-12)
