"""The live loop with a scripted comm worker and recorded bindings: real threads and a real lock, but no processes and no sleeps."""

import queue
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from scheduler.control.controller import Controller
from scheduler.control.side_rates import Share
from scheduler.live.comm_port import BatchArrived, CommEnded, CommEvent, CommFailed, CommTrouble
from scheduler.live.core_count import CoreCount
from scheduler.live.loop import SchedulerLoop
from scheduler.live.threads import BindingRefusedError, CoresGoneError
from scheduler.model.state import COMPUTE_FIRST, Allocation, BrokenInvariant, Task
from scheduler.policies.registry import make_policy
from scheduler.policies.view import Policy, View

CORES = (2, 3, 5, 7)


class FakeComm:
    """A comm worker that says what the test puts into its queue, and remembers what it was told."""

    def __init__(self, cycles: int) -> None:
        self.cycles = cycles
        self.events: queue.Queue[CommEvent] = queue.Queue()
        self.told: list[object] = []

    def go(self) -> None:
        self.told.append("go")

    def next_event(self, timeout_s: float) -> CommEvent | None:
        try:
            return self.events.get(timeout=min(timeout_s, 0.02))  # a loop that is told to finish waits that long
        except queue.Empty:
            return None

    def hold(self) -> None:
        self.told.append("hold")

    def release(self) -> None:
        self.told.append("release")

    def free_slots(self, num_batches: int) -> None:
        self.told.append(num_batches)

    def deliver(self, *indices: int) -> None:
        for index in indices:
            self.events.put(BatchArrived(index=index, started=0.0, ended=0.0, cpu_s=0.0, num_bytes=1))
            if index == self.cycles - 1:
                self.events.put(CommEnded())


class FakeBinding:
    """Records the cores it was given; `order` is shared by both sides, so that a test sees who moved first."""

    def __init__(self, side: str, order: list[tuple[str, tuple[int, ...]]]) -> None:
        self.side = side
        self.order = order
        self.num_churned = 0
        self.has_idle_priority = False
        self.class_refusal: BindingRefusedError | None = None
        self.is_restored = False
        self.refusal: BindingRefusedError | None = None
        self.refusals_left = 1 << 30

    def apply(self, cores: Iterable[int]) -> dict[int, tuple[int, ...]]:
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

    def forget(self) -> None:
        self.is_restored = False

    def leave_alone(self, tid: int) -> None:
        self.scheduler_thread = tid

    def restore(self) -> dict[int, tuple[int, ...]]:
        self.is_restored = True
        return {}


