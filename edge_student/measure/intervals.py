"""Computes confidence intervals of medians."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Two of the values; the true median lies between them with probability `level`."""

    low: float
    high: float
    level: float


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the narrowest symmetric interval between two order statistics that covers the median with at least 95 %.

    This is the sign test's interval. Its level is exact for independent values of any one continuous distribution: the median is
    outside if fewer than k of n values fall on one side of it, as in n tosses of a coin. If even the smallest and the largest value
    do not reach 95 %, they are the interval, and `level` is their actual level. Returns None for fewer than two values.
    """
    num_values = len(values)
    if num_values < 2:
        return None
    ordered = sorted(values)
    rank = max((rank for rank in range(1, num_values // 2 + 1) if _level(num_values, rank) >= LEVEL), default=1)
    return Interval(low=float(ordered[rank - 1]), high=float(ordered[-rank]), level=_level(num_values, rank))


def _level(num_values: int, rank: int) -> float:
    """Return the probability that the median lies between the rank-th smallest and the rank-th largest of `num_values` values."""
    return 1.0 - 2.0 * sum(math.comb(num_values, count) for count in range(rank)) / 2.0**num_values


def shown_level(levels: Iterable[float | None]) -> str:
    """Return the distinct levels in parentheses with a leading space, to append to a label; empty if no level is known."""
    known = sorted({level for level in levels if level is not None})
    return f" ({' or '.join(f'{level:.1%}' for level in known)})" if known else ""
