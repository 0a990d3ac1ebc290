"""The gRPC options: known to the installed gRPC, and consistent between both ends."""

import mmap
from pathlib import Path

import grpc
import pytest
from grpc._cython import cygrpc

from edgekd.v1 import teacher_pb2
from edgekd.wire import limits


def test_a_full_chunk_fits_in_a_message_with_room_to_spare() -> None:
    chunk = teacher_pb2.LogitsChunk(
        batch_index=2**64 - 1,
        num_rows=limits.MAX_BATCH_SIZE,
        sample_ids=[2**64 - 1] * limits.MAX_BATCH_SIZE,
        payload=bytes(limits.MAX_CHUNK_BYTES),
    )
    assert chunk.ByteSize() < limits.MAX_MESSAGE_BYTES / 2


def test_a_request_fits_many_times_over() -> None:
    digest, most = "f" * 64, 2**63
    request = teacher_pb2.StreamLogitsRequest(
        start=most,
        count=2**31,
        batch_size=2**31,
        seed=most,
        stride=2**31,
        top_k=2**31,
        teacher_digest=digest,
        dataset_digest=digest,
    )
    assert request.ByteSize() < limits.MAX_REQUEST_BYTES / 10


def test_one_float32_row_of_the_most_classes_is_exactly_one_chunk() -> None:
    assert limits.MAX_CLASSES * 4 == limits.MAX_CHUNK_BYTES


def test_the_last_batch_index_is_the_one_the_schema_allows() -> None:
    assert limits.MAX_START == 2**31 - 1
    assert limits.PROTOCOL_VERSION == 1


def test_the_server_accepts_the_pings_of_the_students() -> None:
    student, server = dict(limits.channel_options()), dict(limits.server_options())
    sizes = {name for name in student if name.endswith("_message_length")}
    assert student.keys() <= server.keys()
    assert {name for name in student if student[name] != server[name]} == sizes
    for one, other in ((student, server), (server, student)):
        assert one["grpc.max_send_message_length"] == other["grpc.max_receive_message_length"]
    # A server answers more frequent pings with GOAWAY.
    assert server["grpc.http2.min_ping_interval_without_data_ms"] < student["grpc.keepalive_time_ms"]


@pytest.mark.parametrize("name", sorted(dict(limits.server_options())))
def test_grpc_knows_the_option(name: str) -> None:
    """gRPC ignores unknown options, so a wrong name has no effect: search the library for the name."""
    with Path(cygrpc.__file__).open("rb") as library:
        with mmap.mmap(library.fileno(), 0, access=mmap.ACCESS_READ) as content:
            assert content.find(name.encode() + b"\0") >= 0


def test_each_call_returns_a_new_list() -> None:
    limits.channel_options().clear()
    assert limits.channel_options() != []


def test_a_second_server_on_the_same_port_is_rejected() -> None:
    with_pool = [grpc.server(None, options=limits.server_options()) for _ in range(2)]
    port = with_pool[0].add_insecure_port("127.0.0.1:0")
    with pytest.raises(RuntimeError, match="Failed to bind"):
        with_pool[1].add_insecure_port(f"127.0.0.1:{port}")
    for server in with_pool:
        server.stop(None).wait()
