"""The cost model of equations 3 and 4, and tables of measured rates."""

import math

import pytest

from scheduler.model.cost import CostModel, Mode, RateTable, Workload

MODEL = CostModel(a1=2.0, a2=0.2, b1=0.5, b2=1.0, b3=math.e)


def test_comp_time_is_equation_3() -> None:
    assert MODEL.comp_time(3.0, 0) == 6.0
    assert MODEL.comp_time(3.0, 2) == pytest.approx(10.0, rel=1e-15)  # 2 * 3 / (1 - 0.4)


def test_comm_time_is_equation_4() -> None:
    assert MODEL.comm_time(3.0, 1) == pytest.approx(2.0, rel=1e-15)  # 3 / (0.5 + ln e)
    assert MODEL.comm_time(3.0, 2) == pytest.approx(3.0 / (1.0 + 1.0 + math.log(2.0)), rel=1e-15)


def test_c_counts_comm_cores_in_both() -> None:
    """Algorithm 2 as printed passes the comp cores to g, so comm would become slower with more cores."""
    assert MODEL.comm_time(1.0, 3) < MODEL.comm_time(1.0, 1)
    assert MODEL.comp_time(1.0, 3) > MODEL.comp_time(1.0, 1)


def test_rates_are_zero_for_a_side_without_cores() -> None:
    table = MODEL.rates(4)
    assert table.num_cores == 4
    assert table.comm[0] == 0.0
    assert table.comp[4] == 0.0  # the formula gives 0.1
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


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_work_is_positive_and_finite(bad: float) -> None:
    with pytest.raises(ValueError, match=r"the work 'backward' is .* must be positive and finite"):
        Workload(forward=1.0, backward=bad, comm=1.0)


def test_a_table_lists_its_modes_and_the_shared_ones_last() -> None:
    first = Mode(name="compute-first", comm_rate=1.0, comp_rate=5.0)
    table = RateTable(comm=(0.0, 1.0, 2.0), comp=(20.0, 10.0, 0.0), shared=(first,))
    assert [mode.name for mode in table.modes()] == ["comp-only", "split:1", "comm-only", "compute-first"]
    assert table.modes()[1] == Mode(name="split:1", comm_rate=1.0, comp_rate=10.0)
    assert table.modes()[3] == first


@pytest.mark.parametrize(("comm", "comp"), [(0.0, 0.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_mode_runs_at_a_rate(comm: float, comp: float) -> None:
    with pytest.raises(ValueError, match="mode 'odd'"):
        Mode(name="odd", comm_rate=comm, comp_rate=comp)
