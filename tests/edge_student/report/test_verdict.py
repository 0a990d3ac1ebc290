"""Verdicts: ratios within a repeat, intervals, and the runs that count."""

import pytest
from scripted_comparison import compared, loud

from edge_student.report.verdict import summarize


def runs_of(policy: str, seconds: list[float], valid: bool = True) -> list[dict]:
    return [{"policy": policy, "repeat": repeat, "wall_clock_s": s, "valid": valid} for repeat, s in enumerate(seconds)]


BASE = [1.0, 2.0, 1.0, 2.0, 1.0]


def test_ratios_are_taken_within_a_repeat() -> None:
    # The machine is twice as slow in every other repeat; the policy takes 0.8 of the baseline in each.
    runs = runs_of("os-default", BASE) + runs_of("dynamic", [0.8 * s for s in BASE])
    base, dynamic = summarize(runs, ["os-default", "dynamic"])
    assert (base.verdict, base.ratio_vs_os_default, base.ratio_ci95) == ("baseline", 1.0, None)
    assert dynamic.ratio_vs_os_default == pytest.approx(0.8)
    assert dynamic.ratio_ci95 == pytest.approx((0.8, 0.8))
    assert dynamic.median_s == pytest.approx(0.8)
    assert dynamic.verdict == "faster"


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ([1.2, 1.3, 1.1, 1.2, 1.25], "slower"),
        ([0.9, 1.1, 0.95, 1.05, 1.0], "no significant difference"),
        ([0.5, 0.5], "too few runs to tell (2 of 5)"),
    ],
)
def test_the_verdict_follows_the_interval(factors: list[float], verdict: str) -> None:
    seconds = [factor * s for factor, s in zip(factors, BASE, strict=False)]
    assert summarize(runs_of("os-default", BASE) + runs_of("random", seconds), ["random"])[0].verdict == verdict


def test_invalid_runs_do_not_count() -> None:
    runs = runs_of("os-default", BASE) + runs_of("dynamic", [0.1] * 5, valid=False)
    (summary,) = summarize(runs, ["dynamic"])
    assert (summary.num_runs, summary.median_s, summary.ci95, summary.ratio_vs_os_default) == (0, None, None, None)


def test_a_disturbed_baseline_is_replaced_in_every_pair_of_its_turn() -> None:
    runs = compared({("os-default", 0, 1): {"disturbance": loud(0.5), "wall_clock_s": 50.0}}, repeats=1, policies="abc")
    assert [run["wall_clock_s"] for run in runs] == [50.0, 2.0, 3.0, 4.0]
    assert [row.ratio_vs_os_default for row in summarize(runs, ["os-default", "b", "c"])] == [1.0, 0.5, 0.75]