class Bench:
    """A loop of one policy with everything around it faked."""

    def __init__(self, policy: str | Policy, *, cycles: int, prefetch: int | None = None) -> None:
        self.comm = FakeComm(cycles)
        self.order: list[tuple[str, tuple[int, ...]]] = []
        self.comm_binding = FakeBinding("comm", self.order)
        self.comp_binding = FakeBinding("comp", self.order)
        self.records: list[dict[str, Any]] = []
        self.controller = Controller(
            policy=make_policy(policy, num_cores=len(CORES), seed=0) if isinstance(policy, str) else policy,
            cycles=cycles,
            num_cores=len(CORES),
            prefetch=prefetch,
            comp_moves_at_boundaries=True,
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
        """Return when the scheduler thread has decided so often; it waits for that thread, not for a time."""
        with self.loop._changed:
            while self.loop._decision is None or self.loop._decision.sequence < number - 1:
                assert self.loop._changed.wait(10), "no decision came"


class Scripted:
    """A policy that chooses as told, the last choice for ever."""

    name = "scripted"
    is_work_conserving = True
    needs_rates = False

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
    bench = Bench(policy, cycles=4)
    bench.loop.start()
    bench.comm.deliver(0, 1, 2, 3)
    bench.train(4)
    bench.loop.finish()
    tasks = [
        (record["task"], record["index"]) for record in bench.records if record["event"] == "task" and record["task"] != "comm"
    ]
    assert tasks == [(task, index) for index in range(4) for task in ("forward", "backward")]
    assert [told for told in bench.comm.told if isinstance(told, int)] == [1, 2, 3, 4]
    assert bench.comp_binding.is_restored
    sequences = [decision["sequence"] for decision in bench.decisions()]
    assert sequences == list(range(len(sequences))), "every decision is logged once, the last one too"
    assert len(sequences) == 1 + 4 * 3


def test_a_split_gives_comm_the_lowest_cores_and_compute_the_others() -> None:
    bench = Bench("static:1", cycles=1)
    bench.loop.start()
    assert bench.order == [("comm", (2,))]
    with bench.loop.task(Task.FORWARD):
        assert bench.order[-1] == ("comp", (3, 5, 7))
    bench.comm.deliver(0)
    with bench.loop.task(Task.BACKWARD):
        assert bench.order[-1] == ("comp", CORES), "all is received: all cores to training"
    bench.loop.finish()


def test_training_that_waits_for_logits_lends_its_cores_to_comm() -> None:
    bench = Bench("static:1", cycles=1)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        pass
    assert bench.order[-1] == ("comm", CORES)
    bench.comm.deliver(0)
    with bench.loop.task(Task.BACKWARD):
        pass
    bench.loop.finish()
    waits = [record for record in bench.records if record["event"] == "wait"]
    assert [(wait["why"], wait["index"]) for wait in waits] in ([("logits", 0)], [])


def test_comm_gets_no_core_before_compute_has_left_it() -> None:
    bench = Bench("comm-priority", cycles=2, prefetch=1)
    bench.loop.start()
    bench.comm.deliver(0)  # the buffer is full: all cores to compute
    with bench.loop.task(Task.FORWARD):
        assert bench.comm.told == ["go", "hold"]
        assert bench.order[-1] == ("comp", CORES)
    with bench.loop.task(Task.BACKWARD):
        assert bench.comm.told == ["go", "hold"]
    assert bench.comm.told == ["go", "hold", 1, "release"], "the slot is free, and compute is at a boundary"
    bench.comm.deliver(1)
    bench.train(1)
    bench.loop.finish()


def test_compute_without_cores_waits_at_its_boundary() -> None:
    bench = Bench("comm-priority", cycles=2)
    bench.loop.start()
    entered = threading.Event()

    def forward() -> None:
        with bench.loop.task(Task.FORWARD):
            entered.set()

    worker = threading.Thread(target=forward)
    worker.start()
    bench.comm.deliver(0)
    assert not entered.is_set()
    bench.comm.deliver(1)
    worker.join(10)
    assert entered.is_set()
    bench.loop.finish()
    assert [record["why"] for record in bench.records if record["event"] == "wait"] == ["hold"]


def test_nothing_is_pinned_under_os_default() -> None:
    bench = Bench("os-default", cycles=2)
    bench.loop.start()
    bench.comm.deliver(0, 1)
    bench.train(2)
    bench.loop.finish()
    assert bench.order == []
    assert "hold" not in bench.comm.told


def test_what_makes_the_comm_worker_fail_is_raised_where_training_waits() -> None:
    bench = Bench("static:1", cycles=1)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        pass
    bench.comm.events.put(CommTrouble(time=0.0, cause="link down"))
    bench.comm.events.put(CommFailed(error=ConnectionError("gave up")))
    with pytest.raises(ConnectionError, match="gave up"), bench.loop.task(Task.BACKWARD):
        pass
    bench.loop.finish()
    assert bench.loop.comm_troubles == ["link down"]
    assert bench.comp_binding.is_restored


@pytest.mark.promise(number=23)
@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_a_refused_mask_is_recorded_and_the_run_goes_on_unpinned(side: str) -> None:
    bench = Bench("static:1", cycles=2)
    getattr(bench, side).refusal = BindingRefusedError(1, "the kernel refused")
    bench.loop.start()
    bench.comm.deliver(0, 1)
    bench.train(2)
    bench.loop.finish()
    assert len(bench.loop.binding_refusals) == 1
    assert [record["event"] for record in bench.records].count("binding-refused") == 1


@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_after_a_refusal_nothing_stays_pinned(side: str) -> None:
    bench = Bench("static:1", cycles=4)
    bench.loop.start()
    bench.comm.deliver(0, 1, 2, 3)
    bench.train(2)
    getattr(bench, side).refusal = BindingRefusedError(1, "the kernel refused")
    bench.loop._stop_pinning(BindingRefusedError(1, "the kernel refused"))
    bench.train(2)
    assert bench.comp_binding.is_restored, "training goes on unpinned, not only after its end"
    if side == "comp_binding":
        assert [cores for who, cores in bench.order if who == "comm"][-1] == tuple(sorted(CORES))
    bench.loop.finish()


def test_a_broken_invariant_in_the_scheduler_thread_ends_the_training() -> None:
    bench = Bench("static:1", cycles=1)
    bench.loop.start()
    bench.comm.events.put(BatchArrived(index=0, started=0.0, ended=0.0, cpu_s=0.0, num_bytes=1))
    bench.comm.deliver(0)
    with pytest.raises(BrokenInvariant):
        bench.train(1000)
    bench.loop.finish()


def test_a_task_that_raises_is_not_reported_as_done() -> None:
    bench = Bench("static:1", cycles=1)
    bench.loop.start()
    with pytest.raises(ZeroDivisionError), bench.loop.task(Task.FORWARD):
        raise ZeroDivisionError
    bench.loop.finish()
    assert [record["event"] for record in bench.records] == ["comp-bound", "decision"]


class NoLock:
    """Stands in for the lock where nobody may take it."""

    def __enter__(self) -> None:
        raise AssertionError("the lock was taken")

    def __exit__(self, *_: object) -> None:
        raise AssertionError


@pytest.mark.parametrize("policy", ["static:1", "os-default", "compute-first"])
def test_between_layers_nothing_happens_when_nothing_has_changed(policy: str) -> None:
    bench = Bench(policy, cycles=2)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0)
        bench.has_decided(2)
        before, logged = list(bench.order), len(bench.records)
        lock, bench.loop._changed = bench.loop._changed, NoLock()  # type: ignore[assignment]
        bench.loop.between_layers()
        bench.loop._changed = lock
        assert (bench.order, len(bench.records)) == (before, logged)
    bench.loop.finish()


