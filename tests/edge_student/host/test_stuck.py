"""Processes that neither work nor wait."""

import os
import signal
import subprocess
import sys
import time

from edge_student.host.stuck import Sample, StuckProcesses, sample


def test_only_a_process_that_neither_works_nor_waits_for_the_limit_is_stuck() -> None:
    samples = {1: Sample("T", 5), 2: Sample("S", 5), 3: Sample("R", 5), 4: Sample("D", 5), 6: Sample("D", 0)}
    stuck = StuckProcesses(2.0, samples.get)
    for now in (0.0, 1.0, 1.9):
        samples[6] = Sample("D", int(now * 1e9))
        assert stuck.look(range(1, 7), now) == {}  # process 5 has exited
    samples[6] = Sample("D", 3)
    assert stuck.look(range(1, 7), 2.0) == {1: "T", 4: "D"}, "a process that waits for a core is not stuck"
    assert stuck.look(range(1, 7), 3.0) == {}, "the limit counts again"
    assert stuck.look([1], 4.0) == {1: "T"}


def test_a_process_that_waited_or_was_not_watched_in_between_is_not_stuck() -> None:
    samples = {1: Sample("T", 5), 2: Sample("T", 5)}
    stuck = StuckProcesses(2.0, samples.get)
    stuck.look([1, 2], 0.0)
    samples[1] = Sample("S", 5)
    stuck.look([1], 1.0)
    samples[1] = Sample("T", 5)
    assert stuck.look([1, 2], 2.0) == {}


def test_states_and_cpu_time_come_from_the_kernel() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            seen = []
            while not seen or seen[-1].cpu_ns == seen[0].cpu_ns:
                found = sample(process.pid)
                assert found is not None
                seen.append(found)
            assert seen[-1].state == "R"
            os.kill(process.pid, signal.SIGSTOP)
            while (stopped := sample(process.pid)) is not None and stopped.state != "T":
                time.sleep(0.001)
            assert stopped is not None
            assert sample(process.pid) == stopped
        finally:
            process.kill()
    assert sample(process.pid) is None
