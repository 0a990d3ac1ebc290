"""Busy seconds of this very process."""

import os
import threading

from edge_student.thread_times import ThreadTimes


def spin(rounds: int) -> int:
    return sum(n * n for n in range(rounds))


def test_work_counts_and_waiting_does_not() -> None:
    times = ThreadTimes()
    assert times.is_known
    before = times.busy_s()
    threading.Event().wait(0.05)
    waited = times.busy_s() - before
    spin(300_000)
    worked = times.busy_s() - before - waited
    assert 0 <= waited < worked
    times.close()


def test_a_thread_that_has_ended_keeps_its_seconds_and_its_file_is_closed() -> None:
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
    for _ in range(3):  # the kernel may take a moment to forget it
        assert times.busy_s() >= with_it
    times.close()
    assert len(os.listdir("/proc/self/fd")) == num_files