def test_compute_leaves_cores_between_two_layers_and_only_then_comm_gets_them() -> None:
    bench = Bench(Scripted(WIDE, NARROW), cycles=3)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        assert bench.order == [("comm", (2,)), ("comp", (3, 5, 7))]
        bench.comm.deliver(0)
        bench.has_decided(2)
        assert len(bench.order) == 2, "compute is in a layer"
        bench.loop.between_layers()
        assert bench.order[2:] == [("comp", (7,)), ("comm", (2, 3, 5))]
        bench.loop.between_layers()
        assert len(bench.order) == 4
    bench.loop.finish()
    first, second = bench.of("comp-bound")
    decided = bench.decisions()
    assert (first["decision"], first["cores"], first["where"]) == (0, [3, 5, 7], "task")
    assert (second["decision"], second["cores"], second["where"]) == (1, [7], "layer")
    assert (second["effective"], second["decided"]) == ({1: (7,)}, decided[1]["time"])
    assert decided[1]["time"] <= second["time"] <= bench.of("task")[-1]["ended"]


def test_comm_leaves_cores_at_once_and_compute_takes_them_between_two_layers() -> None:
    bench = Bench(Scripted(NARROW, WIDE), cycles=3)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0)
        bench.has_decided(2)
        assert bench.order[2:] == [("comm", (2,))]
        bench.loop.between_layers()
        assert bench.order[3:] == [("comp", (3, 5, 7))]
    bench.loop.finish()


def test_a_decision_that_was_taken_back_moves_nothing() -> None:
    bench = Bench(Scripted(HALF, NARROW, HALF), cycles=3)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0, 1)
        bench.has_decided(3)
        bench.loop.between_layers()
        assert [side for side, _ in bench.order].count("comp") == 1
    bench.loop.finish()
    assert len(bench.of("comp-bound")) == 1


def test_the_decision_that_asked_first_is_the_one_whose_delay_counts() -> None:
    bench = Bench(Scripted(HALF, NARROW), cycles=4)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0, 1, 2)
        bench.has_decided(4)
        bench.loop.between_layers()
    bench.loop.finish()
    assert [bound["decision"] for bound in bench.of("comp-bound")] == [0, 1]


