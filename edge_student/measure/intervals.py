"""From wall-clocks to statements: medians, their intervals, paired ratios to the baseline, and a verdict.

Run r of every policy has the same seed and the same batches and stands next to the others in time, so ratios are taken within a
repeat: what slows the whole machine for a while cancels out.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Two of the values between which the true median lies with probability `level`."""

    low: float
    high: float
    level: float


def median_interval(values: Sequence[float]) -> Interval | None:
    """The narrowest interval between two of the values, as many from below as from above, that covers the median with 95 %.

    Its level is exact for values drawn independently from any one continuous distribution (the sign test's interval): the median
    lies outside when fewer than k of n values fall on one side of it, as in n throws of a coin. Where even the smallest and the
    largest value reach no 95 %, they are the interval, and `level` says what they reach. None for fewer than two values.
    """
    num_values = len(values)
    if num_values < 2:
        return None
    ordered = sorted(values)
    rank = max((rank for rank in range(1, num_values // 2 + 1) if _level(num_values, rank) >= LEVEL), default=1)
    return Interval(low=float(ordered[rank - 1]), high=float(ordered[-rank]), level=_level(num_values, rank))


def _level(num_values: int, rank: int) -> float:
    """Probability that the median lies between the rank-th smallest and the rank-th largest of so many values."""
    return 1.0 - 2.0 * sum(math.comb(num_values, count) for count in range(rank)) / 2.0**num_values


def shown_level(levels: Iterable[float | None]) -> str:
    """The levels of some intervals in parentheses, to be put after the word; nothing where none is known."""
    known = sorted({level for level in levels if level is not None})
    return f" ({' or '.join(f'{level:.1%}' for level in known)})" if known else ""
