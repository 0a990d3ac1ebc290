"""The codec of logits: decoded values are exact or within the stated bound, and never damaged."""

import re
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import ChunkError, Encoding, Format, checksum, chunk_rows, decode_into, encode, from_wire, to_wire
from edgekd.wire.limits import MAX_CHUNK_BYTES, MAX_CLASSES, MAX_TOP_K

FLOAT32, FLOAT16, INT8 = Format(Encoding.FLOAT32), Format(Encoding.FLOAT16), Format(Encoding.INT8)
FORMATS = [FLOAT32, FLOAT16, INT8, Format(Encoding.TOPK, 1)]
LARGEST = float(np.finfo(np.float32).max)
logits_of_all_shapes = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(2, 7)),
    elements=st.floats(-LARGEST, LARGEST, width=32) | st.sampled_from([0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8]),
)


def decode(payload: bytes, form: Format, rows: int, num_classes: int, crc32: int | None = None) -> npt.NDArray[np.float32]:
    out = np.full((rows, num_classes), 123.0, np.float32)
    crc32 = checksum(payload) if crc32 is None else crc32
    decode_into(payload, form=form, rows=rows, num_classes=num_classes, crc32=crc32, out=out)
    return out


@given(logits=logits_of_all_shapes)
def test_float32_is_decoded_bit_by_bit(logits: npt.NDArray[np.float32]) -> None:
    back = decode(encode(logits, FLOAT32), FLOAT32, *logits.shape)
    assert back.tobytes() == logits.tobytes()


@given(logits=logits_of_all_shapes)
def test_float16_is_decoded_within_its_bound(logits: npt.NDArray[np.float32]) -> None:
    back = decode(encode(logits, FLOAT16), FLOAT16, *logits.shape).astype(np.float64)
    clipped = np.clip(logits.astype(np.float64), -65504, 65504)
    assert np.all(np.abs(back - clipped) <= np.maximum(np.abs(clipped) * 2.0**-11, 2.0**-25))


@given(logits=logits_of_all_shapes)
def test_int8_is_decoded_within_half_a_step(logits: npt.NDArray[np.float32]) -> None:
    back = decode(encode(logits, INT8), INT8, *logits.shape).astype(np.float64)
    exact = logits.astype(np.float64)
    scale = np.abs(exact).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(back - exact) <= np.maximum((0.5 + 2.0**-14) * scale, 2.0**-142))
    assert np.all(np.isfinite(back))


@given(logits=logits_of_all_shapes, data=st.data())
def test_the_k_largest_are_exact_and_the_others_share_one_logit(logits: npt.NDArray[np.float32], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, logits.shape[1] - 1))
    form = Format(Encoding.TOPK, k)
    back = decode(encode(logits, form), form, *logits.shape).astype(np.float64)
    for given_row, row in zip(logits.astype(np.float64), back, strict=True):
        assert np.array_equal(np.sort(given_row)[-k:], np.sort(row)[-k:])
        kept = np.argsort(row, kind="stable")[-k:] if len(set(row)) > 1 else np.arange(k)
        others = np.delete(row, kept)
        assert len(set(others)) == 1, "one logit for all others"
        rest = np.sort(given_row)[:-k]
        exact = np.logaddexp.reduce(rest - rest.max()) - np.log(len(rest)) + rest.max()
        assert others[0] == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_the_softmax_mass_of_the_rest_is_preserved() -> None:
    logits = (np.random.default_rng(0).standard_normal((16, 1000)) * 3).astype(np.float32)
    form = Format(Encoding.TOPK, 10)
    back = decode(encode(logits, form), form, *logits.shape)

    def of_the_ten(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        weights = np.exp(values.astype(np.float64))
        return np.asarray(np.sort(weights, axis=1)[:, -10:].sum(axis=1) / weights.sum(axis=1))

    assert of_the_ten(back) == pytest.approx(of_the_ten(logits), rel=1e-5)


def test_ten_of_a_thousand_classes_take_a_fiftieth_of_the_bytes() -> None:
    logits = np.zeros((128, 1000), np.float32)
    assert len(encode(logits, Format(Encoding.TOPK, 10))) == 128 * 84
    assert len(encode(logits, INT8)) == 128 * 1004
    assert len(encode(logits, FLOAT32)) == 128 * 4000


def test_every_float16_is_decoded_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    halves = bits[bits & 0x7C00 != 0x7C00].view(np.float16)
    payload = halves.astype("<f2").tobytes()
    back = decode(payload, FLOAT16, 1, len(halves))[0]
    assert np.array_equal(back.view(np.uint32), halves.astype(np.float32).view(np.uint32))


def row_of_int8(scale: float, *values: int) -> bytes:
    return np.float32(scale).tobytes() + np.array(values, np.int8).tobytes()


def row_of_top_k(rest: float, classes: list[int], values: list[float]) -> bytes:
    return np.float32(rest).tobytes() + np.array(classes, "<u4").tobytes() + np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("form", "num_classes", "payload", "message"),
    [
        (INT8, 2, row_of_int8(1.0, -128, 0), "holds -128"),
        (INT8, 2, row_of_int8(-1.0, 1, 2), "holds a scale outside"),
        (INT8, 2, row_of_int8(np.nan, 1, 2), "holds a scale outside"),
        (INT8, 2, row_of_int8(np.inf, 0, 0), "holds a scale outside"),
        (INT8, 2, row_of_int8(LARGEST, 1, 0), "holds a scale outside"),
        (Format(Encoding.TOPK, 2), 4, row_of_top_k(0.0, [1, 4], [1.0, 2.0]), "holds class 4, must be below 4"),
        (Format(Encoding.TOPK, 2), 4, row_of_top_k(0.0, [2, 1], [1.0, 2.0]), "holds a row whose classes do not ascend"),
        (Format(Encoding.TOPK, 2), 4, row_of_top_k(0.0, [2, 2], [1.0, 2.0]), "holds a row whose classes do not ascend"),
        (Format(Encoding.TOPK, 2), 4, row_of_top_k(1.5, [1, 2], [1.0, 2.0]), "has a rest above one of the largest"),
        (Format(Encoding.TOPK, 2), 4, row_of_top_k(np.nan, [1, 2], [1.0, 2.0]), "holds a NaN or an infinity"),
        (Format(Encoding.TOPK, 2), 4, row_of_top_k(-np.inf, [1, 2], [1.0, 2.0]), "holds a NaN or an infinity"),
        (Format(Encoding.TOPK, 2), 4, row_of_top_k(0.0, [1, 2], [np.inf, 2.0]), "holds a NaN or an infinity"),
    ],
)
def test_values_that_no_encoder_writes_are_rejected(form: Format, num_classes: int, payload: bytes, message: str) -> None:
    out = np.full((1, num_classes), 7.0, np.float32)
    with pytest.raises(ChunkError, match=f"^payload {message}.* in its 1 rows x {num_classes} {form}$"):
        decode_into(payload, form=form, rows=1, num_classes=num_classes, crc32=checksum(payload), out=out)
    assert out.tolist() == [[7.0] * num_classes]


