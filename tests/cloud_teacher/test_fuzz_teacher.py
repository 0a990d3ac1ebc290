"""Fuzzed requests, settings and files of the teacher lead to a value or to the documented error."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hostile import ANY_JSON, allocating_at_most
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_teacher.logits.store import StoreKey, open_store
from cloud_teacher.service.admission import RefusedError, Window, admit, parse
from cloud_teacher.service.batches import WindowReader
from cloud_teacher.service.limits import Limits
from cloud_teacher.service.rate_limit import RateLimiter
from edgekd.cli.rate import parse_rate
from edgekd.v1 import teacher_pb2
from edgekd.wire.inputs import InputEncoding
from edgekd.wire.limits import MAX_BATCH_SIZE, MAX_START, MAX_STRIDE, MAX_WINDOW

KEY = StoreKey(teacher_digest="ab" * 32, dataset_digest="cd" * 32, num_samples=50, num_classes=7)
CODES = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.FAILED_PRECONDITION}
ENOUGH = 64 << 10

around = st.sampled_from([0, 1, 2, 7, 64, 65, 1024, 1025, 4096, 4097, 2**31 - 1, 2**31, 2**32 - 1])
uint32 = around | st.integers(0, 2**32 - 1)
uint64 = around | st.sampled_from([2**32, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
enum = st.integers(-1, 9) | st.sampled_from([2**31 - 1, -(2**31)])
digests = st.sampled_from([KEY.teacher_digest, KEY.dataset_digest, "", "AB" * 32, "ab" * 31, "a" * 10_000, "\x1b[2J\u00e4\n"])


def admit_or_refuse(message: bytes, encodings: tuple[InputEncoding, ...] = ()) -> Window | None:
    try:
        with allocating_at_most(ENOUGH + 4 * len(message)):
            window = admit(parse(message), KEY, Limits(), encodings)
    except RefusedError as refused:
        assert refused.code in CODES
        assert refused.details.isprintable()
        assert len(refused.details) < 300
        return None
    assert 1 <= window.count <= MAX_WINDOW
    assert 1 <= window.batch_size <= MAX_BATCH_SIZE
    assert 1 <= window.stride <= MAX_STRIDE
    assert 0 <= window.start <= window.start + (window.count - 1) * window.stride <= MAX_START
    assert 0 <= window.seed < 2**64
    assert window.inputs in (None, *encodings)
    return window


@pytest.mark.promise(number=12)
@given(
    message=st.builds(
        teacher_pb2.StreamLogitsRequest,
        start=uint64,
        count=uint32,
        batch_size=uint32,
        seed=uint64,
        teacher_digest=digests | st.just(KEY.teacher_digest),
        dataset_digest=digests | st.just(KEY.dataset_digest),
        encoding=enum,  # type: ignore[arg-type]
        top_k=uint32,
        stride=uint32,
        input_encoding=enum,  # type: ignore[arg-type]
    ),
    encodings=st.sampled_from([(), (InputEncoding.PIXELS,), tuple(InputEncoding)]),
)
@settings(max_examples=400)
def test_any_fields_are_a_window_or_refused_for_no_memory(
    message: teacher_pb2.StreamLogitsRequest, encodings: tuple[InputEncoding, ...]
) -> None:
    admit_or_refuse(message.SerializeToString(), encodings)


VALID = teacher_pb2.StreamLogitsRequest(
    start=3, count=4, batch_size=8, seed=1, teacher_digest=KEY.teacher_digest, dataset_digest=KEY.dataset_digest, encoding=1
)


@pytest.mark.promise(number=12)
@given(
    start=uint64.map(lambda start: min(start, MAX_START)),
    count=st.integers(1, 3),
    batch_size=st.integers(1, 200),
    seed=uint64,
    stride=st.integers(0, MAX_STRIDE),
    form=st.sampled_from([(1, 0), (2, 0), (3, 0), (4, 1), (4, 6)]),
)
@settings(max_examples=50)
def test_every_window_that_is_granted_can_be_read(
    start: int, count: int, batch_size: int, seed: int, stride: int, form: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    request = teacher_pb2.StreamLogitsRequest()
    request.CopyFrom(VALID)
    request.start, request.count, request.batch_size, request.seed, request.stride = start, count, batch_size, seed, stride
    request.encoding, request.top_k = form  # type: ignore[assignment]
    window = admit_or_refuse(request.SerializeToString())
    if window is None:
        assert start + (count - 1) * max(stride, 1) > MAX_START
        return
    store = open_store(tmp_path_factory.mktemp("store"), KEY, lambda ids: np.ones((len(ids), 7), np.float32))
    try:
        store.fill(np.arange(KEY.num_samples))
        reader, rows = WindowReader(window, store), 0
        while not reader.is_done:
            chunks = [teacher_pb2.LogitsChunk.FromString(message.data) for message in reader.read().messages]
            rows += sum(chunk.num_rows for chunk in chunks)
        assert rows == count * batch_size
    finally:
        store.close()


@pytest.mark.promise(number=12)
@given(message=st.binary(max_size=60))
@settings(max_examples=200)
def test_any_bytes_are_a_request_or_refused(message: bytes) -> None:
    admit_or_refuse(message)


@pytest.mark.promise(number=12)
@given(data=st.data())
@settings(max_examples=200)
def test_a_damaged_request_is_one_or_refused(data: st.DataObject) -> None:
    message = bytearray(VALID.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message)))
        message[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3) | st.just(b"\xff" * 10))
    admit_or_refuse(bytes(message))


@given(
    text=st.text(max_size=12)
    | st.builds(
        "{}{}".format,
        st.floats() | st.integers() | st.just("9" * 5000),
        st.sampled_from(["bit", "kbit", "mbit", "gbit", "Mbit", "", " bit"]),
    )
    | st.sampled_from(["0.0bit", f"0.{'0' * 322}5bit", f"{'9' * 400}gbit", "\u0663mbit", "1mbit\n"])
)
@settings(max_examples=300)
def test_any_text_is_a_rate_that_can_be_kept_or_refused(text: str) -> None:
    try:
        rate = parse_rate(text)
    except ValueError as error:
        assert str(error).startswith("--rate-limit is ")
        return
    assert text.isascii()
    rate_limiter = RateLimiter(rate)
    rate_limiter.take(1 << 20, 0.0)
    assert 0 <= rate_limiter.wait(0.0) < 1e8, "the time that a MiB takes is a time"


files = st.sampled_from(["meta.json", "have", "logits.f32"])
contents = st.none() | st.binary(max_size=30) | ANY_JSON.map(repr).map(lambda text: text.encode(errors="replace"))
contents = contents | st.sampled_from([b"[" * 5000, b"9" * 5000, b"{}", b"null", b'{"format": 1}'])


@given(damages=st.lists(st.tuples(files, contents), min_size=1, max_size=3))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_store_is_created_again(damages: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("store")
    store = open_store(base, KEY, lambda ids: np.ones((len(ids), 7), np.float32))
    store.fill(np.arange(5))
    store.close()
    for name, content in damages:
        path: Path = base / KEY.folder / name
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
    again = open_store(base, KEY, lambda ids: np.full((len(ids), 7), 2.0, np.float32))
    assert again.num_ready in (0, *(bin(int.from_bytes(content or b"")).count("1") for name, content in damages if name == "have"))
    assert np.isin(again.rows(np.arange(50)), (0.0, 2.0)).all()
    again.close()


@pytest.mark.parametrize("have", [b"\xff" * 7, b"\x00" * 7, b"\xaa" * 7])
def test_marks_of_missing_rows_are_ignored(have: bytes, tmp_path: Path) -> None:
    open_store(tmp_path, KEY, lambda ids: np.ones((len(ids), 7), np.float32)).close()
    (tmp_path / KEY.folder / "have").write_bytes(have)
    store = open_store(tmp_path, KEY, lambda ids: np.ones((len(ids), 7), np.float32))
    assert store.num_ready <= KEY.num_samples
    store.close()


def test_a_store_in_an_unknown_home_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such home folder"):
        open_store(Path("~nobody-of-that-name/x"), KEY, lambda ids: np.ones((len(ids), 7), np.float32))


def test_a_store_larger_than_any_disk_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"."):
        open_store(tmp_path, replace(KEY, num_samples=2**58), lambda ids: np.ones((len(ids), 7), np.float32))
    assert not list(tmp_path.glob("*/meta.json"))
    assert sum(entry.stat().st_size for entry in os.scandir(next(tmp_path.iterdir()))) == 0