def test_comm_runs_behind_compute_as_soon_as_that_has_every_core() -> None:
    bench = Bench(Scripted(WIDE, IDLE_PRIORITY, WIDE), cycles=4)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0)
        bench.has_decided(2)
        bench.loop.between_layers()
        assert bench.order[2:] == [("comp", CORES), ("comm", CORES)]
        bench.comm.deliver(1)
        bench.has_decided(3)
        bench.loop.between_layers()
        assert bench.order[4:] == [("comp", (3, 5, 7)), ("comm", (2,))]
    bench.loop.finish()


def test_what_was_pinned_is_left_to_the_kernel_again_and_comm_is_behind_only_while_it_shares() -> None:
    bench = Bench(Scripted(IDLE_PRIORITY, WIDE, WIDE, Allocation.unpinned(4)), cycles=3)
    bench.loop.start()
    assert bench.comm_binding.has_idle_priority
    bench.comm.deliver(0)
    bench.has_decided(2)
    assert not bench.comm_binding.has_idle_priority
    with bench.loop.task(Task.FORWARD):
        pass
    with bench.loop.task(Task.BACKWARD):
        assert bench.order[-1] == ("comp", (3, 5, 7))
    assert not bench.comp_binding.is_restored
    with bench.loop.task(Task.FORWARD):
        assert bench.comp_binding.is_restored
    assert bench.order[-1] == ("comm", CORES)
    bench.loop.finish()


def test_comm_that_may_not_come_back_stays_behind_and_the_log_says_so() -> None:
    bench = Bench(Scripted(IDLE_PRIORITY, WIDE), cycles=3)
    bench.loop.start()
    bench.comm_binding.class_refusal = BindingRefusedError(1, "no privilege")
    bench.comm.deliver(0)
    bench.has_decided(2)
    assert bench.comm_binding.has_idle_priority
    assert [(record["cause"], record["is_behind"]) for record in bench.of("comm-class-refused")] == [
        ("[Errno 1] no privilege", True)
    ]
    assert not bench.of("binding-refused")
    bench.loop.finish()


def test_comm_that_may_not_go_behind_is_asked_once_and_runs_as_it_did() -> None:
    bench = Bench(Scripted(IDLE_PRIORITY, WIDE, IDLE_PRIORITY), cycles=3)
    bench.comm_binding.class_refusal = BindingRefusedError(1, "no such class")
    bench.loop.start()
    bench.comm.deliver(0)
    bench.has_decided(2)
    bench.comm.deliver(1)
    bench.has_decided(3)
    assert not bench.comm_binding.has_idle_priority
    assert [record["is_behind"] for record in bench.of("comm-class-refused")] == [False]
    bench.loop.finish()


def test_a_new_decision_while_compute_moves_is_followed_before_the_layer_begins() -> None:
    bench = Bench(Scripted(WIDE, NARROW, HALF), cycles=4)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0)
        bench.has_decided(2)
        bind = bench.comp_binding.apply

        def bind_slowly(cores: Iterable[int]) -> dict[int, tuple[int, ...]]:
            bench.comp_binding.apply = bind  # type: ignore[method-assign]
            bench.comm.deliver(1)
            bench.has_decided(3)
            assert bench.order[2:] == [], "compute has not left yet"
            return bind(cores)

        bench.comp_binding.apply = bind_slowly  # type: ignore[method-assign]
        bench.loop.between_layers()
        assert bench.order[2:] == [("comp", (7,)), ("comm", (2, 3)), ("comp", (5, 7))]
    bench.loop.finish()


def test_compute_without_cores_is_held_between_two_layers() -> None:
    bench = Bench(Scripted(HALF, NOTHING, WIDE), cycles=3)
    bench.loop.start()
    bind = bench.comm_binding.apply

    def bind_and_receive(cores: Iterable[int]) -> dict[int, tuple[int, ...]]:
        """Comm has every core now, so compute is held: the next batch ends that."""
        bench.comm_binding.apply = bind  # type: ignore[method-assign]
        bench.comm.deliver(1)
        return bind(cores)

    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0)
        bench.has_decided(2)
        bench.comm_binding.apply = bind_and_receive  # type: ignore[method-assign]
        bench.loop.between_layers()
        assert bench.order[2:] == [("comm", CORES), ("comm", (2,)), ("comp", (3, 5, 7))]
    bench.loop.finish()
    assert [(bound["cores"], bound["where"]) for bound in bench.of("comp-bound")] == [
        ([5, 7], "task"),
        ([], "layer"),
        ([3, 5, 7], "layer"),
    ]
    (wait,) = bench.of("wait")
    (task,) = [record for record in bench.of("task") if record["task"] == "forward"]
    assert (wait["why"], wait["index"]) == ("hold", 0)
    assert task["held_s"] == wait["ended"] - wait["started"] <= task["ended"] - task["started"]


