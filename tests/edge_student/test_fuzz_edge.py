"""Fuzz tests of the edge's external data: every value is decoded or raises the documented error, with bounded memory."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hostile import ANY_JSON, CONTROL, allocating_at_most, nearly
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_student.ipc import messages
from edge_student.ipc.messages import BatchReceived, Configure, Described, Failed, LinkTrouble, UseRing
from edge_student.ipc.ring import Ring, RingShape
from edge_student.receive.cache import CacheError, CacheKey, open_cache, open_filled
from edge_student.receive.description import RequestRefusedError, check_description
from edge_student.run.profile_match import check_profile, load_profile
from edge_student.settings.student import TrainConfig
from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import encode

in_one_folder = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
uint32 = st.sampled_from([0, 1, 2, 3, 64, 4096, 2**18, 2**27, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
uint64 = uint32 | st.sampled_from([2**27 + 1, 2**32, 2**64 - 1])
DIGEST = "7" * 64
digests = st.sampled_from([DIGEST, "", "../" * 21 + "x", "A" * 64, "7" * 63, CONTROL.replace("\ud800", "")]) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
enums = st.lists(st.integers(-1, 6), max_size=5)
SANE = {
    "protocol_version": 1,
    "teacher_digest": DIGEST,
    "dataset_digest": DIGEST,
    "num_samples": 40,
    "num_classes": 5,
    "encodings": [1, 2, 3, 4],
    "max_batch_size": 64,
    "max_window": 8,
    "input_shape": [1, 2, 3],
    "input_encodings": [1, 2],
}
fields = {
    "protocol_version": uint32,
    "teacher_digest": digests,
    "dataset_digest": digests,
    "dataset_name": st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.just("a" * 5000),
    "num_samples": uint64,
    "num_classes": uint32,
    "encodings": enums,
    "max_batch_size": uint32,
    "max_window": uint32,
    "max_chunk_bytes": uint32,
    "max_stride": uint32,
    "input_shape": st.lists(uint32, max_size=5),
    "input_encodings": enums,
    "max_streams": uint32,
}
descriptions = st.fixed_dictionaries({}, optional=fields).map(lambda changes: teacher_pb2.DescribeResponse(**(SANE | changes)))


def configure(encoding: str = "float32", top_k: int = 0, inputs: str = "") -> Configure:
    return Configure(
        teacher="127.0.0.1:1",
        batch_size=7,
        seed=3,
        encoding=encoding,
        top_k=top_k,
        window=4,
        max_wait_s=1.0,
        log_level="info",
        niceness=0,
        is_idle=False,
        inputs=inputs,
    )


CONFIGS = [configure(), configure("topk", 3), configure("int8"), configure(inputs="pixels"), configure("float16", inputs="stored")]


@given(answer=descriptions, config=st.sampled_from(CONFIGS))
@settings(max_examples=300)
def test_any_description_is_valid_or_rejected(answer: teacher_pb2.DescribeResponse, config: Configure) -> None:
    try:
        with allocating_at_most(2 << 20):
            check_description(answer, config, config.teacher)
    except RequestRefusedError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 2000
        return
    assert answer.teacher_digest.isalnum()
    assert answer.dataset_digest.isalnum()
    assert 1 <= answer.num_samples <= 2**27
    described = Described(
        teacher_digest=answer.teacher_digest,
        dataset_digest=answer.dataset_digest,
        dataset_name=answer.dataset_name,
        num_samples=answer.num_samples,
        num_classes=answer.num_classes,
        input_shape=tuple(answer.input_shape),
    )
    local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with local, remote:
        messages.send(local, described)
        assert messages.receive(remote) == (described, []), "a valid description reaches the trainer in one packet"
    shape = RingShape.one_slot(
        messages_form(config),
        batch_size=config.batch_size,
        num_classes=answer.num_classes,
        input_shape=tuple(answer.input_shape) if config.inputs else (),
    )
    assert shape.num_bytes < 64 << 20, "a slot is no larger than its chunks can fill"


def messages_form(config: Configure) -> Any:
    from edgekd.wire.codec import Encoding, Format

    return Format(Encoding(config.encoding), config.top_k)


def test_a_shape_of_a_million_dimensions_is_rejected() -> None:
    with pytest.raises(RequestRefusedError, match=r"inputs of shape \(1, 1, 1, 1, 1, 1, 1, 1\), must have at most 4 dimensions"):
        check_description(teacher_pb2.DescribeResponse(**(SANE | {"input_shape": [1] * 1_000_000})), CONFIGS[0], "t:1")  # type: ignore[arg-type]


@given(data=st.binary(max_size=80))
@settings(max_examples=100)
def test_any_bytes_are_rejected_as_a_description(data: bytes) -> None:
    try:
        answer = teacher_pb2.DescribeResponse.FromString(data)
    except DecodeError:
        return
    with pytest.raises(RequestRefusedError):
        check_description(answer, CONFIGS[0], CONFIGS[0].teacher)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with local, remote:
        yield local, remote


names = st.sampled_from(["Configure", "Described", "UseRing", "Ready", "Go", "Failed", "Finished", "Nobody", "__init__"])
packets = st.binary(min_size=1, max_size=60) | st.tuples(names, ANY_JSON).map(json.dumps).map(str.encode)
packets = packets | st.sampled_from([b"w", b"b", b"[" * 5000, b"9" * 5000, b'["UseRing", {"start": 1}]', b"b" + bytes(100)])
batch = BatchReceived(index=2, started=1.0, ended=2.0, cpu_s=0.5, busy_s=None, num_bytes=4)
packets = packets | st.binary(min_size=48, max_size=48).map(lambda body: b"b" + body) | st.just(batch.pack())


@given(packet=packets)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_packet_is_a_message_or_an_assertion_error(packet: bytes, pair: tuple[socket.socket, socket.socket]) -> None:
    """Both ends of this socket are EdgeKD, so an invalid packet is a bug: an AssertionError."""
    local, remote = pair
    local.send(packet)
    try:
        message, fds = messages.receive(remote)
    except AssertionError as error:
        assert str(error).startswith("invalid message: ")
        assert len(str(error)) < 500
    else:
        assert isinstance(message, messages.Message)
        assert fds == []


finite = st.floats(allow_nan=False)
texts = st.text(max_size=20)
sound = st.one_of(
    st.builds(BatchReceived, index=uint64, started=finite, ended=finite, cpu_s=finite, busy_s=st.none() | finite, num_bytes=uint64),
    st.builds(Failed, cause=texts, is_user_error=st.booleans()),
    st.builds(LinkTrouble, time=finite, cause=texts, attempt=uint32),
    st.builds(UseRing, start=uint64, stop=uint64),
    st.builds(
        Described,
        teacher_digest=texts,
        dataset_digest=texts,
        dataset_name=texts,
        num_samples=uint64,
        num_classes=uint32,
        input_shape=st.lists(uint32, max_size=3).map(tuple),
    ),
)


@given(message=sound)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_message_arrives_as_it_was_sent(message: messages.Message, pair: tuple[socket.socket, socket.socket]) -> None:
    local, remote = pair
    messages.send(local, message)
    assert messages.receive(remote) == (message, [])


words = st.sampled_from([0, 1, 2, 4, 7, 2**16, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
HEADER_BYTES = 36


@given(
    header=st.binary(max_size=HEADER_BYTES)
    | st.lists(words, min_size=7, max_size=7).map(lambda found: b"EDGEKD03" + np.array(found, "<u4").tobytes()),
    size=st.sampled_from([0, 1, 35, 36, 4096, 8192, 1 << 20]),
)
@settings(max_examples=300)
def test_any_header_is_a_ring_or_rejected(header: bytes, size: int) -> None:
    fd = os.memfd_create("header")
    try:
        os.ftruncate(fd, size)
        os.pwrite(fd, header, 0)
        with allocating_at_most(1 << 20):
            try:
                ring = Ring.attach(fd)
            except ValueError as error:
                assert str(error).isprintable()
            else:
                assert ring.shape.num_bytes == max(size, len(header))
    finally:
        os.close(fd)


KEY = CacheKey(
    teacher_digest="a" * 64,
    dataset_digest="b" * 64,
    dataset_name="tiny:public",
    num_samples=12,
    num_classes=5,
    encoding="float16",
    top_k=0,
)
META = {"format": 2, **{name: getattr(KEY, name) for name in KEY.__dataclass_fields__}, "augmentation": "none", "input_shape": []}
NO_INPUTS = np.zeros((0, 0, 0, 0), np.uint8)


def filled(base: Path) -> Path:
    cache = open_cache(base, KEY)
    cache.put(np.arange(12), encode(np.ones((12, 5), np.float32), KEY.form), NO_INPUTS)
    cache.close()
    return cache.folder


def open_or_refuse(base: Path) -> None:
    try:
        with allocating_at_most(2 << 20):
            cache = open_filled(base, dataset_digest=KEY.dataset_digest, form=KEY.form)
    except CacheError as error:
        assert str(error).isprintable()
        return
    out = np.full((1, cache.key.num_classes), np.nan, np.float32)
    for sample in range(min(cache.key.num_samples, 12)):
        if cache.has_all(np.array([sample])):
            cache.read(np.array([sample]), out, NO_INPUTS)
            assert np.isfinite(out).all()
    cache.close()


@given(meta=nearly(META) | ANY_JSON)
@settings(in_one_folder, max_examples=150)
def test_any_meta_is_of_a_cache_or_skipped(meta: Any, tmp_path: Path) -> None:
    folder = tmp_path / KEY.folder if (tmp_path / KEY.folder).exists() else filled(tmp_path)
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    open_or_refuse(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_samples", 12.0),
        ("num_samples", "12"),
        ("num_samples", True),
        ("num_samples", 0),
        ("num_samples", -12),
        ("num_classes", 5.0),
        ("num_classes", "5"),
        ("input_shape", "abc"),
        ("input_shape", [1, 2]),
        ("input_shape", [1, 2, -3]),
        ("input_shape", {"a": 1}),
        ("teacher_digest", 7),
        ("dataset_name", ["x"]),
        ("dataset_name", "a\x1b[2J"),
        ("top_k", False),
        ("format", True),
        ("augmentation", "flip"),
        ("augmentation", 0),
    ],
)
def test_an_invalid_meta_is_skipped(key: str, value: object, tmp_path: Path) -> None:
    folder = filled(tmp_path)
    for name in ("rows", "checksums"):
        if value == 0 and key == "num_samples":
            (folder / name).write_bytes(b"")
    (folder / "meta.json").write_text(json.dumps({**META, key: value}), encoding="utf-8")
    with pytest.raises(CacheError, match="there is no logit cache"):
        open_filled(tmp_path, dataset_digest=KEY.dataset_digest, form=KEY.form)


contents = (
    st.none()
    | st.binary(max_size=30)
    | st.sampled_from([b"[" * 5000, b"9" * 5000, b"\xff" * 48, b"\xff" * 120, bytes(48), bytes(120)])
)


@given(damages=st.lists(st.tuples(st.sampled_from(["meta.json", "rows", "checksums"]), contents), min_size=1, max_size=3))
@settings(in_one_folder, max_examples=40)
def test_a_damaged_cache_is_read_in_part_rebuilt_or_rejected(
    damages: list[tuple[str, bytes | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("cache")
    folder = filled(base)
    for name, content in damages:
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    open_or_refuse(base)
    cache = open_cache(base, KEY)
    cache.put(np.arange(12), encode(np.ones((12, 5), np.float32), KEY.form), NO_INPUTS)
    assert cache.has_all(np.arange(12))
    cache.close()


PROFILE = {
    "cores": 2,
    "forward": 1.0,
    "backward": 2.0,
    "comm": 1.5,
    "modes": [
        {"name": "comp-only", "comm_rate": 0.0, "comp_rate": 2.0},
        {"name": "split:1", "comm_rate": 1.0, "comp_rate": 1.0},
        {"name": "comm-only", "comm_rate": 2.0, "comp_rate": 0.0},
    ],
    "fingerprint": {"cpu": "it", "cores": [0, 1], "torch": "2"},
    "settings": {"model": "cnn", "batch_size": 8, "input_shape": [1, 8, 8], "num_classes": None},
}
HERE = dict.fromkeys(("cpu", "architecture", "cores", "governor", "power_mode", "torch"), "x")
WORK = dict.fromkeys(
    (
        "model",
        "batch_size",
        "public_batch",
        "input_shape",
        "num_classes",
        "encoding",
        "inputs",
        "streams",
        "device",
        "torch_threads",
    )
)


@given(data=nearly(PROFILE) | ANY_JSON)
@settings(max_examples=200)
def test_any_profile_is_of_this_device_or_rejected(data: Any) -> None:
    try:
        check_profile(data, fingerprint=HERE, settings=WORK)
    except ValueError as error:
        assert str(error).startswith("the profile was measured ")
        assert len(str(error)) < 1000


CONFIG = {"teacher": "127.0.0.1:1", "private": "digits:private", "model": "cnn", "cycles": 1}


@given(
    content=st.binary(max_size=40)
    | (nearly(PROFILE) | ANY_JSON).map(json.dumps).map(str.encode)
    | st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b'{"cores": 2, "cores": 2}', b"\xff\xfe"])
)
@in_one_folder
def test_any_file_is_a_profile_or_rejected_with_its_name(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(content)
    config = TrainConfig(**CONFIG, out=tmp_path, profile=file)  # type: ignore[arg-type]
    try:
        load_profile(config, [0, 1], device="cpu", num_shards=None)
    except ValueError as error:
        assert str(error).startswith(f"--profile {file}: ")
