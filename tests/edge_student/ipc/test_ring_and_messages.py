"""The memory and the words between the trainer's process and the comm worker."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from edge_student.ipc import messages
from edge_student.ipc.messages import BatchReceived, PeerGone, UseRing, Wake
from edge_student.ipc.ring import Ring, RingShape

SHAPE = RingShape(num_slots=3, batch_size=4, num_classes=5)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_what_one_mapping_writes_the_other_reads() -> None:
    writer = Ring.create(SHAPE)
    reader = Ring.attach(os.dup(writer.fd))
    writer.logits(7)[:] = np.arange(20).reshape(4, 5)
    writer.slot(7).sample_ids[:] = [4, 3, 2, 1]
    assert np.array_equal(reader.logits(7), np.arange(20).reshape(4, 5))
    assert reader.slot(7).sample_ids.tolist() == [4, 3, 2, 1]
    assert np.array_equal(reader.logits(7), reader.logits(4)), "batch 4 has the same slot of three"
    assert not np.array_equal(reader.logits(7), reader.logits(5))
    writer.close()
    reader.close()


def test_slots_and_sample_ids_do_not_overlap() -> None:
    ring = Ring.create(SHAPE)
    for slot in range(SHAPE.num_slots):
        ring.logits(slot)[:] = slot + 1
        ring.slot(slot).sample_ids[:] = -slot
    for slot in range(SHAPE.num_slots):
        assert set(ring.logits(slot).ravel()) == {slot + 1}
        assert set(ring.slot(slot).sample_ids) == {-slot}
    assert not ring.is_held
    assert ring.num_consumed == 0
    ring.close()


def test_a_slot_is_free_once_its_last_batch_was_consumed() -> None:
    ring = Ring.create(SHAPE)
    assert [ring.has_slot_for(index) for index in (0, 2, 3)] == [True, True, False]
    ring.set_consumed(1)
    assert [ring.has_slot_for(index) for index in (3, 4)] == [True, False]
    ring.close()


def test_the_hold_flag_is_seen_by_the_other_mapping() -> None:
    ours = Ring.create(SHAPE)
    theirs = Ring.attach(os.dup(ours.fd))
    ours.set_held(True)
    assert theirs.is_held
    ours.set_held(False)
    assert not theirs.is_held
    ours.close()
    theirs.close()


def test_a_descriptor_that_is_no_ring_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 1 << 16)
    with pytest.raises(ValueError, match=r"not an EdgeKD ring|at least one"):
        Ring.attach(fd)
    os.close(fd)


def test_a_ring_needs_a_size() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RingShape(num_slots=0, batch_size=1, num_classes=1)


def test_a_message_arrives_as_it_was_sent_with_its_descriptor(pair) -> None:
    ours, theirs = pair
    ring = Ring.create(SHAPE)
    messages.send(ours, UseRing(start=2, stop=9), fds=(ring.fd,))
    batch = BatchReceived(index=3, started=1.5, ended=2.25, cpu_s=0.5, busy_s=0.6, num_bytes=7)
    messages.send(ours, batch)
    message, fds = messages.receive(theirs)
    assert message == UseRing(start=2, stop=9)
    assert Ring.attach(fds[0]).shape == SHAPE
    assert messages.receive(theirs) == (batch, [])
    os.close(fds[0])
    ring.close()


def test_the_end_of_the_peer_is_an_error_of_its_own(pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(PeerGone):
        messages.receive(ours)
    with pytest.raises(PeerGone):
        messages.send(ours, Wake())
    messages.wake(ours)  # nobody is left to wake, which is nobody's fault


def test_wakes_that_nobody_reads_never_block_the_trainer(pair) -> None:
    ours, theirs = pair
    for _ in range(10_000):
        messages.wake(ours)
    assert messages.receive(theirs) == (Wake(), [])


def test_the_last_words_of_a_peer_that_left_wakes_unread_are_still_heard(pair) -> None:
    ours, theirs = pair
    messages.wake(ours)
    messages.send(theirs, Wake())
    theirs.close()
    assert messages.receive(ours) == (Wake(), [])
    with pytest.raises(PeerGone):
        messages.receive(ours)


def test_a_comm_worker_whose_parent_died_before_it_asked_ends_by_itself(pair) -> None:
    _, theirs = pair
    theirs.set_inheritable(True)
    command = [sys.executable, "-m", "edge_student.receive.worker", str(theirs.fileno())]
    orphan = subprocess.run([*command, "1"], pass_fds=[theirs.fileno()], timeout=30, check=False)
    assert orphan.returncode == 1


def test_a_comm_worker_started_by_hand_says_what_it_is() -> None:
    command = [sys.executable, "-m", "edge_student.receive.worker"]
    by_hand = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert by_hand.returncode == 2
    assert "started by edge-student" in by_hand.stderr


def test_inputs_have_a_place_of_their_own_in_every_slot() -> None:
    shape = RingShape(num_slots=3, batch_size=4, num_classes=5, logit_bytes=2, input_shape=(3, 2, 7))
    writer = Ring.create(shape)
    reader = Ring.attach(os.dup(writer.fd))
    assert reader.shape == shape
    for index in range(3):
        slot = writer.slot(index)
        slot.sample_ids[:], slot.logits[:], slot.inputs[:] = -index, index + 0.5, 100 + index
    for index in range(3):
        slot = reader.slot(index)
        assert slot.inputs.shape == (4, 3, 2, 7)
        assert [set(part.ravel().tolist()) for part in slot] == [{-index}, {index + 0.5}, {100 + index}]
    writer.close()
    reader.close()
