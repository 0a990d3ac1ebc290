"""Busy seconds of this process."""

import os
import threading

import pytest

from edge_student.receive.busy_time import Busy, ThreadTimes


def spin(rounds: int) -> int:
    return sum(n * n for n in range(rounds))


def test_work_counts_as_busy_and_waiting_does_not() -> None:
    times = ThreadTimes()
    assert times.is_known
    before = times.busy_s()
    threading.Event().wait(0.05)
    waited = times.busy_s() - before
    spin(300_000)
    worked = times.busy_s() - before - waited
    assert 0 <= waited < worked
    times.close()


def test_an_exited_thread_keeps_its_seconds_and_its_file_is_closed() -> None:
    times = ThreadTimes()
    go, end = threading.Event(), threading.Event()

    def work() -> None:
        spin(300_000)
        go.set()
        end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    go.wait()
    num_files = len(os.listdir("/proc/self/fd"))
    with_it = times.busy_s()
    opened = len(os.listdir("/proc/self/fd")) - num_files
    assert opened >= 2
    end.set()
    thread.join()
    for _ in range(3):  # the kernel removes it with a delay
        assert times.busy_s() >= with_it
    times.close()
    assert len(os.listdir("/proc/self/fd")) == num_files


def test_an_interval_between_two_samples_has_the_share_of_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([0.0, 0.006, 0.5])
    monkeypatch.setattr(ThreadTimes, "busy_s", lambda self: next(seen))
    busy = Busy(100.0)
    assert busy.between(100.0, 100.001) is None, "no sample yet"
    assert busy.between(100.001, 100.01) == pytest.approx(0.6 * 0.009)
    assert busy.between(100.01, 100.012) == pytest.approx(0.6 * 0.002)
    assert busy.between(100.012, 101.01) == pytest.approx((0.5 - 0.006) * 0.998)
