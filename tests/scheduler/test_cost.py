import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cost import CostModel, Profile, RateTable, Workload

MODEL = CostModel(a1=2.0, a2=0.2, b1=0.5, b2=1.0, b3=math.e)


def test_comp_time_is_equation_3() -> None:
    assert MODEL.comp_time(3.0, 0) == 6.0
    assert MODEL.comp_time(3.0, 2) == pytest.approx(10.0, rel=1e-15)  # 2 * 3 / (1 - 0.4)


def test_comm_time_is_equation_4() -> None:
    assert MODEL.comm_time(3.0, 1) == pytest.approx(2.0, rel=1e-15)  # 3 / (0.5 + ln e)
    assert MODEL.comm_time(3.0, 2) == pytest.approx(3.0 / (1.0 + 1.0 + math.log(2.0)), rel=1e-15)


def test_c_counts_comm_cores_in_both() -> None:
    """Algorithm 2 as printed passes the comp cores to g; then comm would slow down as it gets more."""
    assert MODEL.comm_time(1.0, 3) < MODEL.comm_time(1.0, 1)
    assert MODEL.comp_time(1.0, 3) > MODEL.comp_time(1.0, 1)


def test_rates_are_zero_for_a_side_without_cores_whatever_the_formulas_say() -> None:
    table = MODEL.rates(4)
    assert table.num_cores == 4
    assert table.comm[0] == 0.0
    assert table.comp[4] == 0.0  # the formula has 0.1
    assert table.comp == pytest.approx((0.5, 0.4, 0.3, 0.2, 0.0), rel=1e-15)
    assert table.comm[1:] == pytest.approx([0.5 * c + 1 + math.log(c) for c in (1, 2, 3, 4)], rel=1e-15)


def test_without_a_logarithm_its_inner_constant_does_not_matter() -> None:
    model = CostModel(a1=1, a2=0.1, b1=2, b2=0, b3=0)
    assert model.rates(2).comm == (0.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"a2": 0.5}, r"the comp rate at c=2 comm cores of 4 is 0; it must be positive and finite"),
        ({"a2": 0.4}, r"the comp rate at c=3 comm cores of 4 is -0\.1"),
        ({"a1": 0.0}, r"the comp rate at c=0 comm cores of 4 is 0"),
        ({"a1": -1.0}, r"the comp rate at c=0 comm cores of 4 is -1"),
        ({"b3": 0.1}, r"the comm rate at c=1 comm cores of 4 is -1\.80259"),
        ({"b3": -1.0}, r"the comm rate at c=1 comm cores of 4 is nan"),
        ({"b1": -1.0}, r"the comm rate at c=1 comm cores of 4 is 0"),
        ({"b1": -0.9}, r"the comm rate at c=2 comm cores of 4 is -0\.106853"),
        ({"b1": -0.597}, r"the comm rate at c=4 comm cores of 4 is -0\.00170564"),
    ],
)
def test_parameters_without_a_positive_rate_are_refused_by_core_count(changes: dict[str, float], words: str) -> None:
    model = CostModel(**{"a1": 2.0, "a2": 0.2, "b1": 0.5, "b2": 1.0, "b3": math.e} | changes)
    with pytest.raises(ValueError, match=words):
        model.rates(4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_parameters_are_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"cost parameter b1 is .* must be finite"):
        CostModel(a1=1, a2=0.1, b1=bad, b2=1, b3=1)


def test_times_without_a_rate_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the comp rate at c=6 comm cores is -0\.1; it must be positive"):
        MODEL.comp_time(1.0, 6)
    with pytest.raises(ValueError, match="the comm rate at c=0 comm cores is 0; it must be positive"):
        MODEL.comm_time(1.0, 0)


