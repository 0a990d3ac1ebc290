"""The edge and untrusted teachers: invalid values, garbage, bombs and replays are rejected with a cause, and never trained on."""

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from scripted_teacher import NUM_CLASSES, Fault, RunningTeacher, ScriptedTeacher, broken
from test_receiver import BATCH, NO_INPUTS, configure, expected, receive_all

from edge_student.ipc.ring import Slot
from edge_student.receive.description import RequestRefusedError
from edge_student.receive.receiver import BadTeacherError, LinkLostError, Receiver
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import checksum
from edgekd.wire.limits import server_options

MiB = 1 << 20
STREAM = "StreamLogits"


def with_bytes_at(at: int, content: bytes) -> Fault:
    """Return a fault that changes the payload at `at` and corrects its checksum."""

    def fault(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        payload = bytearray(chunk.payload)
        payload[at : at + len(content)] = content
        chunk.payload = bytes(payload)
        chunk.crc32 = checksum(chunk.payload)
        return [chunk]

    return fault


def float32(value: float) -> bytes:
    return np.float32(value).tobytes()


POISON = [
    ("float32", 0, 4, float32(np.nan)),
    ("float32", 0, 4, float32(np.inf)),
    ("float32", 0, 16, float32(-np.inf)),
    ("float16", 0, 2, np.float16(np.nan).tobytes()),
    ("float16", 0, 0, np.float16(np.inf).tobytes()),
    ("float16", 0, 8, np.float16(-np.inf).tobytes()),
    ("int8", 0, 0, float32(np.nan)),
    ("int8", 0, 0, float32(np.inf)),
    ("int8", 0, 0, float32(-1.0)),
    ("int8", 0, 0, float32(3e38)),
    ("int8", 0, 5, b"\x80"),
    ("topk", 2, 0, float32(np.nan)),
    ("topk", 2, 0, float32(-np.inf)),
    ("topk", 2, 12, float32(np.nan)),
    ("topk", 2, 16, float32(np.inf)),
    ("topk", 2, 4, (7).to_bytes(4, "little")),
]


@pytest.mark.promise(number=10)
@pytest.mark.parametrize(("encoding", "top_k", "at", "content"), POISON, ids=str)
def test_invalid_values_in_any_encoding_are_rejected_and_the_batch_requested_again(
    encoding: str, top_k: int, at: int, content: bytes
) -> None:
    sound, _, _ = receive_all(ScriptedTeacher(), encoding=encoding, top_k=top_k)
    poisoned = ScriptedTeacher({4: with_bytes_at(at, content)})
    out, receiver, troubles = receive_all(poisoned, encoding=encoding, top_k=top_k)
    assert np.array_equal(out, sound)
    assert np.isfinite(out).all()
    assert (receiver.num_refused_chunks, len(troubles)) == (1, 1)
    assert "rejected a chunk: batch 1: payload " in troubles[0]


@pytest.mark.promise(number=10)
def test_a_teacher_that_sends_only_invalid_values_ends_the_run() -> None:
    teacher = ScriptedTeacher(dict.fromkeys(range(100), with_bytes_at(0, float32(np.nan))))
    with pytest.raises(BadTeacherError, match=r"^rejected 5 chunks of one batch, the last one: batch 0: payload holds a NaN"):
        receive_all(teacher, encoding="topk", top_k=2)


@pytest.mark.promise(number=9)
def test_reordered_chunks_are_requested_again() -> None:
    kept: list[teacher_pb2.LogitsChunk] = []
    later: dict[int, Fault] = {4: lambda chunk: kept.append(chunk) or [], 5: lambda chunk: [chunk, kept.pop()]}  # type: ignore[func-returns-value, dict-item]
    out, receiver, troubles = receive_all(ScriptedTeacher(later))
    assert np.array_equal(out, expected())
    assert receiver.num_refused_chunks == 1
    assert "must start at row" in troubles[0]


@pytest.mark.promise(number=9)
def test_duplicate_batches_are_dropped_and_counted() -> None:
    seen: list[teacher_pb2.LogitsChunk] = []

    def remember(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        seen.append(chunk)
        return [chunk]

    def replay(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        return [*seen, chunk, *seen]

    out, receiver, troubles = receive_all(ScriptedTeacher({**dict.fromkeys(range(6), remember), 6: replay}))
    assert np.array_equal(out, expected())
    assert (receiver.num_duplicate_chunks, troubles) == (12, [])


class UntrustedServer(grpc.GenericRpcHandler):
    """A server that answers Describe correctly, or with `answer`, and starts its n-th stream with the messages of `send`."""

    def __init__(self, send: Callable[[int, grpc.ServicerContext], Iterator[bytes]], answer: bytes | None = None) -> None:
        self._send, self._answer = send, answer
        self._sound = ScriptedTeacher()
        self.num_requests = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method.endswith(STREAM):
            return grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(self._describe)

    def _describe(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        sound = self._sound.Describe(teacher_pb2.DescribeRequest(), context).SerializeToString()
        return sound if self._answer is None else self._answer

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.num_requests += 1
        yield from self._send(self.num_requests, context)
        for chunk in self._sound.StreamLogits(teacher_pb2.StreamLogitsRequest.FromString(request), context):
            yield chunk.SerializeToString()


@contextmanager
def serving(handler: UntrustedServer) -> Iterator[str]:
    """Serve on a free port, without the send limits of the teacher's server."""
    unlimited = {"grpc.max_send_message_length": -1, "grpc.max_metadata_size": MiB, "grpc.absolute_max_metadata_size": MiB}
    options = {**dict(server_options()), **unlimited}
    del options["grpc.compression_enabled_algorithms_bitset"]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=list(options.items()))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None).wait()


def receive_one(address: str, **changes: object) -> tuple[np.ndarray, Receiver, list[str]]:
    """Return the first batch, the receiver, and the reported failures."""
    troubles: list[str] = []
    receiver = Receiver(configure(address, **changes), lambda cause, attempt: troubles.append(cause))
    out = np.full((BATCH, NUM_CLASSES), np.nan, np.float32)
    try:
        receiver.describe()
        receiver.receive(0, 1, Slot(np.zeros(BATCH, np.int64), out, NO_INPUTS), lambda: None)
    finally:
        receiver.close()
    return out, receiver, troubles


def garbage(context: grpc.ServicerContext) -> Iterator[bytes]:
    yield b"\xff" * 100


def half_a_message(context: grpc.ServicerContext) -> Iterator[bytes]:
    yield teacher_pb2.LogitsChunk(payload=bytes(1000)).SerializeToString()[:500]


def nothing(context: grpc.ServicerContext) -> Iterator[bytes]:
    yield b""


def too_large(context: grpc.ServicerContext) -> Iterator[bytes]:
    yield bytes(8 * MiB)


def bomb(context: grpc.ServicerContext) -> Iterator[bytes]:
    context.set_compression(grpc.Compression.Gzip)
    yield bytes(128 * MiB)


def large_metadata(context: grpc.ServicerContext) -> Iterator[bytes]:
    context.send_initial_metadata((("x-big", "a" * 20_000),))
    yield b""


def large_trailer(context: grpc.ServicerContext) -> Iterator[bytes]:
    context.set_trailing_metadata((("x-big", "a" * 20_000),))
    context.abort(grpc.StatusCode.UNAVAILABLE, "later")
    yield b""


def traceback(context: grpc.ServicerContext) -> Iterator[bytes]:
    context.abort(grpc.StatusCode.INTERNAL, "Traceback (most recent call last):\n\x1b[2J\u202e" + "x" * 3000)
    yield b""


ANSWER_ERRORS = {
    garbage: r"^rejected a chunk: batch 0: a message of 100 bytes is not a LogitsChunk$",
    half_a_message: r"^rejected a chunk: batch 0: a message of 500 bytes is not a LogitsChunk$",
    nothing: r"^rejected a chunk: batch 0: num_rows is 0, must be in 1 .. 7 at row 0 of 7$",
    too_large: r"RESOURCE_EXHAUSTED: .*larger than max",
    bomb: r"(UNIMPLEMENTED|INTERNAL): .*Compression algorithm 'gzip' is disabled",
    large_metadata: r"RESOURCE_EXHAUSTED: .*metadata size exceeds",
    large_trailer: r"(RESOURCE_EXHAUSTED|UNAVAILABLE): ",
    traceback: r"INTERNAL: Traceback \(most recent call last\):\\n\\x1b\[2J\\u202ex{400,}\.\.\.$",
}


@pytest.mark.promise(number=11)
@pytest.mark.parametrize("send", [send for send in ANSWER_ERRORS if send is not bomb], ids=lambda send: send.__name__)
def test_one_invalid_answer_is_rejected_and_the_next_answer_accepted(
    send: Callable[[grpc.ServicerContext], Iterator[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    server = UntrustedServer(lambda number, context: send(context) if number == 1 else iter(()))
    with serving(server) as address:
        out, receiver, troubles = receive_one(address)
    assert np.array_equal(out, expected()[0])
    assert receiver.num_reconnects == len(troubles) == 1
    assert re.search(ANSWER_ERRORS[send], troubles[0]), troubles
    assert troubles[0].isprintable()
    assert len(troubles[0]) < 700
    assert "Traceback" not in caplog.text


@pytest.mark.promise(number=11)
@pytest.mark.parametrize("send", [garbage, bomb, large_metadata, traceback], ids=lambda send: send.__name__)
def test_a_server_that_sends_only_invalid_answers_ends_the_run_with_the_cause(
    send: Callable[[grpc.ServicerContext], Iterator[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    """The status for a compressed message depends on the gRPC version; it may be final or transient."""
    with serving(UntrustedServer(lambda number, context: send(context))) as address:
        with pytest.raises((LinkLostError, BadTeacherError, RequestRefusedError)) as ended:
            receive_one(address, max_wait_s=0.5)
    assert re.search(ANSWER_ERRORS[send].strip("^$"), str(ended.value))
    assert str(ended.value).isprintable()
    assert len(str(ended.value)) < 1000
    assert "Traceback" not in caplog.text


@pytest.mark.promise(number=11)
def test_an_invalid_answer_to_describe_ends_the_run_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with serving(UntrustedServer(lambda number, context: iter(()), answer=b"\xff" * 100)) as address:
        with pytest.raises(BadTeacherError, match=r"^teacher 127\.0\.0\.1:\d+: the answer to Describe is not a DescribeResponse$"):
            receive_one(address)
    assert caplog.text == ""


ALONE = """
import sys
sys.path[:0] = {path!r}
from test_hostile_teacher import receive_one
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
receive_one({sound!r})
before = peak()
try:
    receive_one({address!r}, max_wait_s=0.1)
except Exception as error:
    print(type(error).__name__, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.promise(number=11)
@pytest.mark.parametrize("send", [bomb, too_large, large_metadata], ids=lambda send: send.__name__)
def test_a_bomb_is_never_inflated(send: Callable[[grpc.ServicerContext], Iterator[bytes]]) -> None:
    """The receiver runs in a separate process, so that its memory can be measured."""
    with serving(UntrustedServer(lambda number, context: send(context))) as address, RunningTeacher(ScriptedTeacher()) as sound:
        script = ALONE.format(path=sys.path, sound=sound.address, address=address)
        alone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    kind, grown = alone.stdout.split()
    assert kind in ("LinkLostError", "RequestRefusedError"), alone.stderr
    assert int(grown) < 24 * MiB, "128 MiB of zeros"


@pytest.mark.promise(number=11)
def test_a_teacher_that_breaks_every_stream_after_the_same_chunk_ends_the_run() -> None:
    """Receiving the first chunk of the same batch again is no progress."""
    faults: dict[int, Fault] = {number: broken(grpc.StatusCode.UNAVAILABLE) for number in range(1, 2000, 2)}
    with pytest.raises(LinkLostError, match=r"^gave up after 0.5 s without success: teacher .* UNAVAILABLE: scripted$"):
        receive_all(ScriptedTeacher(faults), max_wait_s=0.5)


PREFACE_ANSWER = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
ANSWERS = {
    "HTTP/1": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "noise": np.random.default_rng(0).bytes(5000),
    "an alert of TLS": bytes.fromhex("15030100020228"),
    "settings and noise": PREFACE_ANSWER + np.random.default_rng(1).bytes(5000),
    "a frame of 16 MB": PREFACE_ANSWER + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + bytes(5000),
    "half a frame": PREFACE_ANSWER[:5],
    "nothing": b"",
}


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A socket that sends the same bytes to every client and closes the connection."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer_all() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.sendall(answer)
                    connection.recv(1 << 16)
                except OSError:
                    pass

    thread = threading.Thread(target=answer_all)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@pytest.mark.promise(number=11)
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_server_without_grpc_is_named_in_the_error(kind: str) -> None:
    with answering(ANSWERS[kind]) as address:
        with pytest.raises((LinkLostError, RequestRefusedError), match=re.escape(address)) as ended:
            receive_one(address, max_wait_s=0.5)
    assert str(ended.value).isprintable()
    assert len(str(ended.value)) < 1000
