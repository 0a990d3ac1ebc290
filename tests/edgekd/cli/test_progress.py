"""Progress without a terminal: a line per tenth of the work, and one per minute of slow work."""

import logging

import pytest

from edgekd.cli import progress


def test_slow_work_is_logged_by_time_as_well(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO), progress.Progress("cycles", 1000) as cycles:
        for done in range(1, 201):
            now += 1.0
            cycles.reach(done)
    assert caplog.messages == [f"cycles: {done} of 1000" for done in (60, 100, 160, 200)]


def test_only_lines_are_logged_if_so_requested(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), progress.Progress("cycles", 10, is_logged=False) as cycles:
        cycles.advance(10)
        cycles.line("loss 0.5")
    assert caplog.messages == ["loss 0.5"]
