"""Several streams in one comm worker: batches are reported in order, and every waiting stream resumes."""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edge_student.ipc import messages
from edge_student.ipc.messages import BatchReceived, PeerGone, UseRing
from edge_student.ipc.ring import Ring, RingShape, Slot
from edge_student.receive import streams
from edge_student.receive.receiver import Receiver
from edge_student.receive.retry import LinkLostError
from edge_student.receive.streams import Gate, receive_all

Pair = tuple[socket.socket, socket.socket]


class Share:
    """A source without a connection: calls `work(index)` for every batch, then marks the slot."""

    def __init__(self, work: Callable[[int], None] = lambda index: None, barrier: int | None = None) -> None:
        self.work, self.barrier = work, barrier
        self.receivers: list[Receiver] = []
        self.num_released = 0

    def release(self) -> None:
        self.num_released += 1

    def needs_all_before(self, index: int) -> bool:
        return self.barrier is not None and index >= self.barrier

    def receive(self, index: int, stop: int, slot: Slot, between_chunks: Callable[[], None]) -> int:
        between_chunks()
        self.work(index)
        slot.sample_ids[:] = index
        return 10


@pytest.fixture
def pair() -> Iterator[Pair]:
    local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    local.settimeout(20)
    yield local, remote
    local.close()
    remote.close()


@pytest.fixture
def rings() -> Iterator[tuple[Ring, Ring]]:
    local = Ring.create(RingShape(num_slots=4, batch_size=2, num_classes=3))
    remote = Ring.attach(os.dup(local.fd))
    yield local, remote
    local.close()
    remote.close()


def received(local: socket.socket, count: int) -> list[BatchReceived]:
    batches = [messages.receive(local)[0] for _ in range(count)]
    assert all(isinstance(message, BatchReceived) for message in batches)
    return batches  # type: ignore[return-value]


