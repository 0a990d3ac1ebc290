"""The plan of Eq. 13-15, compared with examples by hand and with an independent implementation of the same rule."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import Scenario, positive, rounding_s, scenarios

from scheduler.model.cost import RateTable
from scheduler.policies.dynamic import Plan, solve

Label = tuple[Fraction, Fraction, Fraction]


def linear(num_cores: int) -> RateTable:
    """Rates with which every core does 1 unit of work per second for either side."""
    splits = range(num_cores + 1)
    return RateTable(comm=tuple(float(c) for c in splits), comp=tuple(float(num_cores - c) for c in splits))


def moves_of(plan: Plan) -> list[tuple[int, int, int, float]]:
    return [(move.num_comm, move.num_comp, move.comm_cores, move.duration) for move in plan.moves]


def test_tasks_that_end_together_are_one_event() -> None:
    plan = solve(comm=[1.0], comp=[1.0, 1.0], rates=linear(2))
    assert moves_of(plan) == [(0, 0, 1, 1.0), (1, 1, 0, 0.5)]
    assert plan.makespan == 1.5
    assert plan.moves[0].comm_cores == 1


def test_all_cores_go_to_the_side_that_the_other_waits_for() -> None:
    """F takes 1 s next to one comm core, which leaves 3 of the 4 units of comm; two cores do them in 1.5 s."""
    plan = solve(comm=[4.0], comp=[1.0, 1.0], rates=linear(2))
    assert moves_of(plan) == [(0, 0, 1, 1.0), (0, 1, 2, 1.5), (1, 1, 0, 0.5)]
    assert plan.makespan == 3.0


def test_a_full_buffer_gives_all_cores_to_comp() -> None:
    """One slot: after Comm_1 (1 s) comm waits until B_1 is done (4 + 4 - 1 = 7 units on two cores)."""
    plan = solve(comm=[1.0, 1.0], comp=[4.0, 4.0, 4.0, 4.0], rates=linear(2), prefetch=1)
    assert moves_of(plan)[:3] == [(0, 0, 1, 1.0), (1, 0, 0, 1.5), (1, 1, 0, 2.0)]
    assert moves_of(plan)[3:] == [(1, 2, 1, 1.0), (2, 2, 0, 1.5), (2, 3, 0, 2.0)]
    assert plan.makespan == 9.0


def test_one_label_per_state_drops_the_slower_path_with_less_remaining_work() -> None:
    """An example of the paper's approximation: the earliest end of F gives the label of the state, for any remaining comm work.

    c=1: F ends at 0.2, comm has 2.8 left, 3 cores: 14/15 s more, B 1/10:  T = 0.2 + 14/15 + 0.1
    c=2: F ends at 0.25, comm has 0.5 left:                                T = 0.25 + 1/6 + 0.1
    """
    rates = RateTable(comm=(0.0, 1.0, 10.0, 3.0), comp=(10.0, 5.0, 4.0, 0.0))
    plan = solve(comm=[3.0], comp=[1.0, 1.0], rates=rates)
    assert plan.moves[0].comm_cores == 1
    assert plan.makespan == pytest.approx(0.2 + 14 / 15 + 0.1, rel=1e-14)
    assert best_of_all_paths([3.0], [1.0, 1.0], rates, None) == pytest.approx(0.25 + 1 / 6 + 0.1, rel=1e-14)


def test_a_plan_can_start_in_the_middle_of_both_tasks() -> None:
    """Comm_1 and F_1 are done, and half of B_1 and a quarter of Comm_2."""
    plan = solve(comm=[math.nan, 0.75], comp=[math.nan, 0.5, 1.0, 1.0], rates=linear(2), num_comm=1, num_comp=1)
    assert moves_of(plan) == [(1, 1, 1, 0.5), (1, 2, 1, 0.25), (2, 2, 0, 0.375), (2, 3, 0, 0.5)]
    assert plan.makespan == 1.625


def test_a_residual_of_rounding_is_no_residual() -> None:
    """0.3 / 0.9 s at rate 0.3 leave 1.4e-17 of 0.1 in floats. Both tasks must still end in one event."""
    rates = RateTable(comm=(0.0, 0.3, 1.0), comp=(1.0, 0.9, 0.0))
    assert 0.1 - 0.3 * (0.3 / 0.9) > 0
    plan = solve(comm=[0.1], comp=[0.3, 1.0], rates=rates)
    assert [(move.num_comm, move.num_comp) for move in plan.moves] == [(0, 0), (1, 1)]


def advance(label: Label, move: tuple[Fraction, Fraction], done: tuple[int, int]) -> tuple[tuple[int, int], Label]:
    """Advance to the next completion, in exact fractions. A task that ends keeps 0 remaining work here."""
    (time, comm, comp), (comm_rate, comp_rate), (i, q) = label, move, done
    waits = [left / rate for left, rate in ((comm, comm_rate), (comp, comp_rate)) if rate]
    delta = min(waits)
    comm, comp = comm - comm_rate * delta, comp - comp_rate * delta
    return (i + (comm == 0 and comm_rate > 0), q + (comp == 0 and comp_rate > 0)), (time + delta, comm, comp)


def allowed(i: int, q: int, cycles: int, num_cores: int, prefetch: int | None) -> list[int]:
    """The moves of Eq. 13, from the counts of Forward and Backward."""
    forward, backward = q - q // 2, q // 2
    if i == cycles:
        return [0]
    if i < forward:
        return [num_cores]
    if prefetch is not None and i + 1 > backward + prefetch:
        return [0]
    return list(range(1, num_cores))


def label_by_recursion(comm: list[float], comp: list[float], rates: RateTable, prefetch: int | None) -> Fraction:
    """The one-label rule, backwards and in exact fractions: a state has the best label that its predecessors lead to."""
    cycles = len(comm)
    works = [Fraction(work) for work in comm] + [Fraction(0)], [Fraction(work) for work in comp] + [Fraction(0)]

    @cache
    def label(i: int, q: int) -> Label | None:
        if (i, q) == (0, 0):
            return Fraction(0), works[0][0], works[1][0]
        found = []
        for before in ((i - 1, q), (i, q - 1), (i - 1, q - 1)):
            known = label(*before) if min(before) >= 0 else None
            if known is None:
                continue
            for c in allowed(*before, cycles, rates.num_cores, prefetch):
                move = Fraction(rates.comm[c]), Fraction(rates.comp[c])
                reached, (time, comm_left, comp_left) = advance(known, move, before)
                if reached == (i, q):
                    fresh = works[0][i] if i > before[0] else comm_left, works[1][q] if q > before[1] else comp_left
                    found.append((time, *fresh))
        return min(found, default=None)

    end = label(cycles, 2 * cycles)
    assert end is not None
    return end[0]


def best_of_all_paths(comm: list[float], comp: list[float], rates: RateTable, prefetch: int | None) -> float:
    """The least time over every sequence of splits, without dropping labels."""
    cycles = len(comm)

    def best(i: int, q: int, comm_left: float, comp_left: float) -> float:
        if (i, q) == (cycles, 2 * cycles):
            return 0.0
        times = []
        for c in allowed(i, q, cycles, rates.num_cores, prefetch):
            comm_time = comm_left / rates.comm[c] if rates.comm[c] else math.inf
            comp_time = comp_left / rates.comp[c] if rates.comp[c] else math.inf
            if comm_time <= comp_time:
                rest = (i + 1, q, [*comm, 0.0][i + 1], comp_left - comm_time * rates.comp[c])
            else:
                rest = (i, q + 1, comm_left - comp_time * rates.comm[c], [*comp, 0.0][q + 1])
            times.append(min(comm_time, comp_time) + best(*rest))
        return min(times)

    return best(0, 0, comm[0], comp[0])


@st.composite
def tiny_plans(draw: st.DrawFn, max_cycles: int, max_cores: int) -> tuple[list[float], list[float], Scenario]:
    """Works that differ between tasks, which only simulated runs have."""
    scenario = draw(scenarios(max_cores=max_cores, max_cycles=max_cycles))
    generator = random.Random(draw(st.integers(0, 2**32)))
    comm = [positive(generator) for _ in range(scenario.cycles)]
    return comm, [positive(generator) for _ in range(2 * scenario.cycles)], scenario


@given(tiny_plans(max_cycles=5, max_cores=6))
@settings(max_examples=150, deadline=None)
def test_the_plan_equals_the_rule_applied_backwards(plan: tuple[list[float], list[float], Scenario]) -> None:
    comm, comp, scenario = plan
    expected = label_by_recursion(comm, comp, scenario.rates, scenario.prefetch)
    solved = solve(comm=comm, comp=comp, rates=scenario.rates, prefetch=scenario.prefetch)
    assert abs(solved.makespan - float(expected)) <= rounding_s(scenario.rates, comm=sum(comm), comp=sum(comp))


@given(tiny_plans(max_cycles=3, max_cores=4))
@settings(max_examples=100, deadline=None)
def test_no_plan_is_faster_than_the_best_sequence_of_splits(plan: tuple[list[float], list[float], Scenario]) -> None:
    comm, comp, scenario = plan
    solved = solve(comm=comm, comp=comp, rates=scenario.rates, prefetch=scenario.prefetch)
    best = best_of_all_paths(comm, comp, scenario.rates, scenario.prefetch)
    assert solved.makespan >= best - rounding_s(scenario.rates, comm=sum(comm), comp=sum(comp))


@given(tiny_plans(max_cycles=12, max_cores=12))
@settings(max_examples=100, deadline=None)
def test_the_moves_of_a_plan_take_its_makespan(plan: tuple[list[float], list[float], Scenario]) -> None:
    comm, comp, scenario = plan
    solved = solve(comm=comm, comp=comp, rates=scenario.rates, prefetch=scenario.prefetch)
    comm_done = comp_done = 0.0
    for move in solved.moves:
        i, q, c = move.num_comm, move.num_comp, move.comm_cores
        assert c in allowed(i, q, scenario.cycles, scenario.num_cores, scenario.prefetch)
        assert comm_done == pytest.approx(sum(comm[:i]), rel=1e-9) or sum(comm[:i]) < comm_done < sum(comm[: i + 1])
        assert comp_done == pytest.approx(sum(comp[:q]), rel=1e-9) or sum(comp[:q]) < comp_done < sum(comp[: q + 1])
        comm_done += scenario.rates.comm[c] * move.duration
        comp_done += scenario.rates.comp[c] * move.duration
    assert comm_done == pytest.approx(sum(comm), rel=1e-9)
    assert comp_done == pytest.approx(sum(comp), rel=1e-9)
    assert solved.makespan == pytest.approx(sum(move.duration for move in solved.moves), rel=1e-9)
