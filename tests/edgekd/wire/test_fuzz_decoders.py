"""Fuzz tests of the decoders: any bytes become finite logits and verified pixels, or a ChunkError, with bounded memory."""

import io
import zlib

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hostile import allocating_at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekd.v1 import teacher_pb2
from edgekd.wire.chunks import parse_chunk
from edgekd.wire.codec import ChunkError, Encoding, Format, checksum, decode_into, encode
from edgekd.wire.inputs import InputEncoding, decode_inputs_into
from edgekd.wire.limits import MAX_CHUNK_BYTES

FORMATS = [Format(Encoding.FLOAT32), Format(Encoding.FLOAT16), Format(Encoding.INT8), Format(Encoding.TOPK, 2)]
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 65504.0, 1e38, -1e38, 1e-45]
NAN_FLOAT32 = [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7F800000, 0xFF800000]
NAN_FLOAT16 = [0x7E00, 0xFE00, 0x7C01, 0xFC01, 0x7C00, 0xFC00]
ENOUGH = 256 << 10


def decode_or_refuse(payload: bytes, form: Format, rows: int, num_classes: int, out: np.ndarray) -> bool:
    """Return whether the payload was decoded. Fails if a decoded value is not finite, or a rejected payload changed `out`."""
    before = out.copy()
    try:
        with allocating_at_most(ENOUGH):
            decode_into(payload, form=form, rows=rows, num_classes=num_classes, crc32=checksum(payload), out=out)
    except ChunkError as error:
        assert str(error).isprintable()
        assert np.array_equal(out, before)
        return False
    assert np.isfinite(out).all()
    return True


@pytest.mark.promise(number=10)
@given(data=st.data(), form=st.sampled_from(FORMATS), rows=st.integers(1, 4), num_classes=st.integers(3, 6), half=st.booleans())
@settings(max_examples=300)
def test_any_bytes_of_the_right_length_are_finite_or_rejected(
    data: st.DataObject, form: Format, rows: int, num_classes: int, half: bool
) -> None:
    size = rows * form.layout(num_classes).row_bytes
    payload = data.draw(st.binary(min_size=size, max_size=size))
    dtype = form.layout(num_classes).dtype if half else np.float32
    decode_or_refuse(payload, form, rows, num_classes, np.full((rows, num_classes), 7.0, dtype))


@pytest.mark.promise(number=10)
@given(data=st.data(), form=st.sampled_from(FORMATS), rows=st.integers(1, 3))
@settings(max_examples=200)
def test_nan_and_infinity_are_rejected_in_every_position(data: st.DataObject, form: Format, rows: int) -> None:
    """Every NaN and infinity, in every float: a value, the scale of int8, the rest of top-k."""
    payload = bytearray(encode(np.arange(rows * 5, dtype=np.float32).reshape(rows, 5) + 1, form))
    start = data.draw(st.integers(0, rows - 1)) * form.layout(5).row_bytes
    match form.encoding:
        case Encoding.FLOAT32:
            at, bits = start + 4 * data.draw(st.integers(0, 4)), data.draw(st.sampled_from(NAN_FLOAT32)).to_bytes(4, "little")
        case Encoding.FLOAT16:
            at, bits = start + 2 * data.draw(st.integers(0, 4)), data.draw(st.sampled_from(NAN_FLOAT16)).to_bytes(2, "little")
        case Encoding.INT8:
            at, bits = start, data.draw(st.sampled_from(NAN_FLOAT32)).to_bytes(4, "little")
        case Encoding.TOPK:
            at, bits = (
                start + data.draw(st.sampled_from([0, 12, 16])),
                data.draw(st.sampled_from(NAN_FLOAT32)).to_bytes(4, "little"),
            )
    payload[at : at + len(bits)] = bits
    assert not decode_or_refuse(bytes(payload), form, rows, 5, np.full((rows, 5), 7.0, np.float32))