@pytest.mark.parametrize(
    ("encoding", "top_k", "message"),
    [
        (Encoding.TOPK, 0, f"top_k is 0, must be in 1 .. {MAX_TOP_K} with encoding topk"),
        (Encoding.TOPK, MAX_TOP_K + 1, f"top_k is {MAX_TOP_K + 1}, must be in"),
        (Encoding.INT8, 3, "top_k is 3, must be 0 with encoding int8"),
    ],
)
def test_top_k_is_valid_only_with_topk(encoding: Encoding, top_k: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Format(encoding, top_k)


@pytest.mark.parametrize("k", [3, 4])
def test_k_must_be_below_the_number_of_classes(k: int) -> None:
    with pytest.raises(ValueError, match=f"^top_k is {k}, must be below the number of classes, 3$"):
        Format(Encoding.TOPK, k).layout(3)


def test_payloads_are_little_endian_row_after_row() -> None:
    logits = np.array([[1.0, -2.0], [0.5, 70_000.0]], np.float32)
    assert encode(logits, FLOAT32).hex() == "0000803f000000c00000003f00b88847"
    assert encode(logits, FLOAT16).hex() == "003c00c00038ff7b"


def test_a_transposed_array_is_sent_in_the_order_of_its_rows() -> None:
    logits = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert encode(logits, FLOAT32) == np.ascontiguousarray(logits).tobytes()


def test_a_payload_is_decoded_into_a_slice_of_a_larger_array() -> None:
    ring = np.zeros((4, 6), np.float32)
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    payload = encode(logits, FLOAT16)
    decode_into(payload, form=FLOAT16, rows=2, num_classes=3, crc32=checksum(payload), out=ring[1:3, 3:])
    assert ring[1:3, 3:].tolist() == logits.tolist()
    assert ring.sum() == logits.sum()


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_never_encoded(form: Format, value: float) -> None:
    with pytest.raises(ValueError, match=r"^logits hold a NaN or an infinity"):
        encode(np.array([[0.0, value]], np.float32), form)


@pytest.mark.parametrize(("form", "dtype"), [(FLOAT32, "<f4"), (FLOAT16, "<f2")])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_never_decoded(form: Format, dtype: str, value: float) -> None:
    payload = np.array([[0.0, value]], dtype).tobytes()
    with pytest.raises(ChunkError, match=r"^payload holds a NaN or an infinity in its 1 rows x 2 float"):
        decode(payload, form, 1, 2)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1), ()])
def test_only_a_matrix_is_encoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape("must be float32 [rows, classes]")):
        encode(np.zeros(shape, np.float32), FLOAT32)


