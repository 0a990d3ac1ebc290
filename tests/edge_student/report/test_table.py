"""The table on the terminal, its caption, and its lines about disturbed runs."""

import pytest
from scripted_comparison import compared, loud
from synthetic_comparison import QUIET, write_comparison

from edge_student.report.table import caption, disturbance_lines, print_table
from edge_student.report.verdict import summarize


def test_policy_names_are_whole_on_a_narrow_terminal(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = write_comparison(tmp_path_factory.mktemp("comparison"), repeats=1, cycles=3)
    policies = [row["policy"] for row in report["summary"]]
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then treats the captured output as a terminal
    monkeypatch.setenv("COLUMNS", "60")
    print_table(summarize(report["runs"], policies), report["runs"], report)
    output = capsys.readouterr().out
    assert [policy for policy in policies if policy not in output] == []


def test_the_caption_has_the_level_of_the_intervals() -> None:
    five = compared({}, repeats=5)
    assert "intervals (93.8%)" in caption(summarize(five, ["os-default", "b"]))
    assert "intervals;" in caption(summarize([], ["os-default"]))


def test_the_report_names_the_disturbing_processes_and_the_disturbed_runs_that_count() -> None:
    assert disturbance_lines(compared({})) == ["No run was disturbed by other processes."]
    script = {("b", 0, attempt): {"disturbance": loud(0.5)} for attempt in (1, 2, 3)}
    lines = disturbance_lines(
        compared({**script, ("os-default", 1, 1): {"disturbance": {**QUIET, "throttled": ["under-voltage"]}}})
    )
    assert lines == [
        "2 of 4 runs were disturbed; 3 extra attempts were made. Causes: make (15.0 s), under-voltage.",
        "NOT A QUIET MACHINE: 1 disturbed runs count (b 1). Each is the least disturbed of up to 3 attempts. "
        "Stop other programs and repeat the comparison before you rely on small differences.",
    ]


def test_the_report_names_the_limits_of_the_monitoring() -> None:
    short = {"disturbance": {**QUIET, "others_resolution": 0.2}}
    assert disturbance_lines(compared({("b", 0, 1): short}))[-1].startswith(
        "The runs are too short to detect other processes that use less than 20% of the cores."
    )
    blind = {"disturbance": {**QUIET, "others_fraction": None, "others_resolution": None}}
    assert disturbance_lines(compared({("b", 0, 1): blind}))[-1].startswith("This machine has no /proc/stat")


REPORT = {
    "host": {"cores_used": [0, 1], "cpu": "Ample"},
    "config": {"cycles": 4, "model": "cnn", "private": "digits:private", "profile": None},
}


def test_modelled_seconds_have_a_column_of_their_own_and_only_with_a_profile(capsys: pytest.CaptureFixture[str]) -> None:
    parts = dict.fromkeys(("forward_s", "backward_s", "stall_s", "hold_s", "accuracy"), 0.25)
    runs = [{**run, **parts} for run in compared({})]
    summary = summarize(runs, ["os-default", "b"], {"os-default": None, "b": 7.125})
    assert [row.predicted_s for row in summary] == [None, 7.125]
    print_table(summary, runs, REPORT)
    assert "modelled" not in capsys.readouterr().out
    print_table(summary, runs, {**REPORT, "config": {**REPORT["config"], "profile": "p.json"}})
    shown = capsys.readouterr().out
    assert "modelled" in shown
    assert "7.125" in shown
