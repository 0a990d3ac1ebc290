"""The Teacher service over a real connection: streams, rejected requests, and failures."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from processes import wait_until

from cloud_teacher.logits.public_inputs import PublicInputs
from cloud_teacher.service.rate_limit import RateLimiter
from edgekd.data.dataset import Dataset
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import Encoding, Format, checksum, chunk_rows, decode_into, from_wire
from edgekd.wire.inputs import InputEncoding, square_pixels
from edgekd.wire.limits import (
    MAX_BATCH_SIZE,
    MAX_CHUNK_BYTES,
    MAX_INPUTS_BYTES,
    MAX_START,
    MAX_STRIDE,
    MAX_WINDOW,
    PROTOCOL_VERSION,
)
from edgekd.wire.order import batch_ids

Code = grpc.StatusCode


def decoded(chunk: teacher_pb2.LogitsChunk) -> np.ndarray:
    out = np.empty((chunk.num_rows, chunk.num_classes), np.float32)
    decode_into(
        chunk.payload,
        form=Format(from_wire(chunk.encoding), chunk.top_k),
        rows=chunk.num_rows,
        num_classes=chunk.num_classes,
        crc32=chunk.crc32,
        out=out,
    )
    return out


def test_describe_returns_digests_sizes_and_limits(harness: Any) -> None:
    answer = harness.stub.Describe(teacher_pb2.DescribeRequest(), timeout=10)
    assert answer == teacher_pb2.DescribeResponse(
        protocol_version=PROTOCOL_VERSION,
        teacher_digest=harness.key.teacher_digest,
        dataset_digest=harness.key.dataset_digest,
        dataset_name="tiny:public",
        num_samples=harness.key.num_samples,
        num_classes=harness.key.num_classes,
        encodings=[1, 2, 3, 4],
        max_batch_size=MAX_BATCH_SIZE,
        max_window=MAX_WINDOW,
        max_chunk_bytes=MAX_CHUNK_BYTES,
        max_stride=MAX_STRIDE,
        max_streams=4,
    )


def test_streamed_logits_are_the_teachers_in_the_order_of_the_protocol(harness: Any) -> None:
    chunks = harness.stream(start=5, count=4, batch_size=9, seed=3)
    assert [(chunk.batch_index, chunk.row_start, chunk.num_rows) for chunk in chunks] == [(b, 0, 9) for b in range(5, 9)]
    for chunk in chunks:
        assert list(chunk.sample_ids) == batch_ids(3, harness.key.num_samples, 9, chunk.batch_index).tolist()
        assert np.array_equal(decoded(chunk), np.stack([harness.teacher.row(sample) for sample in chunk.sample_ids]))


def test_float16_is_the_rounded_teacher(harness: Any) -> None:
    (chunk,) = harness.stream(count=1, encoding=teacher_pb2.ENCODING_FLOAT16)
    expected = np.stack([harness.teacher.row(sample) for sample in chunk.sample_ids]).astype(np.float16)
    assert np.array_equal(decoded(chunk), expected.astype(np.float32))


@pytest.mark.parametrize(("encoding", "top_k"), [(teacher_pb2.ENCODING_INT8, 0), (teacher_pb2.ENCODING_TOPK, 2)])
def test_other_encodings_are_near_the_teacher(harness: Any, encoding: int, top_k: int) -> None:
    (chunk,) = harness.stream(count=1, encoding=encoding, top_k=top_k)
    assert (chunk.encoding, chunk.top_k) == (encoding, top_k)
    expected = np.stack([harness.teacher.row(sample) for sample in chunk.sample_ids])
    assert np.array_equal(decoded(chunk).argmax(axis=1), expected.argmax(axis=1))


def test_batch_larger_than_the_data_set_visits_it_again(harness: Any) -> None:
    (chunk,) = harness.stream(count=1, batch_size=120)
    assert chunk.num_rows == 120
    assert set(chunk.sample_ids) == set(range(50))


def test_batch_is_split_into_chunks_of_whole_rows(make_harness: Callable[..., Any], key: Any) -> None:
    harness = make_harness(key=replace(key, num_samples=30, num_classes=50_000))
    rows = chunk_rows(50_000, Format(Encoding.FLOAT32))
    assert rows == 5
    chunks = harness.stream(count=2, batch_size=12)
    assert [(c.batch_index, c.row_start, c.num_rows) for c in chunks] == [
        (0, 0, 5), (0, 5, 5), (0, 10, 2), (1, 0, 5), (1, 5, 5), (1, 10, 2),
    ]  # fmt: skip
    assert all(len(chunk.payload) == chunk.num_rows * 200_000 <= MAX_CHUNK_BYTES for chunk in chunks)
    first = np.concatenate([decoded(chunk) for chunk in chunks[:3]])
    ids = [sample for chunk in chunks[:3] for sample in chunk.sample_ids]
    assert ids == batch_ids(1, 30, 12, 0).tolist()
    assert np.array_equal(first, np.stack([harness.teacher.row(sample) for sample in ids]))


def test_stream_resumed_at_an_index_is_the_tail_of_the_whole_one(harness: Any) -> None:
    whole = harness.stream(count=20, batch_size=8)
    assert harness.stream(start=13, count=7, batch_size=8) == whole[13:]


def test_streams_with_a_stride_divide_the_batches_of_one_without(harness: Any) -> None:
    whole = harness.stream(count=20, batch_size=9)
    for stride in (1, 2, 7):
        shares = [
            harness.stream(start=first, count=len(range(first, 20, stride)), stride=stride, batch_size=9) for first in range(stride)
        ]
        assert sorted((chunk for share in shares for chunk in share), key=lambda chunk: chunk.batch_index) == whole


def images_of(num_samples: int, size: int) -> Dataset:
    images = np.random.RandomState(0).randint(0, 256, (num_samples, 3, size, size), dtype=np.uint8)
    return Dataset(name="noise", inputs=images, labels=np.zeros(num_samples, np.int64), num_classes=2, digest="x")


def test_pixels_travel_with_their_logits_in_chunks_that_hold_both(make_harness: Callable[..., Any], key: Any) -> None:
    dataset = images_of(50, 400)  # 480,000 bytes each: four fit
    harness = make_harness(inputs=PublicInputs(dataset))
    answer = harness.stub.Describe(teacher_pb2.DescribeRequest(), timeout=10)
    assert (list(answer.input_shape), list(answer.input_encodings)) == ([3, 400, 400], [1])
    chunks = harness.stream(count=2, batch_size=9, input_encoding=1)
    assert [(c.batch_index, c.row_start, c.num_rows) for c in chunks] == [
        (b, r, n) for b in (0, 1) for r, n in ((0, 4), (4, 4), (8, 1))
    ]
    for chunk in chunks:
        expected = dataset.inputs[list(chunk.sample_ids)]
        assert len(chunk.inputs) <= MAX_INPUTS_BYTES
        assert chunk.inputs == expected.tobytes()
        assert (chunk.pixels_crc32, list(chunk.input_lengths)) == (checksum(expected.tobytes()), [])
        assert np.array_equal(decoded(chunk), np.stack([harness.teacher.row(sample) for sample in chunk.sample_ids]))
    assert [chunk.inputs for chunk in harness.stream(count=2, batch_size=9)] == [b"", b""]


def test_an_image_that_was_changed_ends_its_stream_for_good_and_no_other(
    make_harness: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = []
    for sample in range(50):
        files.append(tmp_path / f"{sample}.png")
        Image.new("RGB", (8, 8), (sample, 0, 0)).save(files[-1])
    images = np.stack([square_pixels(file, 8) for file in files])
    labels = np.zeros(50, np.int64)
    dataset = Dataset(name="x", inputs=images, labels=labels, num_classes=2, digest="x", files=tuple(map(str, files)))
    harness = make_harness(inputs=PublicInputs(dataset))
    assert len(harness.stream(count=1, batch_size=50, input_encoding=2)) == 1
    files[7].unlink()
    refused = harness.refusal(count=1, batch_size=50, input_encoding=2)
    assert refused.code() is Code.FAILED_PRECONDITION
    assert refused.details().startswith("the image file of sample 7 has changed since this server was started")
    assert "7.png" not in refused.details()
    assert "7.png" in caplog.text
    assert len(harness.stream(count=1, batch_size=50, input_encoding=1)) == 1


def test_inputs_too_large_for_a_chunk_are_not_offered() -> None:
    assert PublicInputs(images_of(1, 836)).encodings == [InputEncoding.PIXELS]
    assert PublicInputs(images_of(1, 837)).encodings == []


def test_full_store_sends_the_same_bytes_as_a_computing_teacher(harness: Any) -> None:
    computed = harness.stream(count=10)
    asked = len(harness.teacher.asked)
    assert harness.stream(count=10) == computed
    assert len(harness.teacher.asked) == asked


def test_two_seeds_differ(harness: Any) -> None:
    one, other = harness.stream(seed=1, count=1), harness.stream(seed=2**64 - 1, count=1)
    assert list(one[0].sample_ids) != list(other[0].sample_ids)


def test_edges_that_want_the_same_samples_have_them_computed_once(harness: Any) -> None:
    harness.teacher.gate.clear()
    calls = [harness.stub.StreamLogits(harness.request(count=10), timeout=30) for _ in range(3)]
    wait_until(lambda: harness.server.service.num_streams == 3)
    harness.teacher.gate.set()
    first, *others = [list(call) for call in calls]
    assert all(other == first for other in others)
    assert sorted(harness.teacher.asked) == list(range(50))


def test_stream_from_the_store_does_not_wait_for_another_edges_computing(harness: Any) -> None:
    ready = harness.stream(count=1)
    harness.teacher.gate.clear()
    computing = harness.stub.StreamLogits(harness.request(count=10), timeout=30)
    assert next(computing) == ready[0]
    assert harness.stream(count=1) == ready
    harness.teacher.gate.set()
    assert len(list(computing)) == 9


@pytest.mark.parametrize(
    ("changes", "code", "fragment"),
    [
        ({"count": 0}, Code.INVALID_ARGUMENT, "count is 0, must be in 1 .. 1024"),
        ({"count": MAX_WINDOW + 1}, Code.INVALID_ARGUMENT, "count is 1025"),
        ({"count": 2**32 - 1}, Code.INVALID_ARGUMENT, "count is 4294967295"),
        ({"batch_size": 0}, Code.INVALID_ARGUMENT, "batch_size is 0"),
        ({"batch_size": MAX_BATCH_SIZE + 1}, Code.INVALID_ARGUMENT, "batch_size is 4097, must be in 1 .. 4096"),
        ({"batch_size": 2**32 - 1}, Code.INVALID_ARGUMENT, "batch_size is 4294967295"),
        ({"encoding": 0}, Code.INVALID_ARGUMENT, "encoding 0 is unknown"),
        ({"encoding": 77}, Code.INVALID_ARGUMENT, "encoding 77 is unknown"),
        ({"encoding": 4}, Code.INVALID_ARGUMENT, "top_k is 0, must be in 1 .. 4096 with encoding topk"),
        ({"encoding": 4, "top_k": 2**32 - 1}, Code.INVALID_ARGUMENT, "top_k is 4294967295, must be in"),
        ({"encoding": 4, "top_k": 4096}, Code.INVALID_ARGUMENT, "must be below the number of classes"),
        ({"encoding": 3, "top_k": 1}, Code.INVALID_ARGUMENT, "top_k is 1, must be 0 with encoding int8"),
        ({"start": MAX_START + 1, "count": 1}, Code.OUT_OF_RANGE, "ends at batch 2147483648"),
        ({"start": MAX_START, "count": 2}, Code.OUT_OF_RANGE, "must end at 2147483647 or before"),
        ({"start": 2**64 - 1}, Code.OUT_OF_RANGE, "must end at 2147483647 or before"),
        ({"stride": MAX_STRIDE + 1}, Code.INVALID_ARGUMENT, "stride is 65, must be in 0 .. 64"),
        ({"start": MAX_START - 3, "count": 3, "stride": 2}, Code.OUT_OF_RANGE, "ends at batch 2147483648"),
        ({"input_encoding": 1}, Code.INVALID_ARGUMENT, "input_encoding is pixels, this server supports: none"),
        ({"input_encoding": 77}, Code.INVALID_ARGUMENT, "input encoding 77 is unknown, must be one of 0 (none), 1 (pixels)"),
        ({"teacher_digest": ""}, Code.INVALID_ARGUMENT, "teacher_digest is empty"),
        ({"dataset_digest": ""}, Code.INVALID_ARGUMENT, "dataset_digest is empty"),
        ({"teacher_digest": "ee" * 32}, Code.FAILED_PRECONDITION, "teacher_digest differs from this server's"),
        ({"dataset_digest": "ee" * 32}, Code.FAILED_PRECONDITION, "dataset_digest differs from this server's"),
        ({"teacher_digest": "e" * 3_000}, Code.FAILED_PRECONDITION, "teacher_digest differs from this server's"),
    ],
)
def test_hostile_request_is_refused_and_the_next_call_works(
    harness: Any, changes: dict[str, object], code: grpc.StatusCode, fragment: str
) -> None:
    refused = harness.refusal(**changes)
    assert refused.code() is code
    assert fragment in refused.details()
    assert len(refused.details()) < 300
    assert harness.teacher.asked == []
    assert len(harness.stream()) == 3


def test_last_batch_that_can_be_asked_for_comes(harness: Any) -> None:
    (chunk,) = harness.stream(start=MAX_START, count=1, batch_size=MAX_BATCH_SIZE)
    assert chunk.batch_index == MAX_START


@pytest.mark.promise(number=13)
def test_a_stream_over_the_limit_is_rejected_and_the_others_continue(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(max_streams=2)
    harness.teacher.gate.clear()
    taken = [harness.stub.StreamLogits(harness.request(), timeout=30) for _ in range(2)]
    wait_until(lambda: harness.server.service.num_streams == 2)
    refused = harness.refusal()
    assert (refused.code(), refused.details()) == (
        Code.RESOURCE_EXHAUSTED,
        "all 2 streams are taken; try again later",
    )
    harness.teacher.gate.set()
    assert [len(list(call)) for call in taken] == [3, 3]
    wait_until(lambda: harness.server.service.num_streams == 0)
    assert len(harness.stream()) == 3


@pytest.mark.promise(number=13)
def test_slot_of_an_edge_that_vanishes_while_reading_is_freed(make_harness: Callable[..., Any], key: Any) -> None:
    harness = make_harness(max_streams=1, key=replace(key, num_classes=20_000))
    vanishing = harness.stub.StreamLogits(harness.request(count=MAX_WINDOW, batch_size=40), timeout=30)
    next(vanishing)
    vanishing.cancel()
    wait_until(lambda: harness.server.service.num_streams == 0)
    assert len(harness.stream()) == 3


@pytest.mark.promise(number=13)
def test_slot_of_an_edge_that_vanishes_while_waiting_is_freed(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(max_streams=1)
    harness.teacher.gate.clear()
    vanishing = harness.stub.StreamLogits(harness.request(), timeout=30)
    wait_until(lambda: harness.server.service.num_streams == 1)
    vanishing.cancel()
    wait_until(lambda: harness.server.service.num_streams == 0)
    harness.teacher.gate.set()
    assert len(harness.stream()) == 3


def test_edge_that_reads_nothing_holds_back_its_own_stream_only(make_harness: Callable[..., Any], key: Any) -> None:
    """Flow control: of 1024 batches of 3 MB, few leave before the edge reads; meanwhile another edge is served."""
    harness = make_harness(key=replace(key, num_classes=20_000))
    harness.store.rows(np.arange(harness.key.num_samples))
    lazy = harness.stub.StreamLogits(harness.request(count=MAX_WINDOW, batch_size=40), timeout=30)
    wait_until(lambda: harness.server.service.num_streams == 1)
    assert len(harness.stream()) == 3
    assert harness.server.service.num_streams >= 1
    assert next(lazy).batch_index == 0
    lazy.cancel()


@pytest.mark.parametrize(
    "failure", [RuntimeError("secret: /home/me/weights"), ValueError("secret"), OSError(28, "secret")], ids=repr
)
def test_failure_inside_tells_the_edge_nothing_and_the_log_everything(
    harness: Any, failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    harness.teacher.failure = failure
    refused = harness.refusal()
    assert (refused.code(), refused.details()) == (Code.INTERNAL, "the teacher failed; its log has the cause")
    assert "secret" in caplog.text
    harness.teacher.failure = None
    assert len(harness.stream()) == 3


def test_broken_teacher_is_an_error_that_names_the_sample(harness: Any, caplog: pytest.LogCaptureFixture) -> None:
    sample = int(batch_ids(1, 50, 8, 0).min())
    harness.teacher.answer[sample] = np.full(7, np.nan, np.float32)
    assert harness.refusal().code() is Code.INTERNAL
    assert f"logits of sample {sample} contain NaN" in caplog.text


def test_garbage_and_oversized_messages_are_refused_and_the_next_call_works(harness: Any) -> None:
    with socket.create_connection(("127.0.0.1", harness.port)) as raw:
        raw.sendall(b"\x00garbage\xff" * 1000)
    name = "/edgekd.v1.Teacher/StreamLogits"
    not_protobuf = harness.channel.unary_stream(name)
    with pytest.raises(grpc.RpcError) as refused:
        list(not_protobuf(b"\xff" * 100, timeout=10))
    assert refused.value.code() is Code.INVALID_ARGUMENT
    assert refused.value.details() == "the message is not a StreamLogitsRequest"
    with grpc.insecure_channel(f"127.0.0.1:{harness.port}", options=[("grpc.max_send_message_length", -1)]) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            list(channel.unary_stream(name)(bytes(8 << 20), timeout=10))
        assert refused.value.code() is Code.RESOURCE_EXHAUSTED
        bomb = channel.unary_stream(name)
        with pytest.raises(grpc.RpcError) as refused:
            list(bomb(bytes(64 << 20), timeout=10, compression=grpc.Compression.Gzip))
        assert refused.value.code() is Code.UNIMPLEMENTED, "we compress nothing, so nothing is inflated"
        with pytest.raises(grpc.RpcError):
            list(channel.unary_stream(name)(b"", timeout=10, metadata=[("x-big", "a" * 20_000)]))
    assert len(harness.stream()) == 3


def test_rate_limit_is_asked_for_every_chunk(make_harness: Callable[..., Any]) -> None:
    taken: list[int] = []

    class Counting(RateLimiter):
        def take(self, num_bytes: int, now: float) -> None:
            taken.append(num_bytes)
            super().take(num_bytes, now)

    harness = make_harness(rate_limiter=Counting(1e9))
    chunks = harness.stream(count=4)
    assert taken == [len(chunk.payload) for chunk in chunks]


@pytest.mark.promise(number=24)
def test_server_that_stops_lets_a_short_stream_end_and_sends_a_long_one_away(make_harness: Callable[..., Any]) -> None:
    class Scripted(RateLimiter):
        """Waits briefly for every chunk up to the batch of 4, and then for a very long time."""

        an_age_has_begun = False

        def wait(self, now: float) -> float:
            return 1000.0 if self.an_age_has_begun else 0.2

        def take(self, num_bytes: int, now: float) -> None:
            self.an_age_has_begun |= num_bytes == 4 * 7 * 4

    rate_limiter = Scripted(1e9)
    harness = make_harness(rate_limiter=rate_limiter)
    long = harness.stub.StreamLogits(harness.request(count=MAX_WINDOW), timeout=30)
    next(long)
    short = harness.stub.StreamLogits(harness.request(count=1, batch_size=4), timeout=30)
    wait_until(lambda: rate_limiter.an_age_has_begun or harness.server.service.num_streams == 2)
    begun = time.monotonic()
    harness.stop_server()
    assert time.monotonic() - begun < 10
    assert len(list(short)) == 1
    with pytest.raises(grpc.RpcError) as ended:
        list(long)
    assert ended.value.code() is Code.UNAVAILABLE
    assert "shutting down" in ended.value.details()


@pytest.mark.promise(number=24)
def test_stopping_server_does_not_wait_for_a_batch_that_is_being_computed(harness: Any) -> None:
    harness.teacher.gate.clear()
    waiting = harness.stub.StreamLogits(harness.request(), timeout=30)
    wait_until(lambda: harness.server.service.num_streams == 1)
    begun = time.monotonic()
    harness.stop_server()
    assert time.monotonic() - begun < 10
    with pytest.raises(grpc.RpcError) as ended:
        list(waiting)
    assert ended.value.code() is Code.UNAVAILABLE


def test_health_is_not_serving_during_shutdown(harness: Any) -> None:
    health = health_pb2_grpc.HealthStub(harness.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="edgekd.v1.Teacher"), timeout=30)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    harness.stop_server()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


def test_first_request_for_a_few_samples_has_those_after_them_computed_too(harness: Any) -> None:
    asked: list[int] = []
    compute = harness.teacher.logits
    harness.store._compute = lambda ids: (asked.append(len(ids)), compute(ids))[1]
    assert len(harness.stream(count=40, batch_size=1)) == 40
    assert asked == [40], "one sample a batch, and one forward for all of them"


def test_no_more_than_a_forward_is_computed_ahead(make_harness: Callable[..., Any], key: Any) -> None:
    harness = make_harness(key=replace(key, num_samples=5000))
    asked: list[int] = []
    compute = harness.teacher.logits
    harness.store._compute = lambda ids: (asked.append(len(ids)), compute(ids))[1]
    harness.stream(count=3, batch_size=40)
    assert asked == [64, 56]


def test_samples_without_a_request_are_computed_in_the_background(harness: Any) -> None:
    harness.on_loop(harness.server.service.fill_store())
    assert harness.store.num_ready == harness.key.num_samples
    assert sorted(harness.teacher.asked) == list(range(harness.key.num_samples))
    harness.stream(count=9)
    assert len(harness.teacher.asked) == harness.key.num_samples


def test_background_filling_lets_requests_in_and_ends_with_the_server(make_harness: Callable[..., Any], key: Any) -> None:
    harness = make_harness(key=replace(key, num_samples=5000))
    blocks = threading.Semaphore(2)
    compute = harness.teacher.logits
    harness.store._compute = lambda ids: (blocks.acquire(timeout=30), compute(ids))[1]
    filling = asyncio.run_coroutine_threadsafe(harness.server.service.fill_store(), harness._loop)
    with ThreadPoolExecutor(1) as pool:
        wait_until(lambda: harness.store.num_ready == 128)  # the third block waits
        stream = pool.submit(harness.stream, count=1, batch_size=8, seed=7)
        wait_until(lambda: harness.server.service.num_streams == 1)
        blocks.release(6)  # the filling may begin some more blocks before the request waits for its turn
        assert stream.result(30), "the request came after some blocks, not after all"
    assert harness.store.num_ready < 5000
    release = threading.Timer(0.5, blocks.release, [4])  # the block in progress ends, and a later one would wait for too long
    release.start()
    harness.stop_server()
    filling.result(10)
    release.join()
    assert harness.store.num_ready < 5000


def test_background_filling_gives_up_on_a_broken_teacher_and_serving_goes_on(
    harness: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ids = batch_ids(1, harness.key.num_samples, 8, 0)
    harness.stream(count=1)
    harness.teacher.failure = ValueError("the teacher's weights are broken")
    harness.on_loop(harness.server.service.fill_store())
    assert "stopped filling the store in the background: the teacher's weights are broken" in caplog.text
    assert harness.store.num_ready == len(ids)
    assert len(harness.stream(count=1)) == 1


def test_thirty_two_concurrent_edges_get_the_same_batches_as_one(make_harness: Callable[..., Any]) -> None:
    harness = make_harness(max_streams=32)
    alone = {seed: harness.stream(count=30, seed=seed) for seed in range(32)}
    with ThreadPoolExecutor(32) as edges:
        together = dict(zip(range(32), edges.map(lambda seed: harness.stream(count=30, seed=seed), range(32)), strict=True))
    assert together == alone