@pytest.mark.parametrize(
    ("comm", "comp", "words"),
    [
        ((0.0, 1.0), (1.0, 0.5, 0.0), "same number of rates"),
        ((0.0,), (0.0,), "2 or more"),
        ((1.0, 1.0), (1.0, 0.0), "a side without cores has rate 0"),
        ((0.0, 1.0), (1.0, 1.0), "a side without cores has rate 0"),
        ((0.0, math.inf), (1.0, 0.0), "the comm rate at c=1 comm cores of 1 is inf"),
    ],
)
def test_a_table_of_rates_checks_itself(comm: tuple[float, ...], comp: tuple[float, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RateTable(comm=comm, comp=comp)


def test_a_smaller_device_keeps_each_sides_rate_by_its_own_cores() -> None:
    table = RateTable(comm=(0.0, 1.0, 2.0, 3.0), comp=(30.0, 20.0, 10.0, 0.0))
    assert table.resized(2) == RateTable(comm=(0.0, 1.0, 2.0), comp=(20.0, 10.0, 0.0))
    assert table.resized(1) == RateTable(comm=(0.0, 1.0), comp=(10.0, 0.0))
    assert table.resized(3) == table


def test_a_larger_device_is_believed_no_faster_than_what_was_measured() -> None:
    table = RateTable(comm=(0.0, 1.0, 2.0), comp=(20.0, 10.0, 0.0))
    assert table.resized(4) == RateTable(comm=(0.0, 1.0, 2.0, 2.0, 2.0), comp=(20.0, 20.0, 20.0, 10.0, 0.0))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_work_is_positive_and_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"the work 'backward' is .* must be positive and finite"):
        Workload(forward=1.0, backward=bad, comm=1.0)


def cost_profile(**changes: Any) -> dict[str, Any]:
    cost = {"a1": 2.0, "a2": 0.2, "b1": 0.5, "b2": 1.0, "b3": 3}
    return {"cores": 4, "forward": 1, "backward": 2.0, "comm": 1.5, "cost": cost} | changes


def modes_profile(*modes: tuple[str, float, float]) -> dict[str, Any]:
    rows = [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, comm, comp in modes]
    return {"cores": 2, "forward": 1.0, "backward": 2.0, "comm": 1.5, "modes": rows}


def test_a_profile_of_cost_parameters_gives_their_rates() -> None:
    profile = Profile.from_json(json.loads(json.dumps(cost_profile())))
    assert profile.workload == Workload(forward=1.0, backward=2.0, comm=1.5)
    assert profile.rates == CostModel(a1=2.0, a2=0.2, b1=0.5, b2=1.0, b3=3.0).rates(4)


def test_a_profile_of_modes_gives_them_in_the_order_of_comm_cores() -> None:
    profile = Profile.from_json(modes_profile(("comm-only", 5.0, 0.0), ("split:1", 3.0, 1.0), ("comp-only", 0, 2.0)))
    assert profile.rates == RateTable(comm=(0.0, 3.0, 5.0), comp=(2.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "profile: expected an object with cores, forward, backward, comm, cost; got list"),
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
        (cost_profile(cost=3), "profile 'cost': expected an object with a1, a2, b1, b2, b3; got int"),
        (cost_profile(cost={"a1": 1}), "profile 'cost': missing a2, b1, b2, b3"),
        (cost_profile(cores=6), "the comp rate at c=5 comm cores of 6 is 0"),
        (modes_profile(("split:2", 1, 1)), "mode 'split:2' is not one of comp-only, comm-only, split:1"),
        (modes_profile(("split:1", 1, 1), ("split:1", 1, 1)), "mode 'split:1' is given twice"),
        (modes_profile(("split:1", 1, 1)), "the modes lack comp-only, comm-only"),
        (
            modes_profile(("split:1", 1, 1), ("comp-only", 1, 1), ("comm-only", 1, 0)),
            "a side without cores has rate 0; got comm 1.0",
        ),
        (
            modes_profile(("split:1", 1, -1), ("comp-only", 0, 1), ("comm-only", 1, 0)),
            "the comp rate at c=1 comm cores of 2 is -1",
        ),
        (cost_profile() | {"modes": 3, "cost": 3}, "not both"),
        ({**modes_profile(), "modes": 3}, "'modes' is int; it must be a list"),
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
def test_no_profile_fails_in_another_way(data: Any) -> None:
    with pytest.raises(ValueError):
        Profile.from_json(data)


def test_a_profile_is_for_one_number_of_cores() -> None:
    profile = Profile.from_json(cost_profile())
    profile.check_cores(4)
    with pytest.raises(ValueError, match="the profile is of 4 cores, and this run has 3"):
        profile.check_cores(3)