def test_cores_given_and_taken_back_before_compute_woke_up_were_never_its_own() -> None:
    bench = Bench(Scripted(HALF, NOTHING, WIDE, NOTHING, HALF), cycles=5)
    bench.loop.start()
    told: list[Allocation | None] = []
    wait = bench.loop._changed.wait

    def sleep_until_the_next(timeout: float | None = None) -> bool:
        """Asleep through WIDE: it sees NOTHING again, and then HALF."""
        bench.loop._changed.wait = wait  # type: ignore[method-assign]
        bench.comm.deliver(1, 2)
        bench.has_decided(4)
        bench.loop._changed.wait = look  # type: ignore[method-assign]
        return True

    def look(timeout: float | None = None) -> bool:
        told.append(bench.controller._in_force)
        bench.loop._changed.wait = wait  # type: ignore[method-assign]
        bench.comm.deliver(3)
        return wait(timeout)

    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0)
        bench.has_decided(2)
        bench.loop._changed.wait = sleep_until_the_next  # type: ignore[method-assign]
        bench.loop.between_layers()
    bench.loop.finish()
    assert told == [NOTHING]
    assert [bound["cores"] for bound in bench.of("comp-bound")] == [[5, 7], [], [5, 7]]


def test_what_a_task_that_moved_had_is_what_the_controller_learns() -> None:
    bench = Bench(Scripted(HALF, NARROW), cycles=3)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        bench.comm.deliver(0)
        bench.has_decided(2)
        bench.loop.between_layers()
    bench.loop.finish()
    ((task, seconds),) = bench.controller.estimates.comp.recent
    assert (task, list(seconds)) == (Task.FORWARD, [Share(2), Share(1)])


def test_a_failure_is_raised_where_compute_is_held() -> None:
    bench = Bench(Scripted(HALF, NOTHING), cycles=3)
    bench.loop.start()

    def forward() -> None:
        with bench.loop.task(Task.FORWARD):
            bench.comm.deliver(0)
            bench.has_decided(2)
            bench.comm.events.put(CommFailed(error=ConnectionError("gave up")))
            bench.loop.between_layers()

    with pytest.raises(ConnectionError, match="gave up"):
        forward()
    bench.loop.finish()
    assert [record["task"] for record in bench.of("task")] == ["comm"]
    assert bench.comp_binding.is_restored


@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_after_a_refusal_compute_moves_no_more(side: str) -> None:
    bench = Bench(Scripted(WIDE, HALF, NARROW, NOTHING), cycles=5)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        getattr(bench, side).refusal = BindingRefusedError(1, "the kernel refused")
        for index in range(3):
            bench.comm.deliver(index)
            bench.has_decided(2 + index)
            bench.loop.between_layers()
    bench.loop.finish()
    assert len(bench.loop.binding_refusals) == 1


class World:
    """Cores that come and go as the test says."""

    def __init__(self) -> None:
        self.cores = frozenset(CORES)

    def usable(self, cores: frozenset[int]) -> frozenset[int]:
        return cores & self.cores


def bench_of(world: World, policy: str | Policy, cycles: int) -> Bench:
    bench = Bench(policy, cycles=cycles)
    bench.loop.cores = CoreCount(CORES, world.usable, bench.loop._clock)
    return bench


def count(bench: Bench) -> None:
    """As the scheduler thread does from time to time."""
    bench.loop._count_cores()


