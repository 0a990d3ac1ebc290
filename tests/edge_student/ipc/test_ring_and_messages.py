"""Shared memory and messages between the trainer's process and the comm worker."""

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
    local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield local, remote
    local.close()
    remote.close()


def test_both_mappings_share_memory() -> None:
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


def test_a_slot_is_free_after_its_last_batch_is_consumed() -> None:
    ring = Ring.create(SHAPE)
    assert [ring.has_slot_for(index) for index in (0, 2, 3)] == [True, True, False]
    ring.set_consumed(1)
    assert [ring.has_slot_for(index) for index in (3, 4)] == [True, False]
    ring.close()


def test_both_mappings_share_the_hold_flag() -> None:
    local = Ring.create(SHAPE)
    remote = Ring.attach(os.dup(local.fd))
    local.set_held(True)
    assert remote.is_held
    local.set_held(False)
    assert not remote.is_held
    local.close()
    remote.close()


def test_a_descriptor_that_is_not_a_ring_is_rejected() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 1 << 16)
    with pytest.raises(ValueError, match=r"not an EdgeKD ring|at least one"):
        Ring.attach(fd)
    os.close(fd)


def test_a_ring_needs_a_size() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RingShape(num_slots=0, batch_size=1, num_classes=1)


def test_a_message_arrives_as_it_was_sent_with_its_descriptor(pair) -> None:
    local, remote = pair
    ring = Ring.create(SHAPE)
    messages.send(local, UseRing(start=2, stop=9), fds=(ring.fd,))
    batch = BatchReceived(index=3, started=1.5, ended=2.25, cpu_s=0.5, busy_s=0.6, num_bytes=7)
    messages.send(local, batch)
    message, fds = messages.receive(remote)
    assert message == UseRing(start=2, stop=9)
    assert Ring.attach(fds[0]).shape == SHAPE
    assert messages.receive(remote) == (batch, [])
    os.close(fds[0])
    ring.close()


def test_the_exit_of_the_peer_raises_peer_gone(pair) -> None:
    local, remote = pair
    remote.close()
    with pytest.raises(PeerGone):
        messages.receive(local)
    with pytest.raises(PeerGone):
        messages.send(local, Wake())
    messages.wake(local)  # no error if the peer has exited


def test_unread_wakes_never_block_the_trainer(pair) -> None:
    local, remote = pair
    for _ in range(10_000):
        messages.wake(local)
    assert messages.receive(remote) == (Wake(), [])


def test_the_last_messages_of_a_peer_with_unread_wakes_are_received(pair) -> None:
    local, remote = pair
    messages.wake(local)
    messages.send(remote, Wake())
    remote.close()
    assert messages.receive(local) == (Wake(), [])
    with pytest.raises(PeerGone):
        messages.receive(local)


def test_a_comm_worker_exits_if_its_parent_exited_before_the_check(pair) -> None:
    _, remote = pair
    remote.set_inheritable(True)
    command = [sys.executable, "-m", "edge_student.receive.worker", str(remote.fileno())]
    orphan = subprocess.run([*command, "1"], pass_fds=[remote.fileno()], timeout=30, check=False)
    assert orphan.returncode == 1


def test_a_comm_worker_started_by_hand_prints_its_usage() -> None:
    command = [sys.executable, "-m", "edge_student.receive.worker"]
    by_hand = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert by_hand.returncode == 2
    assert "started by edge-student" in by_hand.stderr


def test_inputs_do_not_overlap_other_arrays_of_a_slot() -> None:
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