class WatchedCondition(threading.Condition):
    """Appends a thread to `waiting` whenever it starts to wait. The thread holds the lock then, so it misses no notification."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: queue.SimpleQueue[threading.Thread] = queue.SimpleQueue()

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting.put(threading.current_thread())
        return super().wait(timeout)


@pytest.fixture
def waiting_for_order(monkeypatch: pytest.MonkeyPatch) -> queue.SimpleQueue[threading.Thread]:
    """Return a queue that gets the thread of a stream of `receive_all` whenever it starts to wait for another stream."""
    changed = WatchedCondition()

    class WatchedReporter(streams.InOrderReporter):
        def __init__(self, control: socket.socket, start: int, num_streams: int) -> None:
            super().__init__(control, start, num_streams)
            self._changed = changed

    monkeypatch.setattr(streams, "InOrderReporter", WatchedReporter)
    return changed.waiting


class WatchedGate(Gate):
    """A gate that reports when all threads that called it are blocked: one reads the socket, the others wait for that thread."""

    def __init__(self, control: socket.socket, ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(control, ring)
        self._changed = self._watched = WatchedCondition()
        self._reading = threading.Semaphore(0)
        await_wake = messages.await_wake

        def watched(sock: socket.socket) -> None:
            self._reading.release()
            await_wake(sock)

        monkeypatch.setattr(messages, "await_wake", watched)

    def await_reader(self) -> None:
        assert self._reading.acquire(timeout=20)

    def await_waiting(self, num_threads: int) -> None:
        for _ in range(num_threads):
            self._watched.waiting.get(timeout=20)


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_all_batches_are_reported_in_order_and_lie_in_their_slots(num_streams: int, pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (local, remote), (ring, remote_ring) = pair, rings
    sums: list[int] = []
    has_come = {index: threading.Event() for index in range(5, 30)}

    def come(index: int) -> None:
        """The first stream receives its batch last: it waits for the batches of the other streams."""
        if (index - 5) % num_streams == 0:
            assert all(has_come[later].wait(20) for later in range(index + 1, min(index + num_streams, 30)))
        has_come[index].set()

    sources = [Share(come) for _ in range(num_streams)]
    thread = start(lambda: sums.append(receive_all(remote, sources, remote_ring, UseRing(start=5, stop=30))))  # type: ignore[arg-type]
    ring.set_consumed(5)
    messages.wake(local)
    before = 0.0
    for index in range(5, 30):
        (message,) = received(local, 1)
        assert message.index == index
        assert before <= message.started <= message.ended
        before = message.ended
        assert ring.slot(index).sample_ids.tolist() == [index, index]
        ring.set_consumed(index + 1)
        messages.wake(local)
    thread.join(20)
    assert sums == [250]


def test_an_early_batch_waits_for_the_batches_before_it(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (local, remote), (_, remote_ring) = pair, rings
    first_may_come, second_is_reported = threading.Event(), threading.Event()

    def wait(index: int) -> None:
        assert first_may_come.wait(20)

    def come(index: int) -> None:
        if index == 3:  # the stream has then reported batch 1
            second_is_reported.set()

    sources = [Share(wait), Share(come)]
    start(lambda: receive_all(remote, sources, remote_ring, UseRing(start=0, stop=4)))  # type: ignore[arg-type]
    assert second_is_reported.wait(20)
    local.settimeout(0)
    with pytest.raises(BlockingIOError):
        messages.receive(local)
    local.settimeout(20)
    first_may_come.set()
    assert [message.index for message in received(local, 4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("num_streams", [2, 3, 4])
def test_two_streams_never_write_to_one_slot_if_all_slots_are_free(num_streams: int, pair: Pair, rings: tuple[Ring, Ring]) -> None:
    """As in `calibrate`: four slots for any number of streams, and a trainer that never reuses a slot.

    The pauses vary the order of the streams. The result does not depend on them; the next test checks one order exactly.
    """
    (local, remote), (ring, remote_ring) = pair, rings
    ring.set_consumed(1 << 60)
    writing: set[int] = set()
    collisions: list[int] = []

    def write(index: int) -> None:
        slot = index % 4
        if slot in writing:
            collisions.append(index)
        writing.add(slot)
        time.sleep(0.0005 * (index % num_streams))
        writing.discard(slot)

    start(lambda: receive_all(remote, [Share(write) for _ in range(num_streams)], remote_ring, UseRing(start=0, stop=200)))  # type: ignore[arg-type, misc]
    assert [message.index for message in received(local, 200)] == list(range(200))
    assert collisions == []


@pytest.mark.parametrize(("num_streams", "early"), [(2, [1, 3]), (3, [1, 2]), (4, [1, 2, 3])])
def test_streams_wait_for_the_slot_of_an_unreported_batch(
    num_streams: int, early: list[int], pair: Pair, rings: tuple[Ring, Ring], waiting_for_order: queue.SimpleQueue[threading.Thread]
) -> None:
    """Batch 0 arrives only after all other streams wait. Until then they fill only the slots that batch 0 does not block."""
    (local, remote), (ring, remote_ring) = pair, rings
    ring.set_consumed(1 << 60)
    written: list[int] = []
    before_first: list[list[int]] = []

    def write(index: int) -> None:
        if index == 0:
            waiting: set[threading.Thread] = set()
            while len(waiting) < num_streams - 1:
                waiting.add(waiting_for_order.get(timeout=20))
            before_first.append(sorted(written))
        written.append(index)

    start(lambda: receive_all(remote, [Share(write) for _ in range(num_streams)], remote_ring, UseRing(start=0, stop=20)))  # type: ignore[arg-type, misc]
    assert [message.index for message in received(local, 20)] == list(range(20))
    assert before_first == [early]


def test_a_stream_is_released_if_other_streams_are_behind(
    pair: Pair, rings: tuple[Ring, Ring], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher may have no other stream slot, and another stream may wait for it."""
    (local, remote), (ring, remote_ring) = pair, rings
    ring.set_consumed(1 << 60)
    monkeypatch.setattr(streams, "_RELEASE_AFTER_S", 0.01)
    quick = Share()
    given_back = threading.Event()
    quick.release = given_back.set  # type: ignore[method-assign]
    starved = Share(lambda index: None if given_back.wait(20) else pytest.fail("never"))
    start(lambda: receive_all(remote, [quick, starved], remote_ring, UseRing(start=0, stop=8)))  # type: ignore[arg-type]
    assert [message.index for message in received(local, 8)] == list(range(8))
    assert given_back.is_set()


