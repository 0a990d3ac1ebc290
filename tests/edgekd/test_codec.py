"""Logits as bytes and back: exact or within the stated bound, and never a damaged value."""

import re
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekd.codec import ChunkError, Encoding, checksum, chunk_rows, decode_into, encode, from_wire, to_wire
from edgekd.v1 import teacher_pb2
from edgekd.wire import MAX_CHUNK_BYTES, MAX_CLASSES

LARGEST = float(np.finfo(np.float32).max)
logits_of_all_shapes = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    elements=st.floats(-LARGEST, LARGEST, width=32) | st.sampled_from([0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8]),
)


def decode(payload: bytes, encoding: Encoding, rows: int, num_classes: int, crc32: int | None = None) -> npt.NDArray[np.float32]:
    out = np.full((rows, num_classes), 123.0, np.float32)
    crc32 = checksum(payload) if crc32 is None else crc32
    decode_into(payload, encoding=encoding, rows=rows, num_classes=num_classes, crc32=crc32, out=out)
    return out


@given(logits=logits_of_all_shapes)
def test_float32_comes_back_bit_by_bit(logits: npt.NDArray[np.float32]) -> None:
    back = decode(encode(logits, Encoding.FLOAT32), Encoding.FLOAT32, *logits.shape)
    assert back.tobytes() == logits.tobytes()


@given(logits=logits_of_all_shapes)
def test_float16_comes_back_within_its_bound(logits: npt.NDArray[np.float32]) -> None:
    back = decode(encode(logits, Encoding.FLOAT16), Encoding.FLOAT16, *logits.shape).astype(np.float64)
    clipped = np.clip(logits.astype(np.float64), -65504, 65504)
    assert np.all(np.abs(back - clipped) <= np.maximum(np.abs(clipped) * 2.0**-11, 2.0**-25))


def test_payloads_are_little_endian_row_after_row() -> None:
    logits = np.array([[1.0, -2.0], [0.5, 70_000.0]], np.float32)
    assert encode(logits, Encoding.FLOAT32).hex() == "0000803f000000c00000003f00b88847"
    assert encode(logits, Encoding.FLOAT16).hex() == "003c00c00038ff7b"


def test_a_transposed_array_is_sent_in_the_order_of_its_rows() -> None:
    logits = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert encode(logits, Encoding.FLOAT32) == np.ascontiguousarray(logits).tobytes()


def test_a_payload_is_decoded_into_a_slice_of_a_larger_array() -> None:
    ring = np.zeros((4, 6), np.float32)
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    payload = encode(logits, Encoding.FLOAT16)
    decode_into(payload, encoding=Encoding.FLOAT16, rows=2, num_classes=3, crc32=checksum(payload), out=ring[1:3, 3:])
    assert ring[1:3, 3:].tolist() == logits.tolist()
    assert ring.sum() == logits.sum()


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_sent(encoding: Encoding, value: float) -> None:
    with pytest.raises(ValueError, match=r"^logits hold a NaN or an infinity"):
        encode(np.array([[0.0, value]], np.float32), encoding)


@pytest.mark.parametrize(("encoding", "dtype"), [(Encoding.FLOAT32, "<f4"), (Encoding.FLOAT16, "<f2")])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_received(encoding: Encoding, dtype: str, value: float) -> None:
    payload = np.array([[0.0, value]], dtype).tobytes()
    with pytest.raises(ChunkError, match=r"^payload holds a NaN or an infinity among its 1 rows x 2 float"):
        decode(payload, encoding, 1, 2)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1), ()])
def test_only_a_matrix_is_encoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape("must be float32 [rows, classes]")):
        encode(np.zeros(shape, np.float32), Encoding.FLOAT32)


def test_only_float32_is_encoded() -> None:
    with pytest.raises(ValueError, match=r"^logits are float64 \[2, 2\], must be float32"):
        encode(np.zeros((2, 2)), Encoding.FLOAT32)  # type: ignore[arg-type]


@given(logits=logits_of_all_shapes, encoding=st.sampled_from(Encoding), change=st.integers(-40, 40).filter(bool))
def test_a_payload_of_another_length_is_refused(logits: npt.NDArray[np.float32], encoding: Encoding, change: int) -> None:
    payload = encode(logits, encoding)
    changed = payload + bytes(change) if change > 0 else payload[:change]
    with pytest.raises(ChunkError, match=rf"^payload has {len(changed)} bytes, .* are {len(payload)} bytes$"):
        decode(changed, encoding, *logits.shape)


