"""The watch of a run, on real processes and scripted samples of the machine."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from edge_student.monitor.watch import Watch

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


class ScriptedSampler:
    """Returns the share of other programs, in order; the last one is repeated."""

    def __init__(self, *shares: float) -> None:
        self._shares = list(shares)

    def since_last(self) -> dict[str, Any]:
        share = self._shares.pop(0) if len(self._shares) > 1 else self._shares[0]
        return {
            "others_fraction": share,
            "others_resolution": 0.0,
            "steal_fraction": None,
            "throttled": None,
            "busiest_others": [{"name": "neighbour", "pid": 1, "cpu_s": 1.0}],
        }


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def make(sampler: ScriptedSampler, pids: dict[int, str], max_silence_s: float, sample_s: float = 1000.0) -> Watch:
    return Watch(workers=lambda: pids, sampler=sampler, max_silence_s=max_silence_s, sample_s=sample_s)  # type: ignore[arg-type]


@pytest.mark.promise(number=28)
def test_a_stopped_worker_is_continued_and_one_that_stays_stopped_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(SLEEP) as process, make(ScriptedSampler(0.0), {process.pid: "worker 7"}, 0.1) as running:
        process.send_signal(19)  # SIGSTOP
        wait_for(lambda: len(running.notes) == 1)
        assert process.poll() is None
        process.send_signal(19)
        wait_for(lambda: len(running.notes) == 2)
        assert process.wait(10) == -9
    assert running.notes == [
        f"worker 7 (process {process.pid}) was stopped by a signal or a debugger for 0.1 s; it got {signal_name}"
        for signal_name in ("SIGCONT", "SIGKILL")
    ]
    assert running.disturbances == []


@pytest.mark.promise(number=27)
def test_a_disturbance_is_logged_once_when_it_begins_and_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), make(ScriptedSampler(0.0, 0.5, 0.4, 0.0), {}, 0.1, 0.01) as running:
        wait_for(lambda: len(caplog.messages) == 2)
    assert caplog.messages == [
        "the run is disturbed: other processes used 50.0% of the run's cores (neighbour 1.00 s)",
        "the run is no longer disturbed",
    ]
    (found,) = running.disturbances
    assert found.startswith("for about ")
    assert found.endswith("other processes used 50.0% of the run's cores (neighbour 1.00 s)")


def test_a_failure_of_the_watch_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(names: object, now: float) -> None:
        raise OSError("no /proc")

    running = make(ScriptedSampler(0.0), {}, 0.1)
    monkeypatch.setattr(running._stuck, "look", fail)
    with running:
        wait_for(lambda: bool(running.notes))
    assert running.notes == ["the run was not watched after a failure of the watch: OSError: no /proc"]