def test_a_source_can_wait_for_all_batches_before(
    pair: Pair, rings: tuple[Ring, Ring], waiting_for_order: queue.SimpleQueue[threading.Thread]
) -> None:
    (local, remote), (_, remote_ring) = pair, rings
    arrived: list[int] = []

    def arrive_late(index: int) -> None:
        if index == 0:  # arrives only after the other stream waits before batch 3
            waiting_for_order.get(timeout=20)
        arrived.append(index)

    slow, quick = Share(arrive_late, barrier=2), Share(arrived.append, barrier=2)
    start(lambda: receive_all(remote, [slow, quick], remote_ring, UseRing(start=0, stop=4)))  # type: ignore[arg-type]
    received(local, 4)
    assert arrived[:2] == [1, 0]
    assert sorted(arrived[2:]) == [2, 3]


def test_an_error_of_one_stream_ends_all(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (_, remote), (_, remote_ring) = pair, rings

    def fail(index: int) -> None:
        raise LinkLostError("gone")

    never = threading.Event()
    with pytest.raises(LinkLostError, match="gone"):
        receive_all(remote, [Share(lambda index: never.wait(20) and None), Share(fail)], remote_ring, UseRing(start=0, stop=9))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_waiting", [1, 2, 5])
def test_one_wake_reaches_all_waiting_threads(
    num_waiting: int, pair: Pair, rings: tuple[Ring, Ring], monkeypatch: pytest.MonkeyPatch
) -> None:
    (local, remote), (ring, remote_ring) = pair, rings
    gate, passed = WatchedGate(remote, remote_ring, monkeypatch), threading.Semaphore(0)
    ring.set_held(True)
    for _ in range(num_waiting):
        start(lambda: (gate.wait_while_held(), passed.release()))
    for _ in range(2):
        gate.await_reader()
        gate.await_waiting(num_waiting - 1)
        assert not passed.acquire(blocking=False)
        messages.wake(local)  # the ring has not changed: the threads keep waiting
    gate.await_reader()
    gate.await_waiting(num_waiting - 1)
    assert not passed.acquire(blocking=False)
    ring.set_held(False)
    messages.wake(local)
    assert all(passed.acquire(timeout=20) for _ in range(num_waiting))


def test_only_threads_with_a_free_slot_resume(pair: Pair, rings: tuple[Ring, Ring], monkeypatch: pytest.MonkeyPatch) -> None:
    (local, remote), (ring, remote_ring) = pair, rings
    gate, passed = WatchedGate(remote, remote_ring, monkeypatch), [threading.Event() for _ in range(3)]

    def wait(number: int) -> None:
        gate.wait_for_slot(4 + number)
        passed[number].set()

    start(lambda: wait(2))  # the thread that waits longest reads the socket
    gate.await_reader()
    start(lambda: wait(1))
    start(lambda: wait(0))
    gate.await_waiting(2)
    for number in range(3):
        assert [event.is_set() for event in passed] == [earlier < number for earlier in range(3)]
        ring.set_consumed(number + 1)
        messages.wake(local)
        assert passed[number].wait(20)
        if number < 2:  # all later threads have read the ring again
            gate.await_reader()
            gate.await_waiting(1 - number)


def test_the_exit_of_the_peer_reaches_all_waiting_threads(
    pair: Pair, rings: tuple[Ring, Ring], monkeypatch: pytest.MonkeyPatch
) -> None:
    (local, remote), (ring, remote_ring) = pair, rings
    gate, ends = WatchedGate(remote, remote_ring, monkeypatch), threading.Semaphore(0)
    ring.set_held(True)

    def wait() -> None:
        with pytest.raises(PeerGone):
            gate.wait_while_held()
        ends.release()

    for _ in range(3):
        start(wait)
    gate.await_reader()
    gate.await_waiting(2)
    local.close()
    assert all(ends.acquire(timeout=20) for _ in range(3))