@given(
    payload=st.binary(max_size=40),
    form=st.sampled_from([*FORMATS, Format(Encoding.TOPK, 4096)]),
    rows=st.integers(-2, 5) | st.sampled_from([2**31, 2**32 - 1, 2**64]),
    num_classes=st.integers(-2, 5) | st.sampled_from([MAX_CHUNK_BYTES // 4, MAX_CHUNK_BYTES, 2**32 - 1, 2**64]),
    shape=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
@settings(max_examples=200)
def test_any_sizes_are_rejected_before_any_allocation(
    payload: bytes, form: Format, rows: int, num_classes: int, shape: tuple[int, int]
) -> None:
    decode_or_refuse(payload, form, rows, num_classes, np.zeros(shape, np.float32))


@given(values=st.lists(st.lists(st.floats(width=32) | st.sampled_from(SPECIAL), min_size=4, max_size=4), max_size=3))
@settings(max_examples=200)
def test_any_logits_are_decoded_or_not_encoded(values: list[list[float]]) -> None:
    with np.errstate(over="ignore"):
        logits = np.array(values, np.float32).reshape(-1, 4)
    for form in FORMATS:
        try:
            payload = encode(logits, form)
        except ValueError as error:
            assert "NaN or an infinity" in str(error)
            assert not np.isfinite(logits).all()
            continue
        assert np.isfinite(logits).all()
        if len(logits):
            assert decode_or_refuse(payload, form, len(logits), 4, np.full(logits.shape, 7.0, np.float32))


def a_chunk() -> bytes:
    logits = encode(np.ones((3, 4), np.float32), FORMATS[0])
    header = teacher_pb2.LogitsChunk(num_rows=3, num_classes=4, encoding=1, sample_ids=[1, 2, 3], crc32=checksum(logits))
    header.payload, header.inputs, header.pixels_crc32 = logits, bytes(18), checksum(bytes(18))
    return header.SerializeToString()


@given(data=st.data())
@settings(max_examples=200)
def test_a_damaged_chunk_is_read_or_rejected_within_its_memory(data: st.DataObject) -> None:
    message = bytearray(a_chunk())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message) - 1))
        message[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4) | st.just(b"\xff" * 10))
    with allocating_at_most(64 << 10):
        try:
            _, payload, inputs = parse_chunk(bytes(message))
        except DecodeError:
            pass
        else:
            assert len(payload) + len(inputs) <= len(message)


@pytest.mark.parametrize("length", [2**31, 2**32, 2**63, 2**64 - 1])
def test_a_length_beyond_the_message_allocates_nothing(length: int) -> None:
    varint = bytes(0x80 | length >> 7 * n & 0x7F for n in range(9)) + bytes([length >> 63])
    for key in (teacher_pb2.LogitsChunk.PAYLOAD_FIELD_NUMBER, teacher_pb2.LogitsChunk.INPUTS_FIELD_NUMBER, 6):
        with allocating_at_most(64 << 10), pytest.raises(DecodeError):
            parse_chunk(bytes([key << 3 | 2]) + varint + b"x")


def picture(form: str, size: tuple[int, int] = (5, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 10, 90)).save(file, form)
    return file.getvalue()


PICTURES = [picture("PNG"), picture("JPEG"), picture("GIF"), picture("BMP"), b""]


@given(data=st.data())
@settings(max_examples=150)
def test_any_files_are_images_of_the_right_checksum_or_rejected(data: st.DataObject) -> None:
    files = []
    for _ in range(2):
        file = bytearray(data.draw(st.sampled_from(PICTURES) | st.binary(max_size=60)))
        for _ in range(data.draw(st.integers(0, 2))):
            at = data.draw(st.integers(0, max(len(file) - 1, 0)))
            file[at : at + 1] = data.draw(st.binary(max_size=2))
        files.append(bytes(file))
    lengths = data.draw(st.just([len(file) for file in files]) | st.lists(st.integers(0, 2**32 - 1), max_size=3))
    out = np.zeros((2, 3, 4, 4), np.uint8)
    content = b"".join(files)
    try:
        decode_inputs_into(content, encoding=InputEncoding.STORED, lengths=lengths, crc32=data.draw(st.just(1)), out=out)
    except ChunkError as error:
        assert str(error).isprintable()
    else:
        assert checksum(out.data.cast("B")) == 1


@given(content=st.binary(max_size=40), lengths=st.lists(st.integers(0, 2**32 - 1), max_size=2), right=st.booleans())
@settings(max_examples=100)
def test_any_pixels_match_their_checksum_or_are_rejected(content: bytes, lengths: list[int], right: bool) -> None:
    out = np.zeros((2, 1, 3, 4), np.uint8)
    crc32 = checksum(content) if right else 0
    try:
        decode_inputs_into(content, encoding=InputEncoding.PIXELS, lengths=lengths, crc32=crc32, out=out)
    except ChunkError:
        assert lengths or len(content) != out.nbytes or not right
    else:
        assert out.tobytes() == content


def png_of(width: int, height: int) -> bytes:
    """Return a valid PNG header for an image of this size, with almost no data."""

    def block(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(bytes(1000))) + block(b"IEND", b"")


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (8193, 8193), (1, 2**27), (0, 0)])
@pytest.mark.filterwarnings("ignore:Image size")  # Pillow's warning about large images
def test_an_image_of_gigabytes_is_rejected_before_it_is_decoded(size: tuple[int, int]) -> None:
    file = png_of(*size)
    out = np.zeros((1, 3, 4, 4), np.uint8)
    with allocating_at_most(1 << 20), pytest.raises(ChunkError, match="is not a valid JPEG or PNG"):
        decode_inputs_into(file, encoding=InputEncoding.STORED, lengths=[len(file)], crc32=0, out=out)
