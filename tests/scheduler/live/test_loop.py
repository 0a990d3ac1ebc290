"""The live loop with a scripted comm worker and recorded bindings: real threads and a real lock, but no processes and no sleeps."""

import queue
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from scheduler.control.controller import Controller
from scheduler.live.comm_port import BatchArrived, CommEnded, CommEvent, CommFailed, CommTrouble
from scheduler.live.core_count import CoreCount
from scheduler.live.loop import SchedulerLoop
from scheduler.live.threads import BindingRefusedError, CoresGoneError
from scheduler.model.state import COMPUTE_FIRST, Allocation, BrokenInvariant, Task
from scheduler.policies.registry import make_policy
from scheduler.policies.view import Policy, View

CORES = (2, 3, 5, 7)


class FakeComm:
    """A comm worker that returns queued events and records its calls."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        self.events: queue.Queue[CommEvent] = queue.Queue()
        self.calls: list[object] = []

    def go(self) -> None:
        self.calls.append("go")

    def next_event(self, timeout_s: float) -> CommEvent | None:
        try:
            return self.events.get(timeout=min(timeout_s, 0.02))  # a loop that shall finish waits that long
        except queue.Empty:
            return None

    def hold(self) -> None:
        self.calls.append("hold")

    def release(self) -> None:
        self.calls.append("release")

    def free_slots(self, num_batches: int) -> None:
        self.calls.append(num_batches)

    def deliver(self, *indices: int) -> None:
        for index in indices:
            self.events.put(BatchArrived(index=index, started=0.0, ended=0.0, cpu_s=0.0, num_bytes=1))
            if index == self.cycles - 1:
                self.events.put(CommEnded())


class FakeBinding:
    """Records the requested cores. Both sides share `order`, so that a test can check the order of moves."""

    def __init__(self, side: str, order: list[tuple[str, tuple[int, ...]]]) -> None:
        self.side = side
        self.order = order
        self.moves_at_once = False
        self.has_idle_priority = False
        self.class_refusal: BindingRefusedError | None = None
        self.is_restored = False
        self.refusal: BindingRefusedError | None = None
        self.refusals_left = 1 << 30

    def apply(self, cores: Iterable[int], num_idle: int = 0) -> dict[int, tuple[int, ...]]:
        if self.refusal is not None and self.refusals_left:
            self.refusals_left -= 1
            raise self.refusal
        self.order.append((self.side, tuple(sorted(cores))))
        return {1: tuple(sorted(cores))}

    def set_idle_priority(self, has_idle_priority: bool) -> None:
        if self.class_refusal is not None:
            raise self.class_refusal
        self.has_idle_priority = has_idle_priority

    def pin_new_threads(self) -> None:
        return None

    def hold(self) -> None:
        self.order.append((self.side, ()))

    def release(self) -> None:
        self.order.append((self.side, (-1,)))

    def forget(self) -> None:
        self.is_restored = False

    def leave_alone(self, tid: int) -> None:
        self.scheduler_thread = tid

    def restore(self) -> dict[int, tuple[int, ...]]:
        self.is_restored = True
        return {}


class Rig:
    """A loop with one policy and fakes for all its collaborators."""

    def __init__(self, policy: str | Policy, *, cycles: int, prefetch: int | None = None, moves_at_once: bool = False) -> None:
        self.comm = FakeComm(cycles)
        self.order: list[tuple[str, tuple[int, ...]]] = []
        self.comm_binding = FakeBinding("comm", self.order)
        self.comp_binding = FakeBinding("comp", self.order)
        self.comp_binding.moves_at_once = moves_at_once
        self.records: list[dict[str, Any]] = []
        self.controller = Controller(
            policy=make_policy(policy, num_cores=len(CORES), seed=0) if isinstance(policy, str) else policy,
            cycles=cycles,
            num_cores=len(CORES),
            prefetch=prefetch,
            comp_moves_at_boundaries=not moves_at_once,
        )
        self.loop = SchedulerLoop(
            controller=self.controller,
            cores=CORES,
            comm_port=self.comm,
            comm_binding=self.comm_binding,  # type: ignore[arg-type]
            comp_binding=self.comp_binding,  # type: ignore[arg-type]
            record=self.records.append,
            usable=lambda cores: cores,
        )

    def train(self, cycles: int) -> None:
        for _ in range(cycles):
            with self.loop.task(Task.FORWARD):
                pass
            with self.loop.task(Task.BACKWARD):
                pass

    def decisions(self) -> list[dict[str, Any]]:
        return self.of("decision")

    def of(self, event: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["event"] == event]

    def has_decided(self, number: int) -> None:
        """Return when the scheduler thread has made this number of decisions. Waits for the thread, not for a fixed time."""
        with self.loop._changed:
            while self.loop._decision is None or self.loop._decision.sequence < number - 1:
                assert self.loop._changed.wait(10), "no decision came"


class Scripted:
    """A policy that returns scripted choices and repeats the last one."""

    name = "scripted"
    is_work_conserving = True

    def __init__(self, *choices: Allocation) -> None:
        self.choices = list(choices)

    def choose(self, view: View) -> Allocation:
        return self.choices.pop(0) if len(self.choices) > 1 else self.choices[0]


NARROW, HALF, WIDE, IDLE_PRIORITY = (
    Allocation.split(3, 4),
    Allocation.split(2, 4),
    Allocation.split(1, 4),
    Allocation.sharing(COMPUTE_FIRST, 4),
)
NOTHING = Allocation.all_comm(4)


@pytest.mark.parametrize("policy", ["os-default", "static:1", "static:3", "random", "comm-priority", "comp-priority", "dynamic"])
def test_every_policy_trains_to_the_end_and_restores(policy: str) -> None:
    rig = Rig(policy, cycles=4)
    rig.loop.start()
    rig.comm.deliver(0, 1, 2, 3)
    rig.train(4)
    rig.loop.finish()
    tasks = [(record["task"], record["index"]) for record in rig.records if record["event"] == "task" and record["task"] != "comm"]
    assert tasks == [(task, index) for index in range(4) for task in ("forward", "backward")]
    assert [call for call in rig.comm.calls if isinstance(call, int)] == [1, 2, 3, 4]
    assert rig.comp_binding.is_restored
    sequences = [decision["sequence"] for decision in rig.decisions()]
    assert sequences == list(range(len(sequences))), "every decision is logged once, the last one too"
    assert len(sequences) == 1 + 4 * 3


def test_a_split_gives_comm_the_lowest_cores_and_compute_the_others() -> None:
    rig = Rig("static:1", cycles=1)
    rig.loop.start()
    assert rig.order == [("comm", (2,))]
    with rig.loop.task(Task.FORWARD):
        assert rig.order[-1] == ("comp", (3, 5, 7))
    rig.comm.deliver(0)
    with rig.loop.task(Task.BACKWARD):
        assert rig.order[-1] == ("comp", CORES), "all is received: all cores to training"
    rig.loop.finish()


def test_training_that_waits_for_logits_lends_its_cores_to_comm() -> None:
    rig = Rig("static:1", cycles=1)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        pass
    assert rig.order[-1] == ("comm", CORES)
    rig.comm.deliver(0)
    with rig.loop.task(Task.BACKWARD):
        pass
    rig.loop.finish()
    waits = [record for record in rig.records if record["event"] == "wait"]
    assert [(wait["why"], wait["index"]) for wait in waits] in ([("logits", 0)], [])


def test_comm_gets_no_core_before_compute_has_left_it() -> None:
    rig = Rig("comm-priority", cycles=2, prefetch=1)
    rig.loop.start()
    rig.comm.deliver(0)  # the buffer is full: all cores to compute
    with rig.loop.task(Task.FORWARD):
        assert rig.comm.calls == ["go", "hold"]
        assert rig.order[-1] == ("comp", CORES)
    with rig.loop.task(Task.BACKWARD):
        assert rig.comm.calls == ["go", "hold"]
    assert rig.comm.calls == ["go", "hold", 1, "release"], "the slot is free, and compute is at a boundary"
    rig.comm.deliver(1)
    rig.train(1)
    rig.loop.finish()


def test_compute_without_cores_waits_at_its_boundary() -> None:
    rig = Rig("comm-priority", cycles=2)
    rig.loop.start()
    entered = threading.Event()

    def forward() -> None:
        with rig.loop.task(Task.FORWARD):
            entered.set()

    worker = threading.Thread(target=forward)
    worker.start()
    rig.comm.deliver(0)
    assert not entered.is_set()
    rig.comm.deliver(1)
    worker.join(10)
    assert entered.is_set()
    rig.loop.finish()
    assert [record["why"] for record in rig.records if record["event"] == "wait"] == ["hold"]


def test_nothing_is_pinned_under_os_default() -> None:
    rig = Rig("os-default", cycles=2)
    rig.loop.start()
    rig.comm.deliver(0, 1)
    rig.train(2)
    rig.loop.finish()
    assert rig.order == []
    assert "hold" not in rig.comm.calls


def test_a_failure_of_the_comm_worker_is_raised_where_training_waits() -> None:
    rig = Rig("static:1", cycles=1)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        pass
    rig.comm.events.put(CommTrouble(time=0.0, cause="link down"))
    rig.comm.events.put(CommFailed(error=ConnectionError("gave up")))
    with pytest.raises(ConnectionError, match="gave up"), rig.loop.task(Task.BACKWARD):
        pass
    rig.loop.finish()
    assert rig.loop.comm_troubles == ["link down"]
    assert rig.comp_binding.is_restored


def test_a_failure_after_the_last_batch_is_noted_and_training_goes_on() -> None:
    rig = Rig("static:1", cycles=1)
    rig.loop.start()
    rig.comm.events.put(BatchArrived(index=0, started=0.0, ended=0.0, cpu_s=0.0, num_bytes=1))
    rig.comm.events.put(CommFailed(error=ConnectionError("killed")))
    rig.train(1)
    rig.loop.finish()
    assert rig.loop.late_comm_failure == "killed"
    assert [record["task"] for record in rig.of("task") if record["task"] != "comm"] == ["forward", "backward"]


def test_a_failure_that_no_task_has_raised_is_raised_at_the_end() -> None:
    rig = Rig("static:1", cycles=2)
    rig.loop.start()
    rig.comm.events.put(CommFailed(error=ConnectionError("gave up")))
    with rig.loop._changed:
        assert rig.loop._changed.wait_for(lambda: rig.loop._failure is not None, 10)
    with pytest.raises(ConnectionError, match="gave up"):
        rig.loop.finish()
    assert rig.comp_binding.is_restored
    rig.loop.finish()


def test_workers_move_in_the_middle_of_a_task_by_the_thread_that_decides() -> None:
    rig = Rig(Scripted(HALF, WIDE), cycles=3, moves_at_once=True)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        rig.order.clear()
        rig.comm.deliver(0)
        rig.has_decided(2)
        assert rig.order == [("comp", (3, 5, 7)), ("comm", (2,))]
    rig.loop.finish()
    bound = rig.of("comp-bound")[-1]
    assert (bound["cores"], bound["where"], bound["decision"]) == ([3, 5, 7], "any", 1)
    assert rig.comp_binding.is_restored


def test_workers_without_cores_are_held_in_the_middle_of_a_task_and_released() -> None:
    rig = Rig(Scripted(HALF, NOTHING, HALF), cycles=4, moves_at_once=True)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        rig.comm.deliver(0)
        rig.has_decided(2)
        assert rig.order[-2][1] == () or rig.order[-1][1] == ()
        rig.comm.deliver(1)
        rig.has_decided(3)
    rig.loop.finish()
    assert ("comp", (-1,)) in rig.order
    (wait,) = rig.of("wait")
    (forward,) = (record for record in rig.of("task") if record["task"] == "forward")
    assert wait["why"] == "hold"
    assert forward["held_s"] == wait["ended"] - wait["started"]


def test_held_workers_are_released_if_comm_fails() -> None:
    rig = Rig(Scripted(HALF, NOTHING), cycles=4, moves_at_once=True)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        rig.comm.deliver(0)
        rig.has_decided(2)
        rig.comm.events.put(CommFailed(error=ConnectionError("gave up")))
        with rig.loop._changed:
            assert rig.loop._changed.wait_for(lambda: ("comp", (-1,)) in rig.order, 10)
    with pytest.raises(ConnectionError, match="gave up"), rig.loop.task(Task.BACKWARD):
        pass
    rig.loop.finish()


@pytest.mark.parametrize("policy", ["os-default", "static:1", "random", "comm-priority", "comp-priority", "dynamic", "adaptive"])
def test_every_policy_trains_workers_to_the_end(policy: str) -> None:
    rig = Rig(policy, cycles=4, moves_at_once=True)
    rig.loop.start()
    rig.comm.deliver(0, 1, 2, 3)
    rig.train(4)
    rig.loop.finish()
    assert [record["index"] for record in rig.of("task") if record["task"] == "backward"] == [0, 1, 2, 3]
    assert rig.comp_binding.is_restored


@pytest.mark.promise(number=23)
@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_a_refused_mask_is_recorded_and_the_run_goes_on_unpinned(side: str) -> None:
    rig = Rig("static:1", cycles=2)
    getattr(rig, side).refusal = BindingRefusedError(1, "the kernel refused")
    rig.loop.start()
    rig.comm.deliver(0, 1)
    rig.train(2)
    rig.loop.finish()
    assert len(rig.loop.binding_refusals) == 1
    assert [record["event"] for record in rig.records].count("binding-refused") == 1


@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_after_a_refusal_nothing_stays_pinned(side: str) -> None:
    rig = Rig("static:1", cycles=4)
    rig.loop.start()
    rig.comm.deliver(0, 1, 2, 3)
    rig.train(2)
    getattr(rig, side).refusal = BindingRefusedError(1, "the kernel refused")
    rig.loop._stop_pinning(BindingRefusedError(1, "the kernel refused"))
    rig.train(2)
    assert rig.comp_binding.is_restored, "training goes on unpinned, not only after its end"
    if side == "comp_binding":
        assert [cores for who, cores in rig.order if who == "comm"][-1] == tuple(sorted(CORES))
    rig.loop.finish()


def test_a_broken_invariant_in_the_scheduler_thread_ends_the_training() -> None:
    rig = Rig("static:1", cycles=1)
    rig.loop.start()
    rig.comm.events.put(BatchArrived(index=0, started=0.0, ended=0.0, cpu_s=0.0, num_bytes=1))
    rig.comm.deliver(0)
    with pytest.raises(BrokenInvariant):
        rig.train(1000)
    rig.loop.finish()


def test_a_task_that_raises_is_not_reported_as_done() -> None:
    rig = Rig("static:1", cycles=1)
    rig.loop.start()
    with pytest.raises(ZeroDivisionError), rig.loop.task(Task.FORWARD):
        raise ZeroDivisionError
    rig.loop.finish()
    assert [record["event"] for record in rig.records] == ["comp-bound", "decision"]


def test_a_team_keeps_its_cores_until_its_task_ends_and_only_then_comm_gets_them() -> None:
    rig = Rig(Scripted(WIDE, NARROW), cycles=3)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        assert rig.order == [("comm", (2,)), ("comp", (3, 5, 7))]
        rig.comm.deliver(0)
        rig.has_decided(2)
        assert len(rig.order) == 2
    with rig.loop.task(Task.BACKWARD):
        assert rig.order[2:] == [("comm", (2, 3, 5)), ("comp", (7,))]
    rig.loop.finish()
    first, second = rig.of("comp-bound")
    assert (first["decision"], first["cores"], first["where"]) == (0, [3, 5, 7], "task")
    assert (second["decision"], second["cores"], second["where"]) == (1, [7], "task")
    assert (second["effective"], second["decided"]) == ({1: (7,)}, rig.decisions()[1]["time"])


def test_comm_leaves_cores_at_once_and_a_team_takes_them_with_its_next_task() -> None:
    rig = Rig(Scripted(NARROW, WIDE), cycles=3)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        rig.comm.deliver(0)
        rig.has_decided(2)
        assert rig.order[2:] == [("comm", (2,))]
    with rig.loop.task(Task.BACKWARD):
        assert rig.order[3:] == [("comp", (3, 5, 7))]
    rig.loop.finish()


def test_a_decision_that_was_taken_back_moves_nothing() -> None:
    rig = Rig(Scripted(HALF, NARROW, HALF), cycles=3)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        rig.comm.deliver(0, 1)
        rig.has_decided(3)
    with rig.loop.task(Task.BACKWARD):
        pass
    rig.loop.finish()
    assert len(rig.of("comp-bound")) == 1


def test_unpinning_restores_masks_and_comm_has_idle_priority_only_while_it_shares() -> None:
    rig = Rig(Scripted(IDLE_PRIORITY, WIDE, WIDE, Allocation.unpinned(4)), cycles=3)
    rig.loop.start()
    assert rig.comm_binding.has_idle_priority
    rig.comm.deliver(0)
    rig.has_decided(2)
    assert not rig.comm_binding.has_idle_priority
    with rig.loop.task(Task.FORWARD):
        pass
    with rig.loop.task(Task.BACKWARD):
        assert rig.order[-1] == ("comp", (3, 5, 7))
    assert not rig.comp_binding.is_restored
    with rig.loop.task(Task.FORWARD):
        assert rig.comp_binding.is_restored
    assert rig.order[-1] == ("comm", CORES)
    rig.loop.finish()


def test_comm_keeps_idle_priority_if_the_kernel_refuses_the_way_back_and_the_log_has_a_record() -> None:
    rig = Rig(Scripted(IDLE_PRIORITY, WIDE), cycles=3)
    rig.loop.start()
    rig.comm_binding.class_refusal = BindingRefusedError(1, "no privilege")
    rig.comm.deliver(0)
    rig.has_decided(2)
    assert rig.comm_binding.has_idle_priority
    assert [(record["cause"], record["is_behind"]) for record in rig.of("comm-class-refused")] == [("[Errno 1] no privilege", True)]
    assert not rig.of("binding-refused")
    rig.loop.finish()


def test_a_refused_idle_priority_is_requested_once_and_comm_keeps_running() -> None:
    rig = Rig(Scripted(IDLE_PRIORITY, WIDE, IDLE_PRIORITY), cycles=3)
    rig.comm_binding.class_refusal = BindingRefusedError(1, "no such class")
    rig.loop.start()
    rig.comm.deliver(0)
    rig.has_decided(2)
    rig.comm.deliver(1)
    rig.has_decided(3)
    assert not rig.comm_binding.has_idle_priority
    assert [record["is_behind"] for record in rig.of("comm-class-refused")] == [False]
    rig.loop.finish()


class World:
    """Cores that a test takes away and returns."""

    def __init__(self) -> None:
        self.cores = frozenset(CORES)

    def usable(self, cores: frozenset[int]) -> frozenset[int]:
        return cores & self.cores


def rig_of(world: World, policy: str | Policy, cycles: int) -> Rig:
    rig = Rig(policy, cycles=cycles)
    rig.loop.cores = CoreCount(CORES, world.usable, rig.loop._clock)
    return rig


def count(rig: Rig) -> None:
    """Count the usable cores, as the scheduler thread does periodically."""
    rig.loop._count_cores()


@pytest.mark.promise(number=23)
def test_after_a_loss_of_cores_both_sides_are_bound_to_the_remaining_cores() -> None:
    world = World()
    rig = rig_of(world, "static:2", cycles=4)
    rig.loop.start()
    with rig.loop.task(Task.FORWARD):
        assert rig.order[-2:] == [("comm", (2, 3)), ("comp", (5, 7))]
        world.cores = frozenset({3, 7})
        count(rig)
        rig.comm.deliver(0)
        rig.has_decided(3)
    with rig.loop.task(Task.BACKWARD):
        assert rig.order[-2:] == [("comm", (3,)), ("comp", (7,))]
        world.cores = frozenset(CORES)
        count(rig)
    with rig.loop.task(Task.FORWARD):
        assert set(rig.order[-2:]) == {("comm", (2, 3)), ("comp", (5, 7))}
    rig.loop.finish()
    changes = [(record["before"], record["cores"]) for record in rig.of("cores-changed")]
    assert changes == [([2, 3, 5, 7], [3, 7]), ([3, 7], [2, 3, 5, 7])]
    assert rig.loop.cores.changes[0] == "from cores [2, 3, 5, 7] to [3, 7] after 0 cycles"
    assert rig.loop.binding_refusals == []


@pytest.mark.promise(number=23)
def test_with_one_core_left_training_has_it_and_the_run_comes_to_its_end() -> None:
    world = World()
    rig = rig_of(world, "static:1", cycles=3)
    rig.loop.start()
    world.cores = frozenset({5})
    count(rig)
    rig.comm.deliver(0, 1, 2)
    rig.train(3)
    rig.loop.finish()
    assert [record["task"] for record in rig.of("task")].count("backward") == 3
    assert {tuple(record["requested"]["comp"]) for record in rig.decisions()[2:]} <= {(5,), ()}


@pytest.mark.promise(number=23)
@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_a_mask_that_is_not_given_because_cores_have_gone_is_no_refusal(side: str) -> None:
    world = World()
    rig = rig_of(world, "static:2", cycles=3)
    rig.loop.start()
    world.cores = frozenset({2, 5, 7})
    binding = getattr(rig, side)
    binding.refusal = CoresGoneError(22, "core 3 is gone")
    binding.refusals_left = 1
    rig.comm.deliver(0, 1, 2)
    rig.train(3)
    count(rig)
    rig.loop.finish()
    assert rig.loop.binding_refusals == []
    assert len(rig.of("cores-changed")) == 1
    assert all(3 not in cores for _, cores in rig.order[-2:])


@pytest.mark.promise(number=23)
@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_a_mask_that_is_not_given_although_all_cores_are_there_is_a_refusal(side: str) -> None:
    rig = rig_of(World(), "static:2", cycles=3)
    getattr(rig, side).refusal = CoresGoneError(22, "something else")
    rig.loop.start()
    rig.comm.deliver(0, 1, 2)
    rig.train(3)
    count(rig)
    rig.loop.finish()
    assert rig.loop.binding_refusals == ["[Errno 22] something else"]
    assert rig.of("cores-changed") == []


@pytest.mark.promise(number=23)
def test_cores_that_go_after_everything_was_received_are_missed_as_well() -> None:
    world = World()
    rig = rig_of(world, "static:2", cycles=3)
    rig.loop.start()
    rig.comm.deliver(0, 1, 2)
    with rig.loop._changed:
        assert rig.loop._changed.wait_for(lambda: rig.loop._comm.has_ended, 10)
        assert rig.loop.cores.now == CORES
    world.cores = frozenset({5, 7})
    with rig.loop._changed:
        assert rig.loop._changed.wait_for(lambda: rig.loop.cores.now == (5, 7), 10), "nobody looks any more"
    rig.train(3)
    rig.loop.finish()
    assert rig.order[-1] == ("comp", (5, 7))
    assert rig.loop.cores.changes == ["from cores [2, 3, 5, 7] to [5, 7] after 0 cycles"]


@pytest.mark.promise(number=23)
def test_without_usable_cores_the_run_continues_unpinned_and_records_it() -> None:
    world = World()
    rig = rig_of(world, "static:2", cycles=3)
    rig.loop.start()
    world.cores = frozenset()
    count(rig)
    count(rig)
    assert rig.order[-1] == ("comm", CORES), "every mask that comm could have"
    world.cores = frozenset({2, 3})
    count(rig)
    rig.comm.deliver(0, 1, 2)
    rig.train(3)
    rig.loop.finish()
    assert rig.loop.binding_refusals == ["none of the cores [2, 3, 5, 7] is left to this process"]
    assert rig.order[-1] == ("comm", CORES)
    assert rig.comp_binding.is_restored
