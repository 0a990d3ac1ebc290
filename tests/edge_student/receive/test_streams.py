"""Several streams in one comm worker: batches are told of in order, and every stream wakes when it may go on."""

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
    """A source without a wire: `work(index)` happens for every batch, which is then marked in its slot."""

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
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def rings() -> Iterator[tuple[Ring, Ring]]:
    ours = Ring.create(RingShape(num_slots=4, batch_size=2, num_classes=3))
    theirs = Ring.attach(os.dup(ours.fd))
    yield ours, theirs
    ours.close()
    theirs.close()


def told(ours: socket.socket, count: int) -> list[BatchReceived]:
    heard = [messages.receive(ours)[0] for _ in range(count)]
    assert all(isinstance(message, BatchReceived) for message in heard)
    return heard  # type: ignore[return-value]


def start(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("num_streams", [1, 2, 3])
def test_all_batches_are_told_of_in_order_and_lie_in_their_slots(num_streams: int, pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (ours, theirs), (ring, their_ring) = pair, rings
    sums: list[int] = []
    sources = [Share(lambda index: time.sleep(0.002 * (index % 3))) for _ in range(num_streams)]
    thread = start(lambda: sums.append(receive_all(theirs, sources, their_ring, UseRing(start=5, stop=30))))  # type: ignore[arg-type]
    ring.set_consumed(5)
    messages.wake(ours)
    before = 0.0
    for index in range(5, 30):
        (message,) = told(ours, 1)
        assert message.index == index
        assert before <= message.started <= message.ended
        before = message.ended
        assert ring.slot(index).sample_ids.tolist() == [index, index]
        ring.set_consumed(index + 1)
        messages.wake(ours)
    thread.join(20)
    assert sums == [250]


def test_a_batch_that_comes_early_waits_for_those_before_it(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (ours, theirs), (_, their_ring) = pair, rings
    first_may_come, second_has_come = threading.Event(), threading.Event()

    def wait(index: int) -> None:
        assert first_may_come.wait(20)

    sources = [Share(wait), Share(lambda index: second_has_come.set())]
    start(lambda: receive_all(theirs, sources, their_ring, UseRing(start=0, stop=4)))  # type: ignore[arg-type]
    assert second_has_come.wait(20)
    ours.settimeout(0.05)
    with pytest.raises(TimeoutError):
        messages.receive(ours)
    ours.settimeout(20)
    first_may_come.set()
    assert [message.index for message in told(ours, 4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("num_streams", [2, 3, 4])
def test_where_slots_are_free_for_ever_no_two_streams_write_into_one(
    num_streams: int, pair: Pair, rings: tuple[Ring, Ring]
) -> None:
    """As in `calibrate`: four slots, or fewer than streams, and a trainer that needs none of them back."""
    (ours, theirs), (ring, their_ring) = pair, rings
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

    start(lambda: receive_all(theirs, [Share(write) for _ in range(num_streams)], their_ring, UseRing(start=0, stop=200)))  # type: ignore[arg-type, misc]
    assert [message.index for message in told(ours, 200)] == list(range(200))
    assert collisions == []


def test_a_stream_whose_siblings_are_behind_is_given_back(
    pair: Pair, rings: tuple[Ring, Ring], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher may have no stream left but this one, and a sibling waits for one."""
    (ours, theirs), (ring, their_ring) = pair, rings
    ring.set_consumed(1 << 60)
    monkeypatch.setattr(streams, "_STOP_TIMEOUT_S", 0.01)
    quick = Share()
    given_back = threading.Event()
    quick.release = given_back.set  # type: ignore[method-assign]
    starved = Share(lambda index: None if given_back.wait(20) else pytest.fail("never"))
    start(lambda: receive_all(theirs, [quick, starved], their_ring, UseRing(start=0, stop=8)))  # type: ignore[arg-type]
    assert [message.index for message in told(ours, 8)] == list(range(8))
    assert given_back.is_set()


def test_a_source_that_needs_all_before_gets_them(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (ours, theirs), (_, their_ring) = pair, rings
    came: list[int] = []

    def come_slowly(index: int) -> None:
        time.sleep(0.02)
        came.append(index)

    slow, quick = Share(come_slowly, barrier=2), Share(came.append, barrier=2)
    start(lambda: receive_all(theirs, [slow, quick], their_ring, UseRing(start=0, stop=4)))  # type: ignore[arg-type]
    told(ours, 4)
    assert set(came[:2]) == {0, 1}
    assert came[2:] == [2, 3]


def test_what_breaks_one_stream_ends_all(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (_, theirs), (_, their_ring) = pair, rings

    def fail(index: int) -> None:
        raise LinkLostError("gone")

    never = threading.Event()
    with pytest.raises(LinkLostError, match="gone"):
        receive_all(theirs, [Share(lambda index: never.wait(20) and None), Share(fail)], their_ring, UseRing(start=0, stop=9))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_waiting", [1, 2, 5])
def test_one_wake_is_enough_for_all_that_wait(num_waiting: int, pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (ours, theirs), (ring, their_ring) = pair, rings
    gate, passed = Gate(theirs, their_ring), threading.Semaphore(0)
    ring.set_held(True)
    for _ in range(num_waiting):
        start(lambda: (gate.wait_while_held(), passed.release()))
    time.sleep(0.05)
    messages.wake(ours)  # the ring has not changed: they look, and wait on
    time.sleep(0.05)
    assert not passed.acquire(blocking=False)
    ring.set_held(False)
    messages.wake(ours)
    assert all(passed.acquire(timeout=20) for _ in range(num_waiting))


def test_those_that_may_go_on_leave_those_that_may_not(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (ours, theirs), (ring, their_ring) = pair, rings
    gate, passed = Gate(theirs, their_ring), [threading.Event() for _ in range(3)]
    waits = [lambda number=number: (gate.wait_for_slot(4 + number), passed[number].set()) for number in (2, 1, 0)]
    for wait in waits:  # the one that waits longest listens first
        start(wait)
        time.sleep(0.02)
    for number in range(3):
        assert [event.is_set() for event in passed] == [earlier < number for earlier in range(3)]
        ring.set_consumed(number + 1)
        messages.wake(ours)
        assert passed[number].wait(20)


def test_the_end_of_the_other_process_reaches_everybody_who_waits(pair: Pair, rings: tuple[Ring, Ring]) -> None:
    (ours, theirs), (ring, their_ring) = pair, rings
    gate, ends = Gate(theirs, their_ring), threading.Semaphore(0)
    ring.set_held(True)

    def wait() -> None:
        with pytest.raises(PeerGone):
            gate.wait_while_held()
        ends.release()

    for _ in range(3):
        start(wait)
    time.sleep(0.05)
    ours.close()
    assert all(ends.acquire(timeout=20) for _ in range(3))
