"""Numbers in tables and pages: digits, units and missing values."""

import math

import pytest

from edge_student.measure.number_format import (
    format_duration,
    format_interval,
    format_number,
    format_percent,
    format_rate,
    format_rate_interval,
)


@pytest.mark.parametrize(("value", "text"), [(1.0, "1.000"), (0.96875, "0.969"), (None, "-"), (math.nan, "-"), (math.inf, "-")])
def test_a_number_has_three_decimals(value: float | None, text: str) -> None:
    assert format_number(value) == text


def test_a_fraction_is_shown_as_a_percentage() -> None:
    assert (format_percent(0.96875), format_percent(None)) == ("96.9%", "-")


@pytest.mark.parametrize(("seconds", "text"), [(0.0125, "12.5 ms"), (1.0, "1 s"), (12.345, "12.3 s")])
def test_a_duration_below_one_second_is_in_milliseconds(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0.0, "-"), (0.12345, "0.123"), (999.0, "999"), (12345.6, "12346")])
def test_a_rate_has_three_digits_or_all_before_the_point(rate: float, text: str) -> None:
    assert format_rate(rate) == text


def test_an_interval_has_both_bounds() -> None:
    assert (format_interval((0.9, 1.1)), format_interval(None)) == ("0.900 .. 1.100", "-")


def test_an_interval_of_rates_is_scaled_to_the_unit() -> None:
    assert format_rate_interval((2.0, 4.0), unit_s=0.5) == "4 .. 8"
    assert format_rate_interval(None, unit_s=0.5) == format_rate_interval((0.0, 0.0), unit_s=0.5) == "-"
