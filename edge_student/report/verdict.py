"""Summarize the runs of a comparison: medians, ratios to the baseline, their intervals, and a verdict per policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from edge_student.measure.intervals import Interval, median_interval

BASELINE = "os-default"

MIN_REPEATS_FOR_VERDICT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Results of one policy over its valid runs, in seconds. Intervals are None below two runs.

    The target level of the intervals is 95 %. The level fields hold the actual level, for example 93.75 % at five runs.
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
    """Return one Summary per policy, in the given order, over the valid runs. `predictions` are modelled seconds by policy."""
    seconds = {
        policy: {run["repeat"]: float(run["wall_clock_s"]) for run in runs if run["policy"] == policy and run["valid"]}
        for policy in {*policies, BASELINE}
    }
    predicted = predictions or {}
    return [_summary(policy, seconds[policy], seconds[BASELINE], predicted.get(policy)) for policy in policies]


def median_of(runs: Sequence[Mapping[str, Any]], policy: str, field: str) -> float | None:
    """Return the median of a field over the valid runs of a policy. None if no valid run has a value."""
    return _median([run[field] for run in runs if run["policy"] == policy and run["valid"] and run[field] is not None])


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


def _median(values: Sequence[float]) -> float | None:
    return float(median(values)) if values else None


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
