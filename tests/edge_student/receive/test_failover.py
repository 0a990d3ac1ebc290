"""A hanging teacher, and the loss of one of several teachers: the edge detects it and resumes at the same batch."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from processes import events, read_until, student_command, teacher, train, weights
from scripted_teacher import NUM_CLASSES, NUM_SAMPLES, BreakStream, RunningTeacher, ScriptedTeacher, logits_of
from warm_start import start

from edge_student.ipc.messages import Configure
from edge_student.ipc.ring import Slot
from edge_student.receive.description import AccessDeniedError, RequestRefusedError
from edge_student.receive.receiver import Receiver
from edge_student.receive.retry import LinkLostError
from edge_student.receive.watchdog import Watchdog
from edgekd.v1 import teacher_pb2
from edgekd.wire.order import batch_ids

BATCH, CYCLES, SEED = 7, 8, 3


def configure(address: str, **changes: object) -> Configure:
    fields = {"batch_size": BATCH, "seed": SEED, "encoding": "float32", "top_k": 0, "window": 4, "max_wait_s": 20.0}
    return Configure(**{"teacher": address, "log_level": "info", "niceness": 0, "is_idle": False} | fields | changes)


class Session:
    """A receiver of all batches, and the failures that it reported."""

    def __init__(self, address: str, **changes: object) -> None:
        self.troubles: list[str] = []
        self.receiver = Receiver(configure(address, **changes), lambda cause, attempt: self.troubles.append(cause))

    def run(self) -> np.ndarray:
        """float32 [CYCLES, BATCH, classes]."""
        out = np.full((CYCLES, BATCH, NUM_CLASSES), np.nan, np.float32)
        try:
            self.receiver.describe()
            for index in range(CYCLES):
                slot = Slot(np.zeros(BATCH, np.int64), out[index], np.zeros((BATCH, 0, 0, 0), np.uint8))
                self.receiver.receive(index, CYCLES, slot, lambda: None)
        finally:
            self.receiver.close()
        return out


def expected() -> np.ndarray:
    return np.stack([logits_of(batch_ids(SEED, NUM_SAMPLES, BATCH, index)) for index in range(CYCLES)])


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """An event that only the end of the test sets."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.promise(number=4)
def test_the_stream_of_a_hanging_teacher_is_cancelled_and_requested_again(never: threading.Event) -> None:
    def hang(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        never.wait()
        return []

    scripted = ScriptedTeacher({10: hang})
    with RunningTeacher(scripted) as running:
        session = Session(running.address, max_silence_s=0.5)
        assert np.array_equal(session.run(), expected())
        never.set()
    (trouble,) = session.troubles
    assert "connected, but sent no data for 0.5 s" in trouble
    assert [request.start for request in scripted.requests] == [0, 3, 7]  # chunk 10 was the second of batch 3's three


@pytest.mark.promise(number=4)
def test_a_silent_teacher_ends_the_run_with_the_cause(never: threading.Event) -> None:
    def hang(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        never.wait()
        return []

    with RunningTeacher(ScriptedTeacher(dict.fromkeys(range(40), hang))) as running:
        session = Session(running.address, max_silence_s=0.3, max_wait_s=0.5)
        with pytest.raises(LinkLostError, match=r"gave up after 0.5 s without success: .*sent no data for 0.3 s"):
            session.run()
        never.set()


class Call:
    """A call that a watchdog can cancel."""

    def __init__(self) -> None:
        self.is_cancelled = threading.Event()

    def cancel(self) -> bool:
        self.is_cancelled.set()
        return True


def test_a_watchdog_never_cancels_a_finished_call() -> None:
    dog, ended, hanging = Watchdog(0.05), Call(), Call()
    dog.begin(ended)
    dog.end()
    dog.begin(hanging)  # its cancellation shows that the watchdog has checked since
    assert hanging.is_cancelled.wait(20)
    assert dog.has_fired
    assert not ended.is_cancelled.is_set()
    dog.close()


def test_the_thread_of_a_watchdog_ends_at_close() -> None:
    before = set(threading.enumerate())  # the watchdog of an earlier test may still be exiting
    dog = Watchdog(60.0)
    dog.begin(Call())
    (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "watchdog"]
    dog.close()
    thread.join(20)
    assert not thread.is_alive()


def breaks(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
    raise BreakStream(grpc.StatusCode.UNAVAILABLE)


@pytest.mark.promise(number=25)
def test_after_a_broken_stream_the_next_teacher_resumes_at_the_same_batch() -> None:
    first, second = ScriptedTeacher({4: breaks}), ScriptedTeacher()
    with RunningTeacher(first) as one, RunningTeacher(second) as two:
        session = Session(f"{one.address},{two.address}")
        assert np.array_equal(session.run(), expected())
    assert [request.start for request in first.requests] == [0]
    assert [request.start for request in second.requests] == [1, 5]
    assert len(session.troubles) == 1


def test_an_absent_teacher_is_skipped() -> None:
    with RunningTeacher(ScriptedTeacher()) as gone:
        no_teacher = gone.address
    with RunningTeacher(ScriptedTeacher()) as there:
        session = Session(f"{no_teacher},{there.address}")
        assert np.array_equal(session.run(), expected())
    assert f"no server listens at {no_teacher}" in session.troubles[0]


@pytest.mark.promise(number=17)
def test_a_teacher_with_other_logits_is_excluded_and_logits_are_not_mixed() -> None:
    def foreign(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        raise BreakStream(grpc.StatusCode.FAILED_PRECONDITION)

    first, other = ScriptedTeacher({4: breaks, 5: breaks}), ScriptedTeacher({0: foreign})
    with RunningTeacher(first) as one, RunningTeacher(other) as two:
        session = Session(f"{one.address},{two.address}")
        assert np.array_equal(session.run(), expected())
    assert len(other.requests) == 1
    assert "FAILED_PRECONDITION" in session.troubles[1]
    assert "is not used any more" in session.troubles[1]


class Guarded(ScriptedTeacher):
    """Denies access at first, as a teacher whose token was replaced before the edge's token."""

    num_asked = 0

    def Describe(self, request: teacher_pb2.DescribeRequest, context: grpc.ServicerContext) -> teacher_pb2.DescribeResponse:
        self.num_asked += 1
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not this server's")
        raise AssertionError


@pytest.mark.promise(number=25)
def test_a_teacher_that_denied_access_is_used_again_when_it_is_needed() -> None:
    first, second = Guarded(), ScriptedTeacher({4: breaks})
    with RunningTeacher(first) as one, RunningTeacher(second) as two:
        session = Session(f"{one.address},{two.address}")
        assert np.array_equal(session.run(), expected())
    assert first.num_asked == 1
    assert [request.start for request in second.requests] == [0]
    assert [request.start for request in first.requests] == [1, 5], "it grants access by now"
    assert "UNAUTHENTICATED" in session.troubles[0]


@pytest.mark.promise(number=18)
def test_if_every_teacher_denies_access_the_error_is_final() -> None:
    with RunningTeacher(Guarded()) as one, RunningTeacher(Guarded()) as two:
        session = Session(f"{one.address},{two.address}")
        with pytest.raises(AccessDeniedError, match=f"{two.address}: UNAUTHENTICATED"):
            session.run()
    assert len(session.troubles) == 1


@pytest.mark.promise(number=25)
def test_a_teacher_that_is_redeployed_behind_a_proxy_is_retried() -> None:
    def not_found(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        raise BreakStream(grpc.StatusCode.UNIMPLEMENTED)  # gRPC's code for a proxy's 404

    with RunningTeacher(ScriptedTeacher({4: not_found, 5: not_found})) as running:
        session = Session(running.address)
        assert np.array_equal(session.run(), expected())
    assert len(session.troubles) == 2


def test_if_every_teacher_rejects_the_request_the_last_error_is_raised() -> None:
    with RunningTeacher(ScriptedTeacher(protocol_version=7)) as one, RunningTeacher(ScriptedTeacher(protocol_version=8)) as two:
        session = Session(f"{one.address},{two.address}")
        with pytest.raises(RequestRefusedError, match=f"{two.address} has protocol version 8"):
            session.run()


def test_streams_start_at_different_teachers() -> None:
    first, second = ScriptedTeacher(), ScriptedTeacher()
    with RunningTeacher(first) as one, RunningTeacher(second) as two:
        receiver = Receiver(configure(f"{one.address},{two.address}"), lambda cause, attempt: None)
        receiver.describe()
        receivers = receiver.divide(2)
        for index, each in enumerate(receivers):
            slot = Slot(np.zeros(BATCH, np.int64), np.empty((BATCH, NUM_CLASSES), np.float32), np.zeros((BATCH, 0, 0, 0), np.uint8))
            each.receive(index, CYCLES, slot, lambda: None)
            each.close()
    assert [request.start for request in first.requests] == [0]
    assert [request.start for request in second.requests] == [1]


@pytest.mark.slow
@pytest.mark.promise(number=25)
def test_a_run_survives_the_loss_of_one_teacher_with_the_same_result(tmp_path: Path) -> None:
    flags = ("--policy", "os-default", "--cycles", "500", "--torch-threads", "1", "--prefetch", "2", "--window", "3")
    with teacher(tmp_path / "store") as one, teacher(tmp_path / "store2") as two:
        train(one.address, tmp_path / "alone", *flags)
        command = student_command(f"{one.address},{two.address}", tmp_path / "out", *flags)
        student = start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            read_until(student, "150 of 500")
            one.kill()
            output = student.communicate(timeout=120)[1]
        finally:
            student.kill()
            student.wait()
    assert student.returncode == 0, output
    assert "error" not in output.lower()
    assert "attempt 1 failed" in output
    assert weights(tmp_path / "out") == weights(tmp_path / "alone")
    assert [record["index"] for record in events(tmp_path / "out") if record.get("task") == "comm"] == list(range(500))