@given(logits=logits_of_all_shapes, encoding=st.sampled_from(Encoding), data=st.data())
def test_a_flipped_bit_is_refused(logits: npt.NDArray[np.float32], encoding: Encoding, data: st.DataObject) -> None:
    payload = bytearray(encode(logits, encoding))
    crc32 = checksum(bytes(payload))
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ChunkError, match=rf"^payload has CRC-32 [0-9a-f]{{8}}, the chunk says {crc32:08x}$"):
        decode(bytes(payload), encoding, *logits.shape, crc32)


def test_a_refused_payload_leaves_the_target_untouched() -> None:
    out = np.full((1, 2), 7.0, np.float32)
    payload = np.array([[1.0, np.nan]], "<f2").tobytes()
    with pytest.raises(ChunkError):
        decode_into(payload, encoding=Encoding.FLOAT16, rows=1, num_classes=2, crc32=checksum(payload), out=out)
    assert out.tolist() == [[7.0, 7.0]]


@pytest.mark.parametrize("out", [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64), np.zeros(6, np.float32)], ids=str)
def test_a_target_of_another_shape_or_type_is_refused(out: npt.NDArray[np.float32]) -> None:
    payload = encode(np.zeros((2, 3), np.float32), Encoding.FLOAT32)
    with pytest.raises(ChunkError, match=re.escape(f"does not fit {out.dtype} {list(out.shape)}; it needs float32 [2, 3]")):
        decode_into(payload, encoding=Encoding.FLOAT32, rows=2, num_classes=3, crc32=checksum(payload), out=out)


@pytest.mark.parametrize(("rows", "num_classes"), [(0, 3), (-1, 3), (1, 0), (1, MAX_CLASSES + 1)])
def test_impossible_sizes_are_refused(rows: int, num_classes: int) -> None:
    out = np.zeros((max(rows, 0), num_classes), np.float32)
    with pytest.raises(ChunkError, match=f"^chunk of {rows} rows x {num_classes} classes"):
        decode_into(b"", encoding=Encoding.FLOAT32, rows=rows, num_classes=num_classes, crc32=0, out=out)


def test_a_chunk_over_the_limit_is_refused_before_its_bytes_are_looked_at() -> None:
    rows = MAX_CHUNK_BYTES // 4 + 1
    with pytest.raises(ChunkError, match=f"is {4 * rows} bytes, over {MAX_CHUNK_BYTES}$"):
        decode(b"", Encoding.FLOAT32, rows, 1)


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("num_classes", [1, 10, 1000, 65_537, MAX_CLASSES])
def test_a_chunk_takes_as_many_whole_rows_as_fit(encoding: Encoding, num_classes: int) -> None:
    rows = chunk_rows(num_classes, encoding)
    row_bytes = len(encode(np.zeros((1, num_classes), np.float32), encoding))
    assert rows >= 1
    assert rows * row_bytes <= MAX_CHUNK_BYTES < (rows + 1) * row_bytes


@pytest.mark.parametrize("num_classes", [0, MAX_CLASSES + 1])
def test_no_chunk_holds_a_row_of_too_many_classes(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"^num_classes is {num_classes}, must be in 1 .. {MAX_CLASSES}$"):
        chunk_rows(num_classes, Encoding.FLOAT32)


def test_the_checksum_is_the_one_of_zlib_and_ethernet() -> None:
    assert checksum(b"123456789") == 0xCBF43926 == zlib.crc32(b"123456789")


def test_encodings_have_the_numbers_of_the_schema() -> None:
    names = {encoding: f"ENCODING_{encoding.name}" for encoding in Encoding}
    assert {names[encoding]: to_wire(encoding) for encoding in Encoding} == {
        name: number for name, number in teacher_pb2.Encoding.items() if name != "ENCODING_UNSPECIFIED"
    }
    assert [from_wire(to_wire(encoding)) for encoding in Encoding] == list(Encoding)


@pytest.mark.parametrize("number", [0, 3, -1])
def test_an_unknown_encoding_is_refused_with_the_known_ones(number: int) -> None:
    with pytest.raises(ValueError) as refusal:
        from_wire(number)
    assert str(refusal.value) == f"encoding {number} is unknown, must be one of 1 (float32), 2 (float16)"
