"""From wall-clocks to statements: medians, their intervals, paired ratios to the baseline, and a verdict.

Run r of every policy has the same seed and the same batches and stands next to the others in time, so ratios are taken within a
repeat: what slows the whole machine for a while cancels out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

BASELINE = "os-default"
MIN_REPEATS_FOR_VERDICT = 5
LEVEL = 0.95
_NUM_RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Two of the values between which the true median lies with probability `level`."""

    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the valid runs of one policy say. Seconds; intervals are None below two runs.

    Intervals are of 95 % where so many runs allow one; the levels say what they are: 93.75 % at five runs.
    """

    policy: str
    num_runs: int
    median_s: float | None
    ci95: tuple[float, float] | None
    ci_level: float | None
    ratio_vs_os_default: float | None
    ratio_ci95: tuple[float, float] | None
    ratio_ci_level: float | None
    predicted_s: float | None
    verdict: str


def summarize(
    runs: Sequence[dict[str, Any]], policies: Sequence[str], predictions: Mapping[str, float | None] | None = None
) -> list[Summary]:
    """One Summary per policy, in the order given, from the runs marked valid; `predictions` are seconds of the model."""
    seconds = {
        policy: {run["repeat"]: float(run["wall_clock_s"]) for run in runs if run["policy"] == policy and run["valid"]}
        for policy in {*policies, BASELINE}
    }
    predicted = predictions or {}
    return [_summary(policy, seconds[policy], seconds[BASELINE], predicted.get(policy)) for policy in policies]


def _summary(policy: str, seconds: dict[int, float], baseline: dict[int, float], predicted_s: float | None) -> Summary:
    common = sorted(seconds.keys() & baseline.keys())
    ratios = [seconds[repeat] / baseline[repeat] for repeat in common]
    interval = median_interval(list(seconds.values()))
    ratio_interval = None if policy == BASELINE else median_interval(ratios)
    return Summary(
        policy=policy,
        num_runs=len(seconds),
        median_s=_median(list(seconds.values())),
        ci95=None if interval is None else (interval.low, interval.high),
        ci_level=None if interval is None else interval.level,
        ratio_vs_os_default=_median(ratios),
        ratio_ci95=None if ratio_interval is None else (ratio_interval.low, ratio_interval.high),
        ratio_ci_level=None if ratio_interval is None else ratio_interval.level,
        predicted_s=predicted_s,
        verdict=_verdict(policy, len(common), ratio_interval),
    )


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


def bootstrap_ci95(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the median of many values, by the percentile bootstrap; None for fewer than two. For benchmarks.

    For the few runs of a comparison it promises too much (docs/decisions/012); those take `median_interval`.
    """
    if len(values) < 2:
        return None
    if min(values) == max(values):
        return (values[0], values[0])
    result = stats.bootstrap(
        (np.asarray(values),),
        np.median,
        n_resamples=_NUM_RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(_SEED),
    )
    return (float(result.confidence_interval.low), float(result.confidence_interval.high))


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None


def _verdict(policy: str, num_pairs: int, ratio: Interval | None) -> str:
    if policy == BASELINE:
        return "baseline"
    if ratio is None or num_pairs < MIN_REPEATS_FOR_VERDICT:
        return f"too few runs to tell ({num_pairs} of {MIN_REPEATS_FOR_VERDICT})"
    if ratio.high < 1:
        return "faster"
    if ratio.low > 1:
        return "slower"
    return "no significant difference"
