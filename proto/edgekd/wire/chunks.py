"""Parses a LogitsChunk without copying its payload and inputs, which are nearly all of its bytes.

protobuf copies a `bytes` field twice: into the message and out of it. For a chunk of 256 kB that takes longer than decoding the
logits. This parser therefore walks over the top-level fields to find both. In protobuf's wire format a field is a varint key,
whose low three bits give the type of the value, and the value. protobuf parses the other fields. If the walk meets an unusual
message, protobuf parses all of it.
"""

from typing import NamedTuple

from edgekd.v1 import teacher_pb2

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_PAYLOAD_KEY = teacher_pb2.LogitsChunk.PAYLOAD_FIELD_NUMBER << 3 | _LENGTH
_INPUTS_KEY = teacher_pb2.LogitsChunk.INPUTS_FIELD_NUMBER << 3 | _LENGTH
_EMPTY = memoryview(b"")


class Chunk(NamedTuple):
    """A parsed chunk: `header` is the message without payload and inputs, which are views into the received bytes."""

    header: teacher_pb2.LogitsChunk
    payload: memoryview
    inputs: memoryview = _EMPTY


def parse_chunk(message: bytes) -> Chunk:
    """Parse a serialised LogitsChunk. Raises protobuf's DecodeError for invalid bytes."""
    try:
        found = _find_long_fields(message)
    except IndexError:  # truncated: protobuf raises the error
        found = None
    if found is None:
        header = teacher_pb2.LogitsChunk.FromString(message)
        payload, inputs = header.payload, header.inputs
        header.ClearField("payload")
        header.ClearField("inputs")
        return Chunk(header, memoryview(payload), memoryview(inputs))
    rest, whole, at = b"", memoryview(message), 0
    for key_at, _, end in found.values():
        rest, at = rest + message[at:key_at], end
    fields = {key: whole[start:end] for key, (_, start, end) in found.items()}
    header = teacher_pb2.LogitsChunk.FromString(rest + message[at:])
    return Chunk(header, fields.get(_PAYLOAD_KEY, _EMPTY), fields.get(_INPUTS_KEY, _EMPTY))


def _find_long_fields(message: bytes) -> dict[int, tuple[int, int, int]] | None:
    """Return, by key, the offsets of the key, the start and the end of payload and inputs, in the order of the message.

    None if a field is repeated or has an unusual type. Raises IndexError for a truncated message.
    """
    at, found = 0, {}
    while at < len(message):
        key_at = at
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _LENGTH:
            length, at = _read_varint(message, at)
            if key in (_PAYLOAD_KEY, _INPUTS_KEY):
                if key in found:
                    return None
                found[key] = key_at, at, at + length
            at += length
        elif kind == _FIXED32:
            at += 4
        elif kind == _FIXED64:
            at += 8
        else:
            return None
    return found if at == len(message) else None


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a varint (seven bits per byte, lowest first) and the offset after it."""
    byte = message[at]
    if byte < 0x80:
        return byte, at + 1
    number, shift = byte & 0x7F, 7
    while byte >= 0x80:
        at += 1
        byte = message[at]
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise IndexError("varint has more than ten bytes")
    return number, at + 1
