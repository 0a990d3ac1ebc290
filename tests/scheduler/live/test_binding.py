"""Masks of real threads. Each case runs in its own process, because masks and thread pools belong to a process."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from scheduler.live.binding import CommBinding
from scheduler.live.threads import BindingRefusedError, allowed_cores, read_masks, set_mask, threads_of

TWO_CORES = pytest.mark.skipif(len(allowed_cores()) < 2, reason="needs two cores to tell one from the other")


def run_in_process(script: str) -> str:
    """Return the output of a script. A failure of the script fails the test."""
    finished = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


PRELUDE = """
import os, threading, torch
from edge_student.training.torch_team import TorchTeam
from scheduler.live.binding import TeamBinding
from scheduler.live.threads import allowed_cores, read_masks, threads_of
cores = tuple(sorted(allowed_cores()))[:2]
torch.set_num_threads(2)
torch.zeros(1 << 20).add_(1)  # the team exists
before = read_masks(threads_of(os.getpid()))
binding = TeamBinding(TorchTeam(), max_threads=2)
"""


@TWO_CORES
def test_a_team_has_a_thread_for_each_core_and_one_mask_for_all_threads() -> None:
    run_in_process(
        PRELUDE
        + """
for share in (cores, cores[1:], cores, cores[:1], cores):
    assert set(binding.apply(share).values()) == {share}
    assert torch.get_num_threads() == len(share)
    torch.zeros(1 << 20).add_(1)
    masks = read_masks(threads_of(os.getpid()))
    assert len(masks) > 1 and set(masks.values()) == {share}, (share, masks)
    assert binding.apply(share) == {}, "nothing has changed"
    binding.forget()
    assert set(binding.apply(share).values()) == {share}
"""
    )


@TWO_CORES
def test_threads_that_start_later_have_the_mask_of_the_team() -> None:
    run_in_process(
        PRELUDE
        + """
binding.apply(cores[1:])
masks = []
thread = threading.Thread(target=lambda: masks.append(os.sched_getaffinity(threading.get_native_id())))
thread.start(); thread.join()
assert masks == [{cores[1]}], masks
"""
    )


@TWO_CORES
def test_restoring_resets_masks_and_thread_count() -> None:
    run_in_process(
        PRELUDE
        + """
binding.apply(cores[1:])
binding.restore()
after = read_masks(threads_of(os.getpid()))
assert torch.get_num_threads() == 2
assert all(after[tid] == mask for tid, mask in before.items()), (before, after)
assert len(set(after.values())) == 1, after
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
def refuse_the_second(tid, wanted):
    asked.append(tid)
    if len(asked) == 2:
        raise BindingRefusedError(1, "no")
    return real(tid, wanted)
module.set_mask = refuse_the_second
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


@TWO_CORES
def test_a_limit_of_threads_holds_on_any_number_of_cores() -> None:
    run_in_process(
        PRELUDE
        + """
torch.set_num_threads(1)
binding = TeamBinding(TorchTeam(), max_threads=1)
binding.apply(cores)
assert torch.get_num_threads() == 1
assert read_masks([os.getpid()])[os.getpid()] == cores
"""
    )


@TWO_CORES
def test_a_thread_that_is_left_alone_keeps_its_mask() -> None:
    run_in_process(
        PRELUDE
        + """
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
