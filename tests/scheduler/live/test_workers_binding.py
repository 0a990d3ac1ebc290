"""Real processes, pinned and held by `WorkersBinding`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scheduler.live import binding as live_binding
from scheduler.live.binding import CommBinding, WorkersBinding
from scheduler.live.threads import allowed_cores

ALLOWED = tuple(sorted(allowed_cores()))
LOW, HIGH = ALLOWED[0], ALLOWED[-1]
TWO_CORES = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two cores to tell one from the other")


class Workers:
    """Programs that only wait."""

    def __init__(self, number: int) -> None:
        self.processes = [self._start() for _ in range(number)]
        self.pids = self._list_pids()

    def replace(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].communicate()
        self.processes[number] = self._start()
        self.pids = self._list_pids()

    def _list_pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self.processes)

    def masks(self) -> list[set[int]]:
        return [os.sched_getaffinity(pid) for pid in self.pids]

    def states(self) -> list[str]:
        return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in self.pids]

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # the program runs
        return process


@contextmanager
def bound(number: int) -> Iterator[tuple[Workers, WorkersBinding]]:
    workers = Workers(number)
    try:
        yield workers, WorkersBinding(workers)
    finally:
        for process in workers.processes:
            process.kill()
            process.communicate()


@TWO_CORES
def test_every_worker_gets_a_core_of_its_own_and_all_share_fewer() -> None:
    with bound(2) as (workers, binding):
        masks = binding.apply((LOW, HIGH))
        assert workers.masks() == [{HIGH}, {LOW}]
        assert masks == {workers.pids[0]: (HIGH,), workers.pids[1]: (LOW,)}
        assert binding.apply((HIGH, LOW)) == {}
        binding.apply((HIGH,))
        assert workers.masks() == [{HIGH}, {HIGH}]
        binding.restore()
        assert workers.masks() == [set(ALLOWED)] * 2


@TWO_CORES
def test_a_worker_that_took_the_place_of_another_is_pinned_by_the_next_call() -> None:
    cores = (LOW, HIGH)  # one object, as the loop passes it while the placement stays
    with bound(2) as (workers, binding):
        binding.apply(cores)
        assert binding.apply(cores) == {}
        workers.replace(0)
        assert workers.masks()[0] == set(ALLOWED)
        binding.apply(cores)
        assert workers.masks() == [{HIGH}, {LOW}]
        binding.apply(cores, 1)
        assert workers.masks() == [{HIGH}, set(cores)], "the number of idle workers counts too"


def test_forgotten_masks_are_set_again() -> None:
    with bound(1) as (workers, binding):
        binding.apply((LOW,))
        os.sched_setaffinity(workers.pids[0], ALLOWED)
        assert binding.apply((LOW,)) == {}
        binding.forget()
        binding.apply((LOW,))
        assert workers.masks() == [{LOW}]


def test_held_workers_stand_still_until_they_are_released() -> None:
    with bound(2) as (workers, binding):
        binding.hold()
        for pid in workers.pids:
            os.waitpid(pid, os.WUNTRACED)  # a stop takes effect when the process next runs
        assert workers.states() == ["T", "T"]
        binding.release()
        assert "T" not in workers.states()


def test_an_exited_worker_is_no_error() -> None:
    with bound(2) as (workers, binding):
        workers.processes[1].kill()
        workers.processes[1].wait()
        assert list(binding.apply((LOW,))) == [workers.pids[0]]
        binding.hold()
        binding.release()
        binding.restore()


@pytest.mark.skipif(os.geteuid() != 0, reason="leaving idle priority needs a privilege")
@TWO_CORES
def test_the_last_workers_get_idle_priority_in_their_session_and_among_sessions() -> None:
    with bound(3) as (workers, binding):
        for process in workers.processes:
            os.sched_setaffinity(process.pid, ALLOWED)

        def classes() -> list[int]:
            return [os.sched_getscheduler(pid) for pid in workers.pids]

        binding.apply((LOW, HIGH), 1)
        assert classes() == [os.SCHED_OTHER, os.SCHED_OTHER, os.SCHED_IDLE]
        assert workers.masks() == [{HIGH}, {HIGH}, {LOW, HIGH}]
        assert binding.apply((LOW, HIGH), 1) == {}
        binding.apply((LOW, HIGH), 5)
        assert classes() == [os.SCHED_OTHER, os.SCHED_IDLE, os.SCHED_IDLE], "one keeps normal priority"
        assert workers.masks()[0] == {HIGH}
        binding.apply((LOW, HIGH))
        assert classes() == [os.SCHED_OTHER] * 3
        binding.apply((LOW, HIGH), 1)
        binding.restore()
        assert classes() == [os.SCHED_OTHER] * 3


@TWO_CORES
def test_without_the_right_to_leave_idle_priority_all_workers_keep_normal_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_binding, "may_leave_idle_priority", lambda: False)
    with bound(2) as (workers, binding):
        binding.apply((LOW, HIGH), 1)
        assert [os.sched_getscheduler(pid) for pid in workers.pids] == [os.SCHED_OTHER] * 2
        assert workers.masks() == [{HIGH}, {LOW, HIGH}]


AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="the kernel has no autogroups")
def test_the_niceness_of_a_session_is_set_for_a_worker_with_idle_priority() -> None:
    program = "import os, signal; os.setsid(); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        group = Path(f"/proc/{process.pid}/autogroup")
        binding = CommBinding(process.pid)
        binding.set_idle_priority(True)
        assert group.read_text().split()[-1] == "19"
        if os.geteuid() == 0:
            binding.set_idle_priority(False)
            assert group.read_text().split()[-1] == "0"
        process.kill()


def test_a_niceness_that_the_kernel_does_not_take_yet_is_set_later(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(live_binding, "threads_of", lambda pid: frozenset())
    monkeypatch.setattr(live_binding, "set_group_niceness", lambda pid, niceness: asked.append(niceness) or len(asked) > 2)
    binding = CommBinding(1)
    binding.set_idle_priority(True)
    for _ in range(3):
        binding.pin_new_threads()
    assert asked == [19, 19, 19]
