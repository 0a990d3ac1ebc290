"""From wall-clocks to statements: medians, bootstrap intervals, paired ratios to the baseline, and a verdict.

Run r of every policy has the same seed and the same batches and stands next to the others in time, so ratios are taken within a
repeat: what slows the whole machine for a while cancels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

BASELINE = "os-default"
MIN_REPEATS_FOR_VERDICT = 5
_NUM_RESAMPLES = 9999
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the valid runs of one policy say. Seconds; intervals are 95 %, None below two runs."""

    policy: str
    num_runs: int
    median_s: float | None
    ci95: tuple[float, float] | None
    ratio_vs_os_default: float | None
    ratio_ci95: tuple[float, float] | None
    predicted_s: float | None
    verdict: str


def summarize(runs: Sequence[dict[str, Any]], policies: Sequence[str]) -> list[Summary]:
    """One Summary per policy, in the order given, from the runs marked valid."""
    seconds = {
        policy: {run["repeat"]: float(run["wall_clock_s"]) for run in runs if run["policy"] == policy and run["valid"]}
        for policy in {*policies, BASELINE}
    }
    return [_summary(policy, seconds[policy], seconds[BASELINE]) for policy in policies]


def _summary(policy: str, seconds: dict[int, float], baseline: dict[int, float]) -> Summary:
    common = sorted(seconds.keys() & baseline.keys())
    ratios = [seconds[repeat] / baseline[repeat] for repeat in common]
    ratio_ci95 = None if policy == BASELINE else bootstrap_ci95(ratios)
    return Summary(
        policy=policy,
        num_runs=len(seconds),
        median_s=_median(list(seconds.values())),
        ci95=bootstrap_ci95(list(seconds.values())),
        ratio_vs_os_default=_median(ratios),
        ratio_ci95=ratio_ci95,
        predicted_s=None,
        verdict=_verdict(policy, len(common), ratio_ci95),
    )


def bootstrap_ci95(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the median, by the percentile bootstrap; None for fewer than two values."""
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


def _verdict(policy: str, num_pairs: int, ratio_ci95: tuple[float, float] | None) -> str:
    if policy == BASELINE:
        return "baseline"
    if ratio_ci95 is None or num_pairs < MIN_REPEATS_FOR_VERDICT:
        return f"too few runs to tell ({num_pairs} of {MIN_REPEATS_FOR_VERDICT})"
    low, high = ratio_ci95
    if high < 1:
        return "faster"
    if low > 1:
        return "slower"
    return "no significant difference"
