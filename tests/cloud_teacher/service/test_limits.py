"""Limits of a running server: requests beyond a limit are rejected early, and rejections do not affect other edges."""

import contextlib
import logging
import mmap
import re
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc._cython import cygrpc
from processes import wait_until

from cloud_teacher.service.callers import address_of, caller_of
from cloud_teacher.service.limits import Limits
from cloud_teacher.service.rate_limit import RateLimiter
from edge_student.ipc.messages import Configure
from edge_student.ipc.ring import RingShape, Slot
from edge_student.receive.receiver import Receiver
from edgekd.v1 import teacher_pb2, teacher_pb2_grpc
from edgekd.wire.limits import EDGE_ID_KEY, MAX_WINDOW, RUN_ID_KEY, channel_options, server_options

Code = grpc.StatusCode


def named(edge: str) -> tuple[tuple[str, str], ...]:
    return ((EDGE_ID_KEY, edge),)


def refusal(harness: Any, metadata: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as refused:
        list(harness.stub.StreamLogits(harness.request(), timeout=30, metadata=metadata))
    return refused.value


@pytest.mark.promise(number=13)
def test_an_edge_over_its_limit_is_rejected_at_once_and_the_others_are_served(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(max_streams=3, max_streams_per_edge=1)
    answer = harness.stub.Describe(teacher_pb2.DescribeRequest(), timeout=10)
    assert answer.max_streams == 1, "an edge divides its batches among as many as it can have"
    harness.teacher.gate.clear()
    taken = [harness.stub.StreamLogits(harness.request(), timeout=30, metadata=named(edge)) for edge in ("a", "b")]
    wait_until(lambda: harness.server.service.num_streams == 2)
    refused = refusal(harness, named("a"))
    assert (refused.code(), refused.details()) == (
        Code.RESOURCE_EXHAUSTED,
        "edge a has 1 stream open, which is the limit per edge; close one, or try again later",
    )
    third = harness.stub.StreamLogits(harness.request(), timeout=30)  # identified by address, so it is another edge
    wait_until(lambda: harness.server.service.num_streams == 3)
    assert "edge 127.0.0.1 has 1 stream open" in refusal(harness, ()).details()
    assert refusal(harness, named("c")).details() == "all 3 streams are taken; try again later"
    harness.teacher.gate.set()
    assert [len(list(call)) for call in (*taken, third)] == [3, 3, 3]
    wait_until(lambda: harness.server.service.num_streams == 0)
    assert len(list(harness.stub.StreamLogits(harness.request(), timeout=30, metadata=named("a")))) == 3


EDGE = """
import sys, grpc
from edgekd.v1 import teacher_pb2, teacher_pb2_grpc
from edgekd.wire.limits import EDGE_ID_KEY
stub = teacher_pb2_grpc.TeacherStub(grpc.insecure_channel(sys.argv[1]))
request = teacher_pb2.StreamLogitsRequest.FromString(bytes.fromhex(sys.argv[2]))
stream = stub.StreamLogits(request, metadata=((EDGE_ID_KEY, "pi-1"),))
next(stream)
print("streaming", flush=True)
sys.stdin.readline()
"""


@pytest.mark.promise(number=13)
@pytest.mark.parametrize("how", ["killed", "reset"])
def test_the_place_of_an_edge_that_vanishes_is_free_again(how: str, make_harness: Callable[..., Any], key: Any) -> None:
    harness = make_harness(max_streams_per_edge=1, key=replace(key, num_classes=20_000))
    long = harness.request(count=MAX_WINDOW, batch_size=40).SerializeToString().hex()
    other = harness.stub.StreamLogits(harness.request(count=MAX_WINDOW, batch_size=40), timeout=60, metadata=named("pi-2"))
    next(other)
    with Cord(harness.port) if how == "reset" else contextlib.nullcontext() as cord:
        command = [sys.executable, "-c", EDGE, f"127.0.0.1:{harness.port if cord is None else cord.port}", long]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as edge:
            assert edge.stdout is not None
            assert edge.stdout.readline() == "streaming\n"
            assert refusal(harness, named("pi-1")).code() is Code.RESOURCE_EXHAUSTED
            if cord is not None:
                cord.reset()
                wait_until(lambda: harness.server.service.num_streams == 1)
            edge.kill()
        wait_until(lambda: harness.server.service.num_streams == 1)
    assert len(list(harness.stub.StreamLogits(harness.request(), timeout=30, metadata=named("pi-1")))) == 3
    assert [next(other).row_start for _ in range(100)] == [13, 26, 39, 0] * 25, "the other one has noticed nothing"
    other.cancel()


class Cord:
    """Relays one connection to 127.0.0.1:`port` until the client closes it or the relay resets it."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._knife, self._hand = socket.socketpair()
        self._thread = threading.Thread(target=self._carry, args=(port,))
        self._thread.start()

    def __enter__(self) -> "Cord":
        return self

    def __exit__(self, *_: object) -> None:
        self._hand.close()
        self._thread.join()
        self._listener.close()

    def reset(self) -> None:
        self._hand.send(b"r")

    def _carry(self, port: int) -> None:
        edge, _ = self._listener.accept()
        with edge, self._knife, socket.create_connection(("127.0.0.1", port)) as server:
            while True:
                ready, _, _ = select.select([edge, server, self._knife], [], [])
                if self._knife in ready:
                    if self._knife.recv(1):  # RST instead of FIN, socket(7)
                        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                for source, target in ((edge, server), (server, edge)):
                    data = source.recv(1 << 16) if source in ready else b"-"
                    if not data:
                        return
                    if source in ready:
                        target.sendall(data)


class Context:
    """The part of a call's context that caller_of reads."""

    def __init__(self, peer: str, names: list[bytes], metadata: list[tuple[str, Any]]) -> None:
        self._peer, self._names, self._metadata = peer, names, metadata

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_common_name": self._names} if self._names else {}

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        return self._metadata


SIX = "ipv6:%5Bfe80::1%5D:4711"


@pytest.mark.parametrize(
    ("names", "metadata", "edge", "run"),
    [
        ([b"pi-1"], [(EDGE_ID_KEY, "liar"), (RUN_ID_KEY, "ab12")], "pi-1", "ab12"),
        ([b"Pi \x1b[31m\xff"], [], "Pi---31m-", None),
        ([], [(EDGE_ID_KEY, "pi-2")], "pi-2", None),
        ([], [], "fe80::1", None),
        ([], [(EDGE_ID_KEY, "a\nb")], "fe80::1", None),
        ([], [(EDGE_ID_KEY, "x" * 65), (RUN_ID_KEY, "\x1b[2J")], "fe80::1", None),
        ([], [(EDGE_ID_KEY, "a"), (EDGE_ID_KEY, "b")], "fe80::1", None),
        ([], [(EDGE_ID_KEY, b"bytes")], "fe80::1", None),
        ([b""], [(EDGE_ID_KEY, "pi-3")], "pi-3", None),
    ],
)
def test_an_edge_is_its_certificate_else_its_word_else_its_machine(
    names: list[bytes], metadata: list[tuple[str, Any]], edge: str, run: str | None
) -> None:
    caller = caller_of(Context(SIX, names, metadata))  # type: ignore[arg-type]
    assert (caller.edge, caller.run, caller.peer) == (edge, run, "ipv6:[fe80::1]:4711")
    assert all(0x20 <= ord(character) < 0x7F for character in str(caller))


def test_no_other_edge_can_use_a_certificates_name() -> None:
    certified, claimed, near = (
        caller_of(Context(SIX, names, metadata))  # type: ignore[arg-type]
        for names, metadata in (([b"pi-1"], []), ([], [(EDGE_ID_KEY, "pi-1")]), ([b"pi 1"], []))
    )
    assert len({certified.key, claimed.key, near.key}) == 3


@pytest.mark.parametrize(
    ("peer", "machine"),
    [("ipv4:10.0.0.7:4711", "10.0.0.7"), (SIX, "fe80::1"), ("ipv6:[::1]:5", "::1"), ("unix:/run/x", "unix:/run/x"), ("", "")],
)
def test_a_machine_is_an_address_without_its_port(peer: str, machine: str) -> None:
    assert address_of(peer) == machine


@pytest.mark.promise(number=11)
def test_20_kb_of_metadata_are_refused_and_the_next_call_works(harness: Any) -> None:
    token = ("authorization", "Bearer " + "t" * 4096)
    assert len(list(harness.stub.StreamLogits(harness.request(), timeout=30, metadata=(token, *named("x" * 64))))) == 3
    for _ in range(10):  # repeated, because gRPC rejects at random between its soft and hard limits
        refused = refusal(harness, (("x-much", "m" * 20_000),))
        assert refused.code() is Code.RESOURCE_EXHAUSTED
        assert "Traceback" not in refused.details()
    assert len(harness.stream()) == 3
    assert harness.server.service.num_streams == 0


def test_calls_beyond_those_of_a_connection_wait_for_a_place_there(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(max_calls_per_connection=1)
    harness.teacher.gate.clear()
    first = harness.stub.StreamLogits(harness.request(), timeout=30)
    wait_until(lambda: harness.server.service.num_streams == 1)
    with pytest.raises(grpc.RpcError) as late:
        harness.stub.Describe(teacher_pb2.DescribeRequest(), timeout=0.3)
    assert late.value.code() is Code.DEADLINE_EXCEEDED
    alone = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]  # without this option it would share the connection
    with grpc.insecure_channel(f"127.0.0.1:{harness.port}", options=alone) as other:
        assert teacher_pb2_grpc.TeacherStub(other).Describe(teacher_pb2.DescribeRequest(), timeout=10).max_streams == 4
    harness.teacher.gate.set()
    assert len(list(first)) == 3


def test_a_silent_connection_is_closed(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(handshake_timeout_s=0.3)
    with socket.create_connection(("127.0.0.1", harness.port), timeout=20) as silent:
        while silent.recv(1 << 10):
            pass
    assert len(harness.stream()) == 3


@pytest.mark.parametrize("name", sorted({*dict(Limits(max_connection_age_s=1.0).server_options())} - {*dict(server_options())}))
def test_grpc_knows_the_option(name: str) -> None:
    with Path(cygrpc.__file__).open("rb") as library:
        with mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ) as content:
            assert content.find(name.encode() + b"\0") >= 0


def test_a_request_is_held_against_the_limits_of_this_server(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(max_window=2, max_batch_size=8, max_stride=1)
    answer = harness.stub.Describe(teacher_pb2.DescribeRequest(), timeout=10)
    assert (answer.max_window, answer.max_batch_size, answer.max_stride) == (2, 8, 1)
    assert "count is 3, must be in 1 .. 2" in harness.refusal(count=3).details()
    assert "batch_size is 9, must be in 1 .. 8" in harness.refusal(count=1, batch_size=9).details()
    assert "stride is 2, must be in 0 .. 1" in harness.refusal(count=1, stride=2).details()


class Edge:
    """A real receiver, and the batches that it has received."""

    def __init__(self, harness: Any, *, batch_size: int, window: int) -> None:
        told = Configure(
            teacher=f"127.0.0.1:{harness.port}",
            batch_size=batch_size,
            seed=1,
            encoding="float32",
            top_k=0,
            window=window,
            max_wait_s=30.0,
            log_level="info",
            niceness=0,
            is_idle=False,
            edge_id="pi-1",
            run_id="0123456789ab",
        )
        self.troubles: list[str] = []
        self.on_trouble: Callable[[], object] = lambda: None
        self.receiver = Receiver(told, lambda cause, attempt: (self.troubles.append(cause), self.on_trouble()))
        self.receiver.describe()
        shape = RingShape(num_slots=1, batch_size=batch_size, num_classes=harness.key.num_classes, logit_bytes=4)
        self._slot, self._teacher = Slot.empty(shape), harness.teacher
        self._num_batches = 0

    def receive(self) -> None:
        """Receive the next batch, and compare it with the teacher's rows."""
        self._slot.logits[:] = np.nan
        self.receiver.receive(self._num_batches, 1 << 20, self._slot, lambda: None)
        self._num_batches += 1
        for sample, row in zip(self._slot.sample_ids.tolist(), self._slot.logits, strict=True):
            assert np.array_equal(row, self._teacher.row(sample))


@pytest.mark.promise(number=13)
def test_an_edge_that_finds_no_place_waits_and_gets_the_next_one(make_harness: Callable[..., Any], key: Any) -> None:
    harness = make_harness(max_streams=1, key=replace(key, num_classes=20_000))
    taken = harness.stub.StreamLogits(harness.request(count=MAX_WINDOW, batch_size=40), timeout=60)
    next(taken)
    edge = Edge(harness, batch_size=8, window=4)
    edge.on_trouble = taken.cancel
    for _ in range(6):
        edge.receive()
    assert "RESOURCE_EXHAUSTED: all 1 streams are taken; try again later" in edge.troubles[0]
    edge.receiver.close()


def peers(caplog: pytest.LogCaptureFixture) -> set[str]:
    begun = [re.search(r"edge pi-1 \((\S+), run 0123456789ab\): stream of", record.getMessage()) for record in caplog.records]
    return {found[1] for found in begun if found}


def test_an_edge_whose_connection_ages_goes_on_over_a_new_one_without_a_failure(
    make_harness: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cloud_teacher")
    edge = Edge(make_harness(max_connection_age_s=0.2), batch_size=8, window=4)
    wait_until(lambda: edge.receive() or len(peers(caplog)) >= 3)
    assert (edge.troubles, edge.receiver.num_reconnects) == ([], 0)
    edge.receiver.close()


def test_a_stream_may_end_within_the_grace_of_its_connection(make_harness: Callable[..., Any], key: Any) -> None:
    harness = make_harness(max_connection_age_s=0.2, key=replace(key, num_samples=5000))
    blocks, compute = threading.Semaphore(1), harness.store._compute
    harness.store._compute = lambda ids: (blocks.acquire(timeout=30), compute(ids))[1]
    states: list[grpc.ChannelConnectivity] = []
    with grpc.insecure_channel(f"127.0.0.1:{harness.port}", options=channel_options()) as channel:
        channel.subscribe(states.append)
        stream = teacher_pb2_grpc.TeacherStub(channel).StreamLogits(harness.request(count=20, batch_size=40), timeout=60)
        next(stream)
        wait_until(lambda: states[-1:] == [grpc.ChannelConnectivity.IDLE])  # the server has sent GOAWAY
        assert harness.server.service.num_streams == 1
        blocks.release(100)
        assert len(list(stream)) == 19


def test_a_stream_that_outlasts_the_grace_is_resumed_and_nothing_comes_twice(make_harness: Callable[..., Any], key: Any) -> None:
    harness = make_harness(max_connection_age_s=0.2, connection_grace_s=0.05, key=replace(key, num_classes=20_000))
    edge = Edge(harness, batch_size=40, window=MAX_WINDOW)
    while edge.receiver.num_reconnects < 2:
        edge.receive()  # first the batches that were in flight
        wait_until(lambda: harness.server.service.num_streams == 0)  # cancelled in the middle of 1024 batches of 3 MB
    assert all("UNAVAILABLE" in trouble for trouble in edge.troubles)
    edge.receiver.close()


@pytest.mark.promise(number=13)
def test_edges_that_give_up_waiting_for_a_slow_link_leave_it_to_the_others(make_harness: Callable[..., Any]) -> None:
    class Gate(RateLimiter):
        """A link that is busy for a very long time until a test opens it."""

        is_open = False
        num_taken = 0

        def wait(self, now: float) -> float:
            return 0.0 if self.is_open else 1000.0

        def take(self, num_bytes: int, now: float) -> None:
            self.num_taken += 1

    rate_limiter = Gate(1e9)
    harness = make_harness(rate_limiter=rate_limiter, max_streams=10)
    impatient = [harness.stub.StreamLogits(harness.request(), timeout=30) for _ in range(10)]
    wait_until(lambda: harness.server.service.num_streams == 10)
    for call in impatient:
        call.cancel()
    wait_until(lambda: harness.server.service.num_streams == 0)
    assert rate_limiter.num_taken == 0, "nothing was sent"
    rate_limiter.is_open = True
    chunks = list(harness.stub.StreamLogits(harness.request(), timeout=30))
    assert rate_limiter.num_taken == len(chunks) == 3


def test_chunks_are_so_small_that_many_streams_on_a_slow_link_each_get_one_in_time(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(rate_limiter=RateLimiter(8 * 60), max_streams=10)  # one of ten streams gets 60 bytes in its second
    chunks = harness.stream(count=1, batch_size=4)
    assert [len(chunk.payload) for chunk in chunks] == [2 * 7 * 4, 2 * 7 * 4]
    assert [chunk.row_start for chunk in chunks] == [0, 2]
