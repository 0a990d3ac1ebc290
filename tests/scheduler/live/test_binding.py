"""Masks of real threads. Each case runs in its own process, because masks and thread pools belong to a process."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from scheduler.live.binding import CommBinding, CompBinding
from scheduler.live.threads import BindingRefusedError, allowed_cores, read_masks, set_mask, threads_of

TWO_CORES = pytest.mark.skipif(len(allowed_cores()) < 2, reason="needs two cores to tell one from the other")


def run_in_process(script: str) -> str:
    """Return the output of a script. A failure of the script fails the test."""
    finished = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


PRELUDE = """
import os, torch
from edge_student.training.torch_team import TorchTeam
from scheduler.live.binding import CompBinding
from scheduler.live.threads import allowed_cores, cpu_ns, read_masks, threads_of
cores = tuple(sorted(allowed_cores()))[:2]
torch.set_num_threads(2)
before = read_masks(threads_of(os.getpid()))
binding = CompBinding(TorchTeam(), max_threads=2)
def team_by_clock():
    x = torch.zeros(1 << 20)
    for _ in range(500): x.add_(1)  # the team is born, and threads that have left it stop spinning
    clocks = {tid: cpu_ns(tid) for tid in threads_of(os.getpid())}
    for _ in range(50): x.add_(1)
    return {tid for tid, spent in clocks.items() if cpu_ns(tid) > spent}
"""


@TWO_CORES
def test_the_openmp_team_sits_one_to_one_on_the_compute_cores() -> None:
    run_in_process(
        PRELUDE
        + """
binding.apply(cores)
masks = read_masks(threads_of(os.getpid()))
team = team_by_clock()
assert team == set(binding.team), (team, binding.team)
assert sorted(masks[tid] for tid in team) == [(core,) for core in cores], masks
assert torch.get_num_threads() == 2
"""
    )


@TWO_CORES
def test_a_smaller_share_leaves_no_thread_on_the_lost_cores_and_a_larger_one_spreads_again() -> None:
    run_in_process(
        PRELUDE
        + """
for share in (cores, cores[1:], cores, cores[:1], cores):
    binding.apply(share)
    masks = read_masks(threads_of(os.getpid()))
    assert torch.get_num_threads() == len(share)
    assert all(set(mask) <= set(share) for mask in masks.values()), (share, masks)
    team = team_by_clock()
    assert sorted(read_masks(team).values()) == [(core,) for core in share], (share, read_masks(team))
"""
    )


@TWO_CORES
@pytest.mark.parametrize("end", ["binding.apply(cores)", "binding.restore()"])
def test_a_thread_that_the_team_leaves_out_yields_to_everybody_until_it_is_needed_again(end: str) -> None:
    run_in_process(
        PRELUDE
        + f"""
from scheduler.live.threads import may_leave_idle_priority
member = binding.team[1]
def classes():
    return [os.sched_getscheduler(tid) for tid in (os.getpid(), member)]
binding.apply(cores)
assert classes() == [os.SCHED_OTHER, os.SCHED_OTHER]
binding.apply(cores[:1])
assert classes() == [os.SCHED_OTHER, os.SCHED_IDLE if may_leave_idle_priority() else os.SCHED_OTHER]
{end}
assert classes() == [os.SCHED_OTHER, os.SCHED_OTHER]
"""
    )


@TWO_CORES
def test_without_the_privilege_to_come_back_no_thread_yields() -> None:
    run_in_process(
        PRELUDE.replace(
            "binding = ",
            "import scheduler.live.threads as t;"
            "t.os.sched_setscheduler = lambda *_: (_ for _ in ()).throw(PermissionError(1, 'no'));"
            " binding = ",
        )
        + """
binding.apply(cores[:1])
binding.apply(cores)
assert {os.sched_getscheduler(tid) for tid in threads_of(os.getpid())} == {os.SCHED_OTHER}
"""
    )


WIDE = """
import os, torch
from edge_student.training.torch_team import TorchTeam
import scheduler.live.binding
from scheduler.live.binding import CompBinding
from scheduler.live.threads import cpu_ns, threads_of
masks = {}
def set_mask(tid, cores):  # more cores than this machine may have: only remembered
    masks[tid] = cores