@pytest.mark.promise(number=23)
def test_where_cores_are_taken_away_both_sides_are_bound_to_what_is_left() -> None:
    world = World()
    bench = bench_of(world, "static:2", cycles=4)
    bench.loop.start()
    with bench.loop.task(Task.FORWARD):
        assert bench.order[-2:] == [("comm", (2, 3)), ("comp", (5, 7))]
        world.cores = frozenset({3, 7})
        count(bench)
        bench.loop.between_layers()
        assert bench.order[-2:] == [("comp", (7,)), ("comm", (3,))] or bench.order[-2:] == [("comm", (3,)), ("comp", (7,))]
        world.cores = frozenset(CORES)
        count(bench)
        bench.loop.between_layers()
        assert set(bench.order[-2:]) == {("comm", (2, 3)), ("comp", (5, 7))}
    bench.loop.finish()
    changes = [(record["before"], record["cores"]) for record in bench.of("cores-changed")]
    assert changes == [([2, 3, 5, 7], [3, 7]), ([3, 7], [2, 3, 5, 7])]
    assert bench.loop.cores.changes[0] == "from cores [2, 3, 5, 7] to [3, 7] after 0 cycles"
    assert bench.loop.binding_refusals == []


@pytest.mark.promise(number=23)
def test_with_one_core_left_training_has_it_and_the_run_comes_to_its_end() -> None:
    world = World()
    bench = bench_of(world, "static:1", cycles=3)
    bench.loop.start()
    world.cores = frozenset({5})
    count(bench)
    bench.comm.deliver(0, 1, 2)
    bench.train(3)
    bench.loop.finish()
    assert [record["task"] for record in bench.of("task")].count("backward") == 3
    assert {tuple(record["requested"]["comp"]) for record in bench.decisions()[2:]} <= {(5,), ()}


@pytest.mark.promise(number=23)
@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_a_mask_that_is_not_given_because_cores_have_gone_is_no_refusal(side: str) -> None:
    world = World()
    bench = bench_of(world, "static:2", cycles=3)
    bench.loop.start()
    world.cores = frozenset({2, 5, 7})
    binding = getattr(bench, side)
    binding.refusal = CoresGoneError(22, "core 3 is gone")
    binding.refusals_left = 1
    bench.comm.deliver(0, 1, 2)
    bench.train(3)
    count(bench)
    bench.loop.finish()
    assert bench.loop.binding_refusals == []
    assert len(bench.of("cores-changed")) == 1
    assert all(3 not in cores for _, cores in bench.order[-2:])


@pytest.mark.promise(number=23)
@pytest.mark.parametrize("side", ["comm_binding", "comp_binding"])
def test_a_mask_that_is_not_given_although_all_cores_are_there_is_a_refusal(side: str) -> None:
    bench = bench_of(World(), "static:2", cycles=3)
    getattr(bench, side).refusal = CoresGoneError(22, "something else")
    bench.loop.start()
    bench.comm.deliver(0, 1, 2)
    bench.train(3)
    count(bench)
    bench.loop.finish()
    assert bench.loop.binding_refusals == ["[Errno 22] something else"]
    assert bench.of("cores-changed") == []


@pytest.mark.promise(number=23)
def test_cores_that_go_after_everything_was_received_are_missed_as_well() -> None:
    world = World()
    bench = bench_of(world, "static:2", cycles=3)
    bench.loop.start()
    bench.comm.deliver(0, 1, 2)
    with bench.loop._changed:
        assert bench.loop._changed.wait_for(lambda: bench.loop.comm_has_ended, 10)
        assert bench.loop.cores.now == CORES
    world.cores = frozenset({5, 7})
    with bench.loop._changed:
        assert bench.loop._changed.wait_for(lambda: bench.loop.cores.now == (5, 7), 10), "nobody looks any more"
    bench.train(3)
    bench.loop.finish()
    assert bench.order[-1] == ("comp", (5, 7))
    assert bench.loop.cores.changes == ["from cores [2, 3, 5, 7] to [5, 7] after 0 cycles"]


@pytest.mark.promise(number=23)
def test_where_no_core_is_left_the_run_goes_on_unpinned_and_says_so() -> None:
    world = World()
    bench = bench_of(world, "static:2", cycles=3)
    bench.loop.start()
    world.cores = frozenset()
    count(bench)
    count(bench)
    assert bench.order[-1] == ("comm", CORES), "every mask that comm could have"
    world.cores = frozenset({2, 3})
    count(bench)
    bench.comm.deliver(0, 1, 2)
    bench.train(3)
    bench.loop.finish()
    assert bench.loop.binding_refusals == ["none of the cores [2, 3, 5, 7] is left to this process"]
    assert bench.order[-1] == ("comm", CORES)
    assert bench.comp_binding.is_restored
