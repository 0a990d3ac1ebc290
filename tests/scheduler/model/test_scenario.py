"""Profiles and scenarios read from JSON: every error is one line that names the value and the rule."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.model.cost import CostModel, Mode, RateTable, Workload
from scheduler.model.scenario import Profile, Scenario


def cost_profile(**changes: Any) -> dict[str, Any]:
    cost = {"a1": 2.0, "a2": 0.2, "b1": 0.5, "b2": 1.0, "b3": 3}
    return {"cores": 4, "forward": 1, "backward": 2.0, "comm": 1.5, "cost": cost} | changes


def modes_profile(*modes: tuple[str, float, float]) -> dict[str, Any]:
    rows = [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, comm, comp in modes]
    return {"cores": 2, "forward": 1.0, "backward": 2.0, "comm": 1.5, "modes": rows}


def measured(**words: Any) -> dict[str, Any]:
    """A profile whose mode split:1 has measurement fields."""
    profile = modes_profile(("split:1", 3.0, 1.0), ("comp-only", 0, 2.0), ("comm-only", 5.0, 0.0))
    profile["modes"][0] |= words
    return profile


def test_a_profile_of_cost_parameters_gives_their_rates() -> None:
    profile = Profile.from_json(json.loads(json.dumps(cost_profile())))
    assert profile.workload == Workload(forward=1.0, backward=2.0, comm=1.5)
    assert profile.rates == CostModel(a1=2.0, a2=0.2, b1=0.5, b2=1.0, b3=3.0).rates(4)


def test_a_profile_of_modes_gives_them_in_the_order_of_comm_cores() -> None:
    profile = Profile.from_json(modes_profile(("comm-only", 5.0, 0.0), ("split:1", 3.0, 1.0), ("comp-only", 0, 2.0)))
    assert profile.rates == RateTable(comm=(0.0, 3.0, 5.0), comp=(2.0, 1.0, 0.0))


def test_a_profile_may_say_where_and_how_it_was_measured() -> None:
    plain = measured()
    told = measured(comm_interval=[2.5, 3.5], comp_interval=None, num_comm=7, num_comp=0, comm_cpu_share=0.4)
    told |= {"fingerprint": {"cpu": "any"}, "settings": {}, "samples": {}, "fit": {}, "software": {}, "command": [], "seconds": 60}
    assert Profile.from_json(told) == Profile.from_json(plain)
    assert Profile.from_json(measured(comm_cpu_share=None)) == Profile.from_json(plain)


def test_a_profile_may_have_the_one_shared_mode_that_a_live_run_has() -> None:
    modes = (("split:1", 3.0, 1.0), ("comm-only", 5.0, 0.0), ("compute-first", 0.0, 1.9), ("comp-only", 0, 2.0))
    assert Profile.from_json(modes_profile(*modes)).rates.shared == (Mode(name="compute-first", comm_rate=0.0, comp_rate=1.9),)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "profile: expected an object with cores, forward, backward, comm; got []"),
        ({k: v for k, v in cost_profile().items() if k != "comm"}, "profile: missing comm"),
        (cost_profile(cycles=3), "profile: unknown cycles; the keys are cores, forward"),
        (cost_profile(modes=[]), "give 'cost' or 'modes', not both"),
        (cost_profile(cores=True), "'cores' is True; it must be a whole number, at least 1"),
        (cost_profile(cores=0), "'cores' is 0; it must be a whole number, at least 1"),
        (cost_profile(cores=4.0), "'cores' is 4.0; it must be a whole number, at least 1"),
        (cost_profile(forward="1"), "'forward' is '1'; it must be a number"),
        (cost_profile(forward=math.nan), "'forward' is nan; it must be finite"),
        (cost_profile(forward=10**400), "'forward' is inf; it must be finite"),
        (cost_profile(forward=-1), "the work 'forward' is -1.0; it must be positive"),
        (cost_profile(cost=3), "profile 'cost': expected an object with a1, a2, b1, b2, b3; got 3"),
        (cost_profile(cost={"a1": 1}), "profile 'cost': missing a2, b1, b2, b3"),
        (cost_profile(cores=6), "the comp rate at c=5 comm cores of 6 is 0"),
        (modes_profile(("split:2", 1, 1)), "mode 'split:2' is no split of 2 cores; comm can have 1..1"),
        (modes_profile(("split:1", 1, 1), ("split:1", 1, 1)), "mode 'split:1' is given twice"),
        (
            modes_profile(("split:1", 1, 1), ("comp-only", 0, 1), ("comm-only", 1, 0), ("comm-first", 1, 1)),
            "mode 'comm-first' is not one of comp-only, split:1, comm-only, compute-first, which a live run can use",
        ),
        (measured(comm_interval=[2.0]), "mode 'split:1': 'comm_interval' is [2.0]; it must be [low, high] or null"),
        (measured(comm_interval={"low": 1}), "'comm_interval' is {'low': 1}; it must be [low, high] or null"),
        (measured(comp_interval=[2.0, 1.0]), "mode 'split:1': 'comp_interval' is [2.0, 1.0]; the lower end comes first"),
        (measured(comp_interval=[-1.0, 1.0]), "mode 'split:1': comp_interval[0] is -1; a rate cannot be negative"),
        (measured(comp_interval=[1.0, "2"]), "mode 'split:1': comp_interval[1] is '2'; it must be a number"),
        (measured(num_comm=1.5), "mode 'split:1': 'num_comm' is 1.5; it must be a whole number, at least 0"),
        (measured(num_comp=None), "mode 'split:1': 'num_comp' is None; it must be a whole number, at least 0"),
        (measured(comm_cpu_share=-0.1), "mode 'split:1': 'comm_cpu_share' is -0.1; a share cannot be negative"),
        (measured(colour="red"), "profile 'modes': unknown colour"),
        (modes_profile(("split:1", 1, 1)), "the modes lack comp-only, comm-only"),
        (
            modes_profile(("split:1", 1, 1), ("comp-only", 1, 1), ("comm-only", 1, 0)),
            "a side without cores has rate 0; got comm 1.0",
        ),
        (
            modes_profile(("split:1", 1, -1), ("comp-only", 0, 1), ("comm-only", 1, 0)),
            "its comp rate is -1; it must be finite and not negative",
        ),
        (cost_profile() | {"modes": 3, "cost": 3}, "not both"),
        ({**modes_profile(), "modes": 3}, "'modes' is 3; it must be a list"),
        ({**modes_profile(), "modes": [3]}, "profile 'modes': expected an object with name"),
    ],
)
def test_a_bad_profile_is_one_clear_error(data: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        Profile.from_json(data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["cores", "cost", "a1"]), inner),
        max_leaves=6,
    )
)
def test_invalid_profiles_never_raise_another_error(data: Any) -> None:
    with pytest.raises(ValueError):
        Profile.from_json(data)


def test_a_profile_is_for_one_number_of_cores() -> None:
    profile = Profile.from_json(cost_profile())
    profile.check_cores(4)
    with pytest.raises(ValueError, match="the profile is of 4 cores, and this run has 3"):
        profile.check_cores(3)


def a_scenario(**changes: Any) -> dict[str, Any]:
    return {**cost_profile(), "cycles": 3} | changes


def test_a_scenario_repeats_a_single_work_and_keeps_a_list() -> None:
    scenario = Scenario.from_text(json.dumps(a_scenario(backward=[1, 0, 2.5], prefetch=2)))
    assert (scenario.cores, scenario.cycles, scenario.prefetch) == (4, 3, 2)
    assert scenario.works.forward.tolist() == [1.0, 1.0, 1.0]
    assert scenario.works.backward.tolist() == [1.0, 0.0, 2.5]
    assert scenario.works.comm.dtype == np.float64
    assert scenario.cost == CostModel(a1=2.0, a2=0.2, b1=0.5, b2=1.0, b3=3.0)
    assert scenario.rates == scenario.cost.rates(4)
    with pytest.raises(ValueError, match="read-only"):
        scenario.works.comm[0] = 1.0


def test_a_scenario_of_measured_modes_may_share_cores() -> None:
    modes = [("split(1)", 3.0, 1.0), ("comm-only", 5.0, 0.0), ("compute-first", 1.0, 1.9), ("comp-only", 0, 2.0)]
    scenario = Scenario.from_json({**modes_profile(*modes), "cycles": 2})
    assert scenario.cost is None
    assert scenario.rates.comm == (0.0, 3.0, 5.0)
    assert scenario.rates.shared == (Mode(name="compute-first", comm_rate=1.0, comp_rate=1.9),)
    assert [mode.name for mode in scenario.modes] == ["comp-only", "split:1", "comm-only", "compute-first"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (a_scenario(cores=1), "scenario: 'cores' is 1; with one core there is nothing to split, use 2 or more cores"),
        (a_scenario(cores=10**9), "'cores' is 1000000000; it must be at most"),
        (a_scenario(cycles=0), "'cycles' is 0; it must be a whole number, at least 1"),
        (a_scenario(cycles=10**12), "'cycles' is 1000000000000; it must be at most"),
        (a_scenario(comm=-1), "scenario: 'comm' is -1; work cannot be negative"),
        (a_scenario(comm=[1, 2]), "'comm' lists 2 works for 3 cycles"),
        (a_scenario(comm=[1, -2, 3]), "scenario: comm[1] is -2; work cannot be negative"),
        (a_scenario(forward=[1, math.nan, 3]), "scenario: forward[1] is nan; it must be finite"),
        (a_scenario(forward=[1, "2", 3]), "scenario: forward[1] is '2'; it must be a number"),
        (a_scenario(forward=None), "'forward' is None; it must be a number"),
        (a_scenario(prefetch=0), "'prefetch' is 0; it must be a whole number, at least 1"),
        (a_scenario(prefetch=1.5), "'prefetch' is 1.5; it must be a whole number"),
        (a_scenario(colour="red"), "scenario: unknown colour; the keys are cores, cycles, forward"),
        ({k: v for k, v in a_scenario().items() if k != "cost"}, "scenario: give 'cost' or 'modes'"),
        (a_scenario(cost=cost_profile()["cost"] | {"a2": math.nan}), "scenario 'cost': 'a2' is nan; it must be finite"),
        (a_scenario(cost=cost_profile()["cost"] | {"a2": 0.5}), "the comp rate at c=2 comm cores of 4 is 0"),
        (a_scenario(cost=cost_profile()["cost"] | {"b3": -1}), "the comm rate at c=1 comm cores of 4 is nan"),
        ({**modes_profile(("", 1, 1)), "cycles": 1}, "needs a name"),
        ({**modes_profile(("fast", 1, 1), ("fast", 1, 1)), "cycles": 1}, "mode 'fast' is given twice"),
        ({**modes_profile(("fast", 0, 0)), "cycles": 1}, "both rates are 0"),
    ],
)
def test_a_bad_scenario_is_one_clear_error(data: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        Scenario.from_json(data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "scenario: this is not JSON"),
        ("{", "scenario: this is not JSON"),
        ('{"cores": 2, "cores": 3}', "scenario: the key 'cores' is given twice"),
        ("[" * 100_000, "scenario: this JSON is nested too deeply"),
        ("null", "scenario: expected an object with cores"),
    ],
)
def test_broken_json_is_one_clear_error(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Scenario.from_text(text)