scheduler.live.binding.set_mask = set_mask
lingering = set()
scheduler.live.binding.threads_of = lambda pid: threads_of(pid) | lingering
torch.set_num_threads(4)
binding = CompBinding(TorchTeam(), max_threads=4)
def work():
    x = torch.zeros(1 << 20)
    for _ in range(100): x.add_(1)
    clocks = {tid: cpu_ns(tid) for tid in threads_of(os.getpid())}
    for _ in range(50): x.add_(1)
    return {tid for tid, spent in clocks.items() if cpu_ns(tid) > spent}
"""


@pytest.mark.parametrize("smaller", [2, 3])
def test_a_team_that_grows_again_has_new_threads_and_none_of_those_that_were_left_out(smaller: int) -> None:
    """libgomp ends surplus threads of a team of two or more. On busy cores such a thread can take long to exit."""
    run_in_process(
        WIDE
        + f"""
binding.apply(range(4))
first = set(work())
assert first == set(binding.team), (first, binding.team)
binding.apply(range({smaller}))
assert set(work()) == set(binding.team)
lingering |= first - set(binding.team)
binding.apply(range(4))
last = set(work())
assert last == set(binding.team), (last, binding.team)
assert last != first, "this libgomp keeps its threads: then the test proves nothing"
assert sorted(tuple(masks[tid]) for tid in last) == [(0,), (1,), (2,), (3,)], masks
"""
    )


def test_a_team_that_was_one_thread_for_a_while_is_the_same_afterwards() -> None:
    run_in_process(
        WIDE
        + """
binding.apply(range(4))
first = set(work())
binding.apply([3])
work()
binding.apply(range(4))
assert first == set(binding.team) == set(work())
assert sorted(tuple(masks[tid]) for tid in first) == [(0,), (1,), (2,), (3,)]
"""
    )


@TWO_CORES
def test_restoring_puts_back_masks_and_thread_count() -> None:
    run_in_process(
        PRELUDE
        + """
binding.apply(cores[1:])
binding.restore()
after = read_masks(threads_of(os.getpid()))
assert torch.get_num_threads() == 2
assert all(after[tid] == mask for tid, mask in before.items()), (before, after)
assert len(set(after.values())) == 1, after
assert len(team_by_clock()) == 2
"""
    )


@TWO_CORES
def test_changes_before_a_refused_mask_are_undone() -> None:
    run_in_process(
        PRELUDE
        + """
import scheduler.live.binding as module
from scheduler.live.threads import BindingRefusedError
real, asked = module.set_mask, []
def refuse_the_third(tid, wanted):
    asked.append(tid)
    if len(asked) == 3:
        raise BindingRefusedError(1, "no")
    return real(tid, wanted)
module.set_mask = refuse_the_third
try:
    binding.apply(cores[:1])
except BindingRefusedError:
    pass
else:
    raise AssertionError(asked)
module.set_mask = real
assert torch.get_num_threads() == 1
binding.restore()
after = read_masks(threads_of(os.getpid()))
assert torch.get_num_threads() == 2
assert all(after[tid] == mask for tid, mask in before.items()), (before, after)
"""
    )


def test_one_thread_at_most_means_one_thread_on_any_share() -> None:
    run_in_process(
        PRELUDE
        + """
torch.set_num_threads(1)
binding = CompBinding(TorchTeam(), max_threads=1)
binding.apply(cores)
assert torch.get_num_threads() == 1
assert read_masks([os.getpid()])[os.getpid()] == (cores[-1],)
"""
    )


@TWO_CORES
def test_a_thread_that_is_left_alone_keeps_its_mask() -> None:
    run_in_process(
        PRELUDE
        + """
import threading
stop, born, tids = threading.Event(), threading.Event(), []
def wait():
    tids.append(threading.get_native_id()); born.set(); stop.wait()
