"""The parser of chunks without copies reads every message as protobuf does, in any order of fields."""

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from edgekd.v1 import teacher_pb2
from edgekd.wire.chunks import parse_chunk

chunks = st.builds(
    teacher_pb2.LogitsChunk,
    batch_index=st.integers(0, 2**64 - 1),
    row_start=st.integers(0, 2**32 - 1),
    num_rows=st.integers(0, 2**32 - 1),
    encoding=st.integers(0, 9),  # type: ignore[arg-type]
    sample_ids=st.lists(st.integers(0, 2**64 - 1), max_size=5),
    payload=st.binary(max_size=300),
    inputs=st.binary(max_size=300),
    input_encoding=st.integers(0, 9),  # type: ignore[arg-type]
    input_lengths=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    pixels_crc32=st.integers(0, 2**32 - 1),
    crc32=st.integers(0, 2**32 - 1),
    top_k=st.integers(0, 2**32 - 1),
)
VARINT_FIELD, FIXED64_FIELD, GROUP = b"\x98\x06\x85\x01", b"\x99\x06" + bytes(8), b"\x9b\x06\x9c\x06"


Parts = tuple[teacher_pb2.LogitsChunk, bytes, bytes]


def by_us(message: bytes) -> Parts | None:
    """Return header, payload and inputs; None if the message is rejected."""
    try:
        header, payload, inputs = parse_chunk(message)
    except DecodeError:
        return None
    return header, bytes(payload), bytes(inputs)


def by_protobuf(message: bytes) -> Parts | None:
    try:
        header = teacher_pb2.LogitsChunk.FromString(message)
    except DecodeError:
        return None
    payload, inputs = header.payload, header.inputs
    header.ClearField("payload")
    header.ClearField("inputs")
    return header, payload, inputs


@given(chunk=chunks)
def test_a_chunk_is_read_as_protobuf_reads_it(chunk: teacher_pb2.LogitsChunk) -> None:
    message = chunk.SerializeToString()
    assert by_us(message) == by_protobuf(message)
    assert by_us(message) is not None


@given(chunk=chunks, data=st.data())
def test_unknown_fields_and_other_orders_are_accepted(chunk: teacher_pb2.LogitsChunk, data: st.DataObject) -> None:
    whole = chunk.SerializeToString()
    payload_only = teacher_pb2.LogitsChunk(payload=chunk.payload).SerializeToString()
    inputs_only = teacher_pb2.LogitsChunk(inputs=chunk.inputs).SerializeToString()
    chunk.ClearField("payload")
    chunk.ClearField("inputs")
    parts = [payload_only, inputs_only, chunk.SerializeToString(), VARINT_FIELD, FIXED64_FIELD]
    for message in (b"".join(data.draw(st.permutations(parts))), whole + GROUP, whole + payload_only, whole + inputs_only):
        assert by_us(message) == by_protobuf(message)
        assert by_us(message) is not None


@given(chunk=chunks, data=st.data())
def test_a_truncated_or_damaged_chunk_is_read_as_protobuf_reads_it_or_rejected(
    chunk: teacher_pb2.LogitsChunk, data: st.DataObject
) -> None:
    message = bytearray(chunk.SerializeToString() or b"\x08\x01")
    if data.draw(st.booleans()):
        message = message[: data.draw(st.integers(0, len(message)))]
    else:
        message[data.draw(st.integers(0, len(message) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert by_us(bytes(message)) == by_protobuf(bytes(message))


@given(message=st.binary(max_size=60))
def test_garbage_is_rejected_or_read_as_protobuf_reads_it(message: bytes) -> None:
    assert by_us(message) == by_protobuf(message)
