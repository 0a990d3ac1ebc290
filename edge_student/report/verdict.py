"""From wall-clock times to a verdict: medians, paired ratios to the baseline, and their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_student.measure.intervals import Interval, median_interval

BASELINE = "os-default"


MIN_REPEATS_FOR_VERDICT = 5


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
