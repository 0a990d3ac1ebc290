"""Connections that the edge gives up are closed. Otherwise each rejected chunk would occupy one of the teacher's streams."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from mischief import BATCH_BYTES, DATASET, PACE, PUBLIC_BATCH, World, kill_teacher, serve
from processes import TeacherProcess, student_command, teacher, wait_until
from proxy import Proxy
from proxy_script import Counts

from edge_student.ipc.messages import Configure
from edge_student.ipc.ring import RingShape, Slot
from edge_student.receive.description import RequestRefusedError
from edge_student.receive.receiver import Receiver
from edgekd.v1 import teacher_pb2_grpc

pytestmark = pytest.mark.slow

NUM_TIMES = 20


def connections_to(port: int) -> int:
    """Return the open connections of this process."""
    return sum(bool(found.raddr) and found.raddr.port == port for found in psutil.Process().net_connections("tcp"))


@pytest.mark.parametrize("end", [Receiver.close, Receiver.release], ids=["closed", "released"])
def test_a_stream_that_is_given_up_in_its_middle_is_gone(end: Callable[[Receiver], None], fast_teacher: TeacherProcess) -> None:
    options = {"teacher": fast_teacher.address, "batch_size": 4, "seed": 0, "encoding": "float32", "top_k": 0, "window": 64}
    receiver = Receiver(
        Configure(**options, max_wait_s=10.0, log_level="error", niceness=0, is_idle=False), lambda cause, attempt: None
    )
    receiver.describe()
    receiver.close()
    slot = Slot.empty(RingShape(num_slots=1, batch_size=4, num_classes=10))
    for index in range(NUM_TIMES):
        receiver.receive(index, 1000, slot, lambda: None)
        end(receiver)
    assert connections_to(fast_teacher.port) == 0


def test_a_teacher_that_is_ruled_out_in_mid_stream_keeps_no_connection(fast_teacher: TeacherProcess) -> None:
    """The first answer is valid, and the teacher then refuses for good. The next of three continues; none is skipped."""
    asked: list[str] = []
    options = {"batch_size": 4, "seed": 0, "encoding": "float32", "top_k": 0, "window": 2, "max_wait_s": 10.0}
    with (
        contextlib.closing(Refusing(fast_teacher.address)) as one,
        contextlib.closing(Refusing(fast_teacher.address)) as two,
    ):
        addresses = f"{one.address},{two.address},{fast_teacher.address}"
        receiver = Receiver(
            Configure(teacher=addresses, **options, log_level="error", niceness=0, is_idle=False),
            lambda cause, attempt: asked.append(cause),
        )
        receiver.describe()
        slot = Slot.empty(RingShape(num_slots=1, batch_size=4, num_classes=10))
        for index in range(6):
            receiver.receive(index, 1000, slot, lambda: None)
        assert [connections_to(each.port) for each in (one, two)] == [0, 0]
        assert [cause.partition(": ")[0] for cause in asked] == [f"teacher {one.address}", f"teacher {two.address}"]
        assert all("FAILED_PRECONDITION" in cause and "not used any more" in cause for cause in asked)
        receiver.close()
    assert connections_to(fast_teacher.port) == 0


class Refusing(teacher_pb2_grpc.TeacherServicer):
    """Forwards one message of the teacher and then refuses."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._teacher = teacher_pb2_grpc.TeacherStub(self._channel)
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        teacher_pb2_grpc.add_TeacherServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def Describe(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._teacher.Describe(request, timeout=20)

    def StreamLogits(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield next(self._teacher.StreamLogits(request, timeout=20))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "scripted")

    def close(self) -> None:
        self._server.stop(grace=None).wait()
        self._channel.close()


def test_a_token_that_is_being_replaced_is_no_reason_to_end(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a" * 32)
    with teacher(tmp_path / "store", "--token-file", str(token)) as serving:
        options = {"teacher": serving.address, "batch_size": 4, "seed": 0, "encoding": "float32", "top_k": 0, "window": 1}
        receiver = Receiver(
            Configure(**options, max_wait_s=10.0, log_level="error", niceness=0, is_idle=False, token_file=str(token)),
            lambda cause, attempt: None,
        )
        receiver.describe()
        slot = Slot.empty(RingShape(num_slots=1, batch_size=4, num_classes=10))
        for index, content in enumerate(["a" * 32, "", "short", "a" * 32]):
            token.write_text(content)
            receiver.receive(index, 4, slot, lambda: None)
        token.unlink()
        receiver.receive(4, 5, slot, lambda: None)
        receiver.close()
    assert receiver.num_reconnects == 0


def test_a_worker_whose_teacher_goes_and_comes_back_has_one_connection(tmp_path: Path) -> None:
    """The gRPC of a comm worker runs only while a thread waits for a chunk. A connection that is open then would stay open."""
    serving = serve(tmp_path)
    with Proxy(serving.port, weather=PACE) as proxy:
        flags = ("--private", f"{DATASET}:private", "--public-batch", str(PUBLIC_BATCH), "--cycles", "100000", "--streams", "1")
        world = World(tmp_path, serving, proxy, student_command(proxy.address, tmp_path / "run", *flags), seed=0)
        try:
            for _ in range(2):
                proxy.wait_until(has_given_more(proxy.counts.bytes_given))
                kill_teacher(world)
                # Until then, what the edge reads may be what the killed teacher had sent.
                wait_until(lambda: is_connected(world.serving))
                proxy.wait_until(has_given_more(proxy.counts.bytes_given))
                worker = psutil.Process(world.pids["comm worker"])
                assert len(worker.net_connections("tcp")) == 1
        finally:
            world.close()


def is_connected(serving: TeacherProcess) -> bool:
    return any(each.status == psutil.CONN_ESTABLISHED for each in psutil.Process(serving.process.pid).net_connections("tcp"))


def has_given_more(before: int) -> Callable[[Counts], bool]:
    return lambda counts: counts.bytes_given > before + 10 * BATCH_BYTES


def test_a_token_that_is_replaced_at_the_teacher_first_is_waited_for(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        path.write_text("a" * 32)

    def hear(cause: str, attempt: int) -> None:
        causes.append(cause)
        ours.write_text("b" * 40)  # the edge's turn, as soon as it was refused

    causes: list[str] = []
    with teacher(tmp_path / "store", "--token-file", str(theirs)) as serving:
        options = {"teacher": serving.address, "batch_size": 4, "seed": 0, "encoding": "float32", "top_k": 0, "window": 1}
        config = Configure(**options, max_wait_s=20.0, log_level="error", niceness=0, is_idle=False, token_file=str(ours))
        receiver = Receiver(config, hear)
        receiver.describe()
        slot = Slot.empty(RingShape(num_slots=1, batch_size=4, num_classes=10))
        receiver.receive(0, 4, slot, lambda: None)
        theirs.write_text("b" * 40)
        receiver.receive(1, 4, slot, lambda: None)
        receiver.close()
        ours.write_text("c" * 32)
        with pytest.raises(RequestRefusedError, match="the token is not this server's"):
            Receiver(config, lambda cause, attempt: None).describe()  # who begins so has a wrong one
    assert len(causes) == 1
    assert "UNAUTHENTICATED" in causes[0]
