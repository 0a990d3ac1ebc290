"""Confidence intervals of a median: exact bounds and levels from order statistics."""

import numpy as np
import pytest

from edge_student.measure.intervals import median_interval


@pytest.mark.parametrize(
    ("num_values", "rank", "level"),
    [(2, 1, 0.5), (3, 1, 0.75), (4, 1, 0.875), (5, 1, 0.9375), (6, 1, 0.96875), (8, 1, 1 - 2 / 256), (9, 2, 1 - 20 / 512)],
)
def test_an_interval_has_two_of_the_values_as_bounds_and_its_level(num_values: int, rank: int, level: float) -> None:
    interval = median_interval([float(value) for value in range(num_values, 0, -1)])
    assert interval is not None
    assert (interval.low, interval.high, interval.level) == (rank, num_values + 1 - rank, level)


def test_one_value_has_no_interval() -> None:
    assert median_interval([]) is median_interval([1.0]) is None


@pytest.mark.parametrize("num_values", [2, 5, 6, 10, 20])
def test_an_interval_covers_the_median_as_often_as_its_level(num_values: int) -> None:
    """Draw ratios with true median 1, skewed and with heavy tails, as other programs on a machine cause them."""
    rng = np.random.default_rng(12)
    ratios = np.exp(0.1 * rng.standard_t(df=2, size=(10_000, num_values)))
    intervals = [median_interval(row) for row in ratios.tolist()]
    covered = sum(interval.low <= 1 <= interval.high for interval in intervals if interval is not None)
    assert intervals[0] is not None
    assert covered / len(intervals) == pytest.approx(intervals[0].level, abs=0.01)
