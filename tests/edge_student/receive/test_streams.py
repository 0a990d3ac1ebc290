"""Several streams in one comm worker: batches are reported in order, and every waiting stream resumes."""

import os
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


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_all_batches_are_reported_in_order_and_lie_in_their_slots(num_streams: int, pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (local, remote), (ring, remote_ring) = pair, rings
    sums: list[int] = []
    sources = [Share(lambda index: time.sleep(0.002 * (index % 3))) for _ in range(num_streams)]
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
    first_may_come, second_has_come = threading.Event(), threading.Event()

    def wait(index: int) -> None:
        assert first_may_come.wait(20)

    sources = [Share(wait), Share(lambda index: second_has_come.set())]
    start(lambda: receive_all(remote, sources, remote_ring, UseRing(start=0, stop=4)))  # type: ignore[arg-type]
    assert second_has_come.wait(20)
    local.settimeout(0.05)
    with pytest.raises(TimeoutError):
        messages.receive(local)
    local.settimeout(20)
    first_may_come.set()
    assert [message.index for message in received(local, 4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("num_streams", [2, 3, 4])
def test_two_streams_never_write_to_one_slot_if_all_slots_are_free(num_streams: int, pair: Pair, rings: tuple[Ring, Ring]) -> None:
    """As in `calibrate`: four slots for any number of streams, and a trainer that never reuses a slot."""
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


def test_a_source_can_wait_for_all_batches_before(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (local, remote), (_, remote_ring) = pair, rings
    arrived: list[int] = []

    def arrive_slowly(index: int) -> None:
        time.sleep(0.02)
        arrived.append(index)

    slow, quick = Share(arrive_slowly, barrier=2), Share(arrived.append, barrier=2)
    start(lambda: receive_all(remote, [slow, quick], remote_ring, UseRing(start=0, stop=4)))  # type: ignore[arg-type]
    received(local, 4)
    assert set(arrived[:2]) == {0, 1}
    assert arrived[2:] == [2, 3]


def test_an_error_of_one_stream_ends_all(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (_, remote), (_, remote_ring) = pair, rings

    def fail(index: int) -> None:
        raise LinkLostError("gone")

    never = threading.Event()
    with pytest.raises(LinkLostError, match="gone"):
        receive_all(remote, [Share(lambda index: never.wait(20) and None), Share(fail)], remote_ring, UseRing(start=0, stop=9))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_waiting", [1, 2, 5])
def test_one_wake_reaches_all_waiting_threads(num_waiting: int, pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (local, remote), (ring, remote_ring) = pair, rings
    gate, passed = Gate(remote, remote_ring), threading.Semaphore(0)
    ring.set_held(True)
    for _ in range(num_waiting):
        start(lambda: (gate.wait_while_held(), passed.release()))
    time.sleep(0.05)
    messages.wake(local)  # the ring has not changed: the threads keep waiting
    time.sleep(0.05)
    assert not passed.acquire(blocking=False)
    ring.set_held(False)
    messages.wake(local)
    assert all(passed.acquire(timeout=20) for _ in range(num_waiting))


def test_only_threads_with_a_free_slot_resume(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (local, remote), (ring, remote_ring) = pair, rings
    gate, passed = Gate(remote, remote_ring), [threading.Event() for _ in range(3)]
    waits = [lambda number=number: (gate.wait_for_slot(4 + number), passed[number].set()) for number in (2, 1, 0)]
    for wait in waits:  # the thread that waits longest reads the socket first
        start(wait)
        time.sleep(0.02)
    for number in range(3):
        assert [event.is_set() for event in passed] == [earlier < number for earlier in range(3)]
        ring.set_consumed(number + 1)
        messages.wake(local)
        assert passed[number].wait(20)


def test_the_exit_of_the_peer_reaches_all_waiting_threads(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (local, remote), (ring, remote_ring) = pair, rings
    gate, ends = Gate(remote, remote_ring), threading.Semaphore(0)
    ring.set_held(True)

    def wait() -> None:
        with pytest.raises(PeerGone):
            gate.wait_while_held()
        ends.release()

    for _ in range(3):
        start(wait)
    time.sleep(0.05)
    local.close()
    assert all(ends.acquire(timeout=20) for _ in range(3))
