"""The order of runs, and repetition and selection of disturbed runs. Runs are scripted records without processes."""

from typing import Any

import pytest
from scripted_comparison import compared, loud

from edge_student.measure.interleaving import is_complete, run_turns, schedule_of_runs


def order_of(runs: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(run["policy"], run["repeat"], run["attempt"]) for run in runs]


def test_policies_take_turns() -> None:
    order = schedule_of_runs(["a", "b", "c"], 3)
    assert [policy for _, policy in order] == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert [repeat for repeat, _ in order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_quiet_comparison_repeats_nothing() -> None:
    runs = compared({})
    assert order_of(runs) == [("os-default", 0, 1), ("b", 0, 1), ("b", 1, 1), ("os-default", 1, 1)]
    assert all(run["valid"] and not run["disturbed"] and run["notes"] == [] for run in runs)


def test_a_disturbed_run_runs_again_at_the_end_of_its_turn(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        runs = compared({("b", 0, 1): {"disturbance": loud(0.5)}, ("b", 0, 2): {"disturbance": loud(0.5)}}, policies="abc")
    assert order_of(runs)[:5] == [("os-default", 0, 1), ("b", 0, 1), ("c", 0, 1), ("b", 0, 2), ("b", 0, 3)]
    assert order_of(runs)[5:] == [("c", 1, 1), ("b", 1, 1), ("os-default", 1, 1)]
    assert [run["valid"] for run in runs if run["policy"] == "b" and run["repeat"] == 0] == [False, False, True]
    assert runs[1]["notes"] == ["disturbed: other processes used 50.0% of the run's cores (make 5.00 s)"]
    assert "b, repeat 0, attempt 1, was disturbed: other processes used 50.0%" in caplog.text
    assert "attempt 2 of 3 for disturbed runs: b" in caplog.text


def test_repetitions_keep_the_order_of_their_turn() -> None:
    script = {(policy, 1, 1): {"disturbance": loud(0.5)} for policy in ("os-default", "c")}
    assert order_of(compared(script, policies="abc"))[3:] == [
        ("c", 1, 1),
        ("b", 1, 1),
        ("os-default", 1, 1),
        ("c", 1, 2),
        ("os-default", 1, 2),
    ]


def test_without_a_quiet_attempt_the_least_disturbed_counts_with_a_note() -> None:
    script = {("b", 0, attempt): {"disturbance": loud(fraction)} for attempt, fraction in ((1, 0.6), (2, 0.2), (3, 0.4))}
    runs = compared(script, repeats=1)
    assert order_of(runs) == [("os-default", 0, 1), ("b", 0, 1), ("b", 0, 2), ("b", 0, 3)]
    assert [run["valid"] for run in runs] == [True, False, True, False]
    assert runs[2]["notes"][-1] == "counts although disturbed: the least disturbed of 3 attempts"
    assert runs[2]["disturbed"]


def test_after_a_turn_without_a_quiet_run_nothing_is_repeated_until_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    """On a permanently busy machine, repeating would take three times as long without effect."""
    noise = {"disturbance": loud(0.5)}
    script = {(policy, repeat, attempt): noise for policy in ("os-default", "b") for repeat in (0, 1) for attempt in (1, 2, 3)}
    runs = compared({**script, ("b", 2, 1): noise}, repeats=3)
    assert [run["repeat"] for run in runs] == [0] * 6 + [1] * 2 + [2] * 3
    assert order_of(runs)[-3:] == [("os-default", 2, 1), ("b", 2, 1), ("b", 2, 2)]
    assert sum(run["valid"] for run in runs) == 6
    assert is_complete(["os-default", "b"], 3, runs)
    assert caplog.text.count("run each policy once, until a run is undisturbed") == 1


def test_the_slow_are_not_repeated_and_the_fast_are_not_kept_only_the_disturbed() -> None:
    """Only disturbance decides, never the wall-clock, which would bias the result."""
    runs = compared({("b", 0, 1): {"disturbance": loud(0.5), "wall_clock_s": 0.001}, ("b", 1, 1): {"wall_clock_s": 9999.0}})
    assert [(run["wall_clock_s"], run["valid"]) for run in runs if run["policy"] == "b"] == [
        (0.001, False),
        (3.0, True),
        (9999.0, True),
    ]


def test_a_run_that_failed_by_itself_is_not_repeated() -> None:
    failed = {"valid": False, "notes": ["exit status 1"], "disturbance": None}
    refused = {"valid": False, "notes": ["the kernel refused a mask"], "disturbance": loud(0.9)}
    runs = compared({("b", 0, 1): failed, ("b", 1, 1): refused})
    assert order_of(runs) == [("os-default", 0, 1), ("b", 0, 1), ("b", 1, 1), ("os-default", 1, 1)]
    assert [(run["valid"], run["disturbed"]) for run in runs[1:3]] == [(False, False)] * 2


def test_a_policy_that_fails_does_not_make_a_loud_machine_promising() -> None:
    """If one policy fails and the others are always disturbed, only the first turn is repeated."""
    failed = {"valid": False, "notes": ["exit status 1"], "disturbance": None}
    script: dict[tuple[str, int, int], dict[str, Any]] = {}
    for repeat in range(3):
        for attempt in (1, 2, 3):
            script |= {("os-default", repeat, attempt): {"disturbance": loud(0.5)}, ("b", repeat, attempt): failed}
    runs = compared(script, repeats=3)
    assert [run["repeat"] for run in runs] == [0, 0, 0, 0, 1, 1, 2, 2]


def test_when_the_repetition_fails_the_disturbed_run_counts() -> None:
    failed = {"valid": False, "notes": ["exit status 1"], "disturbance": None}
    runs = compared({("b", 0, 1): {"disturbance": loud(0.5)}, ("b", 0, 2): failed}, repeats=1)
    assert [(run["attempt"], run["valid"], run["disturbed"]) for run in runs[1:]] == [(1, True, True), (2, False, False)]


def test_an_interrupted_turn_keeps_its_runs_and_is_not_complete() -> None:
    runs: list[dict[str, Any]] = []

    def run_once(policy: str, repeat: int, attempt: int) -> dict[str, Any]:
        if attempt == 2:
            raise KeyboardInterrupt
        return {"policy": policy, "repeat": repeat, "valid": True, "notes": [], "disturbance": loud(0.5)}

    with pytest.raises(KeyboardInterrupt):
        run_turns(["os-default", "b"], 2, run_once, runs)
    assert [(run["policy"], run["valid"]) for run in runs] == [("os-default", True), ("b", True)]
    assert not is_complete(["os-default", "b"], 2, runs)
    assert is_complete(["os-default", "b"], 1, runs)
