"""Untrusted clients of a real server: bad requests get a status, use almost no memory, and the next valid call works."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np
import pytest
from serving import serve_flags, serving

from edgekd.v1 import teacher_pb2
from edgekd.wire.limits import MAX_REQUEST_BYTES, channel_options

pytestmark = pytest.mark.slow
Code = grpc.StatusCode
STREAM, DESCRIBE = "/edgekd.v1.Teacher/StreamLogits", "/edgekd.v1.Teacher/Describe"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
CLIENT_HELLO = bytes.fromhex("160301002f0100002b0303") + bytes(32) + bytes.fromhex("000002130101000000")
MiB = 1 << 20


class Server(NamedTuple):
    pid: int
    address: str
    log: Path

    def memory(self) -> int:
        """Return the resident memory of the process in bytes."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """Return the peak resident memory in bytes."""
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    def connect(self) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder / "log", serve_flags(folder / "store", "--precompute")) as (process, address):
        running = Server(process.pid, address, folder / "log")
        good_call(running)
        yield running
        good_call(running)
        assert process.poll() is None
    assert "Traceback" not in (folder / "log").read_text()


def good_call(server: Server) -> int:
    """Call Describe and receive a batch over a new connection. Returns the number of rows."""
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        (chunk,) = channel.unary_stream(STREAM)(good_request(channel).SerializeToString(), timeout=20)
        return teacher_pb2.LogitsChunk.FromString(chunk).num_rows


def good_request(channel: grpc.Channel) -> teacher_pb2.StreamLogitsRequest:
    described = teacher_pb2.DescribeResponse.FromString(channel.unary_unary(DESCRIBE)(b"", timeout=20))
    return teacher_pb2.StreamLogitsRequest(
        count=1,
        batch_size=32,
        teacher_digest=described.teacher_digest,
        dataset_digest=described.dataset_digest,
        encoding=teacher_pb2.ENCODING_FLOAT32,
    )


HOSTILE: list[tuple[dict[str, object], set[grpc.StatusCode]]] = [
    ({"count": 2**32 - 1}, {Code.INVALID_ARGUMENT}),
    ({"count": 0}, {Code.INVALID_ARGUMENT}),
    ({"batch_size": 0}, {Code.INVALID_ARGUMENT}),
    ({"batch_size": 2**32 - 1}, {Code.INVALID_ARGUMENT}),
    ({"count": 2**32 - 1, "batch_size": 2**32 - 1, "start": 2**64 - 1}, {Code.INVALID_ARGUMENT}),
    ({"start": 2**31}, {Code.OUT_OF_RANGE}),
    ({"start": 2**64 - 1, "seed": 2**64 - 1}, {Code.OUT_OF_RANGE}),
    ({"start": 2**31 - 2, "count": 2, "stride": 2}, {Code.OUT_OF_RANGE}),
    ({"stride": 2**32 - 1}, {Code.INVALID_ARGUMENT}),
    ({"encoding": 0}, {Code.INVALID_ARGUMENT}),
    ({"encoding": 2**31 - 1}, {Code.INVALID_ARGUMENT}),
    ({"encoding": -1}, {Code.INVALID_ARGUMENT}),
    ({"encoding": 4, "top_k": 2**32 - 1}, {Code.INVALID_ARGUMENT}),
    ({"encoding": 4, "top_k": 4}, {Code.INVALID_ARGUMENT}),
    ({"encoding": 1, "top_k": 1}, {Code.INVALID_ARGUMENT}),
    ({"input_encoding": 2**31 - 1}, {Code.INVALID_ARGUMENT}),
    ({"input_encoding": 2}, {Code.INVALID_ARGUMENT}),
    ({"teacher_digest": "0" * 64}, {Code.FAILED_PRECONDITION}),
    ({"dataset_digest": "0" * 64}, {Code.FAILED_PRECONDITION}),
    ({"teacher_digest": "x" * 3000}, {Code.FAILED_PRECONDITION}),
    ({"teacher_digest": ""}, {Code.INVALID_ARGUMENT}),
]


@pytest.mark.promise(number=12)
def test_hostile_requests_are_refused_by_status_and_the_memory_stays_where_it_was(server: Server) -> None:
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        call, good = channel.unary_stream(STREAM), good_request(channel)

        def refuse_all() -> None:
            for changes, codes in HOSTILE:
                request = teacher_pb2.StreamLogitsRequest()
                request.CopyFrom(good)
                for name, value in changes.items():
                    setattr(request, name, value)
                with pytest.raises(grpc.RpcError) as refused:
                    list(call(request.SerializeToString(), timeout=20))
                assert refused.value.code() in codes, changes
                assert refused.value.details().isprintable()
                assert len(refused.value.details()) < 300

        for _ in range(20):  # afterwards gRPC and malloc have allocated what they keep
            refuse_all()
        before = server.memory()
        for _ in range(40):
            refuse_all()
        assert server.memory() - before < 4 * MiB, "840 refusals"
    assert good_call(server) == 32


@pytest.mark.promise(number=12)
@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_any_seed_is_a_seed(seed: int, server: Server) -> None:
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        request = good_request(channel)
        request.seed = seed
        (chunk,) = channel.unary_stream(STREAM)(request.SerializeToString(), timeout=20)
    ids = list(teacher_pb2.LogitsChunk.FromString(chunk).sample_ids)
    assert len(set(ids)) == 32


NOISE = np.random.default_rng(0).bytes(20_000)
FIRST_WORDS = {
    "noise": NOISE,
    "zeros": bytes(10_000),
    "one byte": b"P",
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": CLIENT_HELLO,
    "half a preface": PREFACE[:11],
    "a preface and noise": PREFACE + NOISE,
    "settings and noise": PREFACE + SETTINGS + NOISE,
    "a frame of 16 MB": PREFACE + SETTINGS + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
    "settings without end": PREFACE + SETTINGS * 20_000,
    "pings without end": PREFACE + SETTINGS + (bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)) * 5_000,
    "resets of nothing": PREFACE + SETTINGS + (bytes([0, 0, 4, 3, 0, 0, 0, 0, 1]) + bytes(4)) * 5_000,
    "headers that never end": PREFACE + SETTINGS + bytes([0, 0x20, 0, 1, 0, 0, 0, 0, 1]) + bytes(0x2000),
}


@pytest.mark.promise(number=11)
@pytest.mark.parametrize("kind", FIRST_WORDS)
def test_an_untrusted_client_of_the_socket_is_disconnected_or_ignored(kind: str, server: Server) -> None:
    peak = server.peak()
    with server.connect() as untrusted:
        with suppress(ConnectionResetError, BrokenPipeError):  # the server has closed the connection
            untrusted.sendall(FIRST_WORDS[kind])
        assert good_call(server) == 32, "while the untrusted client is connected"
    assert good_call(server) == 32, "and when he has gone"
    assert server.peak() - peak < 16 * MiB


@pytest.mark.promise(number=11)
@pytest.mark.parametrize(
    ("message", "compression", "code"),
    [
        (bytes(8 * MiB), grpc.Compression.NoCompression, Code.RESOURCE_EXHAUSTED),
        (bytes(MAX_REQUEST_BYTES + 1), grpc.Compression.NoCompression, Code.RESOURCE_EXHAUSTED),
        (bytes(256 * MiB), grpc.Compression.Gzip, Code.UNIMPLEMENTED),
        (bytes(256 * MiB), grpc.Compression.Deflate, Code.UNIMPLEMENTED),
        (b"small", grpc.Compression.Gzip, Code.UNIMPLEMENTED),
        (b"\xff" * 1000, grpc.Compression.NoCompression, Code.INVALID_ARGUMENT),
    ],
    ids=["8 MiB", "a byte too many", "a gzip bomb", "a deflate bomb", "compressed for no reason", "no message"],
)
def test_a_message_too_large_or_of_no_sense_is_refused_before_it_is_unpacked(
    message: bytes, compression: grpc.Compression, code: grpc.StatusCode, server: Server
) -> None:
    peak = server.peak()
    with grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            list(channel.unary_stream(STREAM)(message, timeout=60, compression=compression))
        # gRPC does not compress a small message, which is then only a malformed request.
        assert refused.value.code() in {code, Code.INVALID_ARGUMENT if message == b"small" else code}
        assert "Traceback" not in refused.value.details()
    assert server.peak() - peak < 32 * MiB, "256 MiB of zeros are 256 kB on the wire, and stay that"
    assert good_call(server) == 32


@pytest.mark.promise(number=11)
@pytest.mark.parametrize(
    "metadata",
    [
        [("x-big", "a" * 20_000)],
        [(f"x-{number}", "a" * 100) for number in range(200)],
        [("x-big-bin", b"\xff" * 20_000)],
        [("authorization", "a" * 20_000)],
    ],
    ids=["one of 20 kB", "two hundred", "bytes", "a token of 20 kB"],
)
def test_metadata_of_20_kb_is_refused_and_the_next_call_works(metadata: list[tuple[str, str | bytes]], server: Server) -> None:
    peak = server.peak()
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(DESCRIBE)(b"", timeout=20, metadata=metadata)
        assert refused.value.code() in {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.INTERNAL}
        assert "Traceback" not in refused.value.details()
    assert server.peak() - peak < 16 * MiB
    assert good_call(server) == 32


@pytest.mark.promise(number=11)
@pytest.mark.parametrize("path", ["/edgekd.v1.Teacher/Nonsense", "/", "/x" * 1000, "/edgekd.v1.Teacher/StreamLogits/x"])
def test_a_method_that_does_not_exist_is_unimplemented(path: str, server: Server) -> None:
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(path)(b"", timeout=20)
    assert refused.value.code() is Code.UNIMPLEMENTED
    assert good_call(server) == 32


@pytest.mark.promise(number=11)
def test_a_call_without_a_message_and_many_connections_that_say_nothing_leave_room_for_others(server: Server) -> None:
    descriptors = len(os.listdir(f"/proc/{server.pid}/fd"))
    silent = [server.connect() for _ in range(50)]
    assert good_call(server) == 32
    for connection in silent:
        connection.close()
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        call = channel.stream_stream(STREAM)(iter(()), timeout=1)
        with pytest.raises(grpc.RpcError) as refused:
            list(call)
        assert "Traceback" not in refused.value.details()
    assert good_call(server) == 32
    assert len(os.listdir(f"/proc/{server.pid}/fd")) < descriptors + 50