thread = threading.Thread(target=wait, daemon=True); thread.start(); born.wait()
binding.leave_alone(tids[0])
binding.apply(cores[1:])
assert read_masks(tids)[tids[0]] == next(iter(before.values())), read_masks(tids)
stop.set(); thread.join()
"""
    )


class ChurningTeam:
    """A team whose second thread changes at every operation, as oneDNN does with small work on many cores."""

    def size(self) -> int:
        return 2

    def resize(self, num_threads: int) -> None:
        pass

    def exercise(self) -> None:
        pass


def test_masks_are_shared_where_threads_keep_being_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from scheduler.live import binding

    born = iter(range(100, 200))
    threads = {"now": frozenset({1})}
    pinned: dict[int, frozenset[int]] = {}
    clocks: dict[int, int] = {}
    monkeypatch.setattr(binding.os, "getpid", lambda: 1)
    monkeypatch.setattr(binding, "threads_of", lambda pid: threads["now"])
    monkeypatch.setattr(binding, "set_mask", lambda tid, cores: pinned.update({tid: cores}) or True)
    monkeypatch.setattr(binding.os, "sched_getaffinity", lambda tid: {0, 1})
    monkeypatch.setattr(binding, "cpu_ns", lambda tid: clocks.setdefault(tid, 0))
    comp = CompBinding(ChurningTeam(), max_threads=2, scan_every_s=0.0)

    def run_parallel() -> None:
        for tid in threads["now"]:
            clocks[tid] = clocks.get(tid, 0) + 1000

    monkeypatch.setattr(ChurningTeam, "exercise", lambda self: run_parallel())
    masks = []
    for _ in range(5):
        member = next(born)
        threads["now"] = frozenset({1, member})
        comp.apply((0, 1))
        masks.append((pinned[1], pinned[member]))
    assert masks[0] == (frozenset({1}), frozenset({0})), "one thread to one core"
    assert masks[-1] == (frozenset({0, 1}), frozenset({0, 1})), "one mask for all, or new threads are born onto the master's core"
    assert comp.num_churned == 3, "from then on nobody looks"


def test_a_mask_that_the_kernel_cuts_down_is_a_refusal() -> None:
    some = min(allowed_cores())
    with pytest.raises(BindingRefusedError, match="instead of"):
        run_with_mask_put_back(frozenset({some, 1000}))
    with pytest.raises(BindingRefusedError, match="refused cores"):
        run_with_mask_put_back(frozenset({1000}))


def run_with_mask_put_back(cores: frozenset[int]) -> None:
    before = os.sched_getaffinity(0)
    try:
        set_mask(0, cores)
    finally:
        os.sched_setaffinity(0, before)


@TWO_CORES
def test_every_thread_of_another_process_is_pinned_also_later_ones() -> None:
    script = """
import sys, threading
stop = threading.Event()
def start(n):
    for _ in range(n): threading.Thread(target=stop.wait, daemon=True).start()
start(3); print("ready", flush=True)
sys.stdin.readline(); start(2); print("more", flush=True)
sys.stdin.readline()
"""
    core = max(allowed_cores())
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        binding = CommBinding(process.pid, scan_every_s=0.0)
        masks = binding.apply(frozenset({core}))
        assert len(masks) == 4
        assert set(masks.values()) == {(core,)}
        assert binding.pin_new_threads() is None, "nothing has changed"
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        more = binding.pin_new_threads()
        assert more is not None
        assert len(more) == 6
        assert set(more.values()) == {(core,)}
        process.stdin.write("\n")
    deadline = time.monotonic() + 10
    while threads_of(process.pid) and time.monotonic() < deadline:
        pass
    assert binding.apply(frozenset({core})) == {}, "a process that is gone has no threads"
    assert read_masks([process.pid]) == {}


def test_idle_priority_applies_to_a_worker_and_its_later_threads() -> None:
    program = "import sys, threading, time\nsys.stdin.readline()\n" + (
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nprint(flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        binding = CommBinding(worker.pid)
        binding.set_idle_priority(True)
        worker.stdin.write("\n")
        worker.stdin.flush()
        worker.stdout.readline()
        assert len(threads_of(worker.pid)) == 2
        assert {os.sched_getscheduler(tid) for tid in threads_of(worker.pid)} == {os.SCHED_IDLE}
        if os.geteuid() == 0:  # coming back takes a privilege
            binding.set_idle_priority(False)
            assert {os.sched_getscheduler(tid) for tid in threads_of(worker.pid)} == {os.SCHED_OTHER}
        worker.kill()
    binding.set_idle_priority(True)  # a worker that is gone has no threads
