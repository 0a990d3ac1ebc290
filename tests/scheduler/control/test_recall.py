"""Saved state of controller and policies: round trip through JSON, and rejection of invalid data."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenarios import Scenario, scenarios
from virtual_time import drive

from scheduler.control.controller import Controller
from scheduler.model.cost import RateTable, Workload
from scheduler.model.scenario import Profile
from scheduler.model.state import Allocation, Started
from scheduler.policies.registry import POLICIES, make_policy
from scheduler.policies.simple import Random
from scheduler.policies.view import View

EVERY_NAME = [kind.names(4)[0] for kind in POLICIES.values()]


def controller(name: str, scenario: Scenario, *, is_profiled: bool = False, done: int = 0, seed: int = 0) -> Controller:
    profile = scenario.profile if is_profiled else None
    return Controller(
        policy=make_policy(name, num_cores=scenario.num_cores, seed=seed, profile=profile),
        cycles=scenario.cycles,
        num_cores=scenario.num_cores,
        prefetch=scenario.prefetch,
        profile=profile,
        done=done,
    )


def saved(known: Controller) -> Any:
    """Return the saved state after a round trip through JSON."""
    return json.loads(json.dumps(known.to_json(), allow_nan=False))


@pytest.mark.parametrize("is_profiled", [True, False], ids=["profile", "no profile"])
@pytest.mark.parametrize("name", EVERY_NAME)
@given(scenario=scenarios())
@settings(max_examples=15, deadline=None)
def test_saved_state_is_restored(name: str, is_profiled: bool, scenario: Scenario) -> None:
    first = controller(name, scenario, is_profiled=is_profiled)
    drive(first, scenario.rates, scenario.work)
    memory = saved(first)
    second = controller(name, scenario, is_profiled=is_profiled)
    second.recall(copy.deepcopy(memory), "here")
    assert saved(second) == memory


@pytest.mark.parametrize("name", EVERY_NAME)
@given(scenario=scenarios(), part=st.floats(0, 0.99))
@settings(max_examples=15, deadline=None)
def test_a_run_that_goes_on_begins_where_it_was(name: str, scenario: Scenario, part: float) -> None:
    done = int(part * scenario.cycles)
    later = controller(name, scenario, done=done)
    decision = later.handle(Started(time=0.0))
    assert (decision.state.num_comm, decision.state.num_forward, decision.state.num_backward) == (done, done, done)


def test_random_draws_on_where_it_stopped() -> None:
    view = View(8, 10, None, 0, 0, 0, 1.0, 1.0, works=None, rates=None)
    whole, first, second = Random(3), Random(3), Random(99)
    expected = [whole.choose(view) for _ in range(40)]
    drawn = [first.choose(view) for _ in range(15)]
    second.recall(json.loads(json.dumps(first.to_json())), "here")
    assert drawn + [second.choose(view) for _ in range(25)] == expected
    assert len(set(expected)) > 1


def learnt(name: str) -> tuple[Controller, Any, Scenario]:
    rates = RateTable(comm=(0.0, 3.0, 5.0, 6.0, 6.5), comp=(9.0, 7.5, 5.5, 3.0, 0.0))
    work = Workload(forward=1.0, backward=2.0, comm=1.5)
    scenario = Scenario(cycles=150, prefetch=4, profile=Profile(cores=4, workload=work, rates=rates))
    known = controller(name, scenario)
    drive(known, scenario.rates, scenario.work)
    return known, saved(known), scenario


def test_another_policy_takes_the_rates_and_leaves_the_rest() -> None:
    _, memory, scenario = learnt("dynamic")
    assert memory["estimates"] is not None
    other = controller("dynamic", scenario)
    other.recall(memory | {"policy": "random", "learnt": {}}, "here")
    assert saved(other)["estimates"] == memory["estimates"]


def test_a_policy_that_learns_no_rates_passes_them_on() -> None:
    _, memory, scenario = learnt("dynamic")
    between = controller("static:1", scenario)
    between.recall(memory, "here")
    later = controller("dynamic", scenario)
    later.recall(saved(between), "here")
    assert saved(later)["estimates"] == memory["estimates"]
    unlearnt = saved(controller("dynamic", scenario))
    fresh = controller("dynamic", scenario)
    fresh.recall(saved(controller("static:1", scenario)), "here")
    assert saved(fresh) == unlearnt


def test_the_rates_of_an_earlier_version_are_read() -> None:
    """It wrote "2 own", and had other rates for cores that both sides used, which no policy needs any more."""
    _, memory, scenario = learnt("dynamic")
    former = copy.deepcopy(memory)
    for side in ("comm", "comp"):
        for name in ("rates", "weights", "num_tasks"):
            values = former["estimates"][side][name]
            former["estimates"][side][name] = {f"{cores} own": value for cores, value in values.items()} | {"4 shared": 1.0}
        recent = [
            [task, {f"{cores} own": s for cores, s in seconds.items()}] for task, seconds in memory["estimates"][side]["recent"]
        ]
        former["estimates"][side]["recent"] = [*recent[1:], ["forward", {"4 unpinned": 1.0, "4 own": 1.0}]]
    former["estimates"]["busy_s"] = 0.1
    other = controller("dynamic", scenario)
    other.recall(former, "here")
    found = saved(other)["estimates"]
    assert found["comp"]["rates"] == memory["estimates"]["comp"]["rates"]
    assert found["comm"]["recent"] == memory["estimates"]["comm"]["recent"][1:]


def test_state_learned_on_other_cores_is_ignored() -> None:
    _, memory, scenario = learnt("dynamic")
    other = controller("dynamic", scenario)
    before = saved(other)
    other.recall(memory | {"num_cores": memory["num_cores"] + 1}, "here")
    assert saved(other) == before


@pytest.mark.parametrize("name", ["adaptive", "random", "dynamic"])
def test_damaged_state_raises_value_error_and_nothing_else(name: str) -> None:
    _, memory, scenario = learnt(name)
    generator = random.Random(7)
    num_refused = 0
    for _ in range(400):
        other = controller(name, scenario)
        damaged = damage(copy.deepcopy(memory), generator)
        refusal = refusal_of(other, damaged)
        if refusal is None:
            decision = other.handle(Started(time=0.0))  # what is believed can be worked with
            assert isinstance(decision.allocation, Allocation)
        else:
            assert refusal.startswith("the checkpoint")
            num_refused += 1
    assert num_refused > 50


def refusal_of(known: Controller, memory: Any) -> str | None:
    try:
        known.recall(memory, "the checkpoint")
    except ValueError as error:
        return str(error)
    return None


def damage(memory: Any, generator: random.Random) -> Any:
    """Return a copy with one value replaced."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in entries:
            places.append((value, key))
            walk(inner)

    walk(memory)
    holder, key = generator.choice(places)
    holder[key] = generator.choice([None, -1, "x", [], {}, 1e300, True, 0, [1, 2], {"1 own": 1.0}])
    return memory
