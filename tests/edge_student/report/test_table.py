"""The table on the terminal."""

import pytest
from synthetic_comparison import write_comparison

from edge_student.report.table import print_table
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