def test_only_float32_is_encoded() -> None:
    with pytest.raises(ValueError, match=r"^logits are float64 \[2, 2\], must be float32"):
        encode(np.zeros((2, 2)), FLOAT32)  # type: ignore[arg-type]


@pytest.mark.promise(number=10)
@given(logits=logits_of_all_shapes, form=st.sampled_from(FORMATS), change=st.integers(-40, 40).filter(bool))
def test_a_payload_of_another_length_is_rejected(logits: npt.NDArray[np.float32], form: Format, change: int) -> None:
    payload = encode(logits, form)
    changed = payload + bytes(change) if change > 0 else payload[:change]
    with pytest.raises(ChunkError, match=rf"^payload has {len(changed)} bytes, must have {len(payload)} for"):
        decode(changed, form, *logits.shape)


@pytest.mark.promise(number=10)
@given(logits=logits_of_all_shapes, form=st.sampled_from(FORMATS), data=st.data())
def test_a_flipped_bit_is_rejected(logits: npt.NDArray[np.float32], form: Format, data: st.DataObject) -> None:
    payload = bytearray(encode(logits, form))
    crc32 = checksum(bytes(payload))
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ChunkError, match=rf"^payload has CRC-32 [0-9a-f]{{8}}, must be {crc32:08x}$"):
        decode(bytes(payload), form, *logits.shape, crc32)


def test_a_rejected_payload_leaves_the_output_unchanged() -> None:
    out = np.full((1, 2), 7.0, np.float32)
    payload = np.array([[1.0, np.nan]], "<f2").tobytes()
    with pytest.raises(ChunkError):
        decode_into(payload, form=FLOAT16, rows=1, num_classes=2, crc32=checksum(payload), out=out)
    assert out.tolist() == [[7.0, 7.0]]


@pytest.mark.parametrize("out", [np.zeros((3, 2), np.float32), np.zeros((2, 3), np.float64), np.zeros(6, np.float32)], ids=str)
def test_an_output_of_another_shape_or_type_is_rejected(out: npt.NDArray[np.float32]) -> None:
    payload = encode(np.zeros((2, 3), np.float32), FLOAT32)
    with pytest.raises(ChunkError, match=re.escape(f"output is {out.dtype} {list(out.shape)}, must be float32 [2, 3]")):
        decode_into(payload, form=FLOAT32, rows=2, num_classes=3, crc32=checksum(payload), out=out)


@pytest.mark.parametrize(("rows", "num_classes"), [(0, 3), (-1, 3), (1, 0), (1, MAX_CLASSES + 1)])
def test_impossible_sizes_are_rejected(rows: int, num_classes: int) -> None:
    out = np.zeros((max(rows, 0), num_classes), np.float32)
    with pytest.raises(ChunkError, match=f"^chunk (has|of) {rows} rows"):
        decode_into(b"", form=FLOAT32, rows=rows, num_classes=num_classes, crc32=0, out=out)


def test_a_chunk_over_the_limit_is_rejected_before_its_bytes_are_read() -> None:
    rows = MAX_CHUNK_BYTES // 4 + 1
    with pytest.raises(ChunkError, match=f"has {4 * rows} bytes, must have at most {MAX_CHUNK_BYTES}$"):
        decode(b"", FLOAT32, rows, 1)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("num_classes", [2, 10, 1000, 65_537, MAX_CLASSES])
def test_a_chunk_takes_as_many_whole_rows_as_fit(form: Format, num_classes: int) -> None:
    rows = chunk_rows(num_classes, form)
    row_bytes = len(encode(np.zeros((1, num_classes), np.float32), form))
    assert rows >= 1
    assert rows * row_bytes <= MAX_CHUNK_BYTES < (rows + 1) * row_bytes


@pytest.mark.parametrize("num_classes", [0, MAX_CLASSES + 1])
def test_no_chunk_holds_a_row_of_too_many_classes(num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"^num_classes is {num_classes}, must be in 1 .. {MAX_CLASSES}$"):
        chunk_rows(num_classes, FLOAT32)


def test_the_checksum_is_the_one_of_zlib_and_ethernet() -> None:
    assert checksum(b"123456789") == 0xCBF43926 == zlib.crc32(b"123456789")


def test_encodings_have_the_numbers_of_the_schema() -> None:
    names = {encoding: f"ENCODING_{encoding.name}" for encoding in Encoding}
    assert {names[encoding]: to_wire(encoding) for encoding in Encoding} == {
        name: number for name, number in teacher_pb2.Encoding.items() if name != "ENCODING_UNSPECIFIED"
    }
    assert [from_wire(to_wire(encoding)) for encoding in Encoding] == list(Encoding)


@pytest.mark.parametrize("number", [0, 5, -1])
def test_an_unknown_encoding_is_rejected_with_the_known_ones(number: int) -> None:
    with pytest.raises(ValueError) as refusal:
        from_wire(number)
    assert str(refusal.value) == f"encoding {number} is unknown, must be one of 1 (float32), 2 (float16), 3 (int8), 4 (topk)"
