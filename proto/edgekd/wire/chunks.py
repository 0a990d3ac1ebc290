"""A LogitsChunk taken off the wire without copying its payload and its inputs, which are nearly all of it.

protobuf copies a `bytes` field twice, into the message and out of it, and for a chunk of 256 kB that takes longer than decoding it.
So these two are found by walking over the top-level fields (protobuf's wire format: a varint key, then a value that its last three
bits describe), and protobuf parses what is around it. Whatever the walk does not understand is left to protobuf as a whole.
"""

from typing import NamedTuple

from edgekd.v1 import teacher_pb2

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_PAYLOAD_KEY = teacher_pb2.LogitsChunk.PAYLOAD_FIELD_NUMBER << 3 | _LENGTH
_INPUTS_KEY = teacher_pb2.LogitsChunk.INPUTS_FIELD_NUMBER << 3 | _LENGTH
_NOTHING = memoryview(b"")


class Chunk(NamedTuple):
    """A chunk as it came: `header` is the message without its payload and inputs, which are views into the bytes that came."""

    header: teacher_pb2.LogitsChunk
    payload: memoryview
    inputs: memoryview = _NOTHING


def parse_chunk(message: bytes) -> Chunk:
    """A serialised LogitsChunk. Raises protobuf's DecodeError if it is none."""
    try:
        found = _find_long_fields(message)
    except IndexError:  # cut off: protobuf says so
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
    return Chunk(header, fields.get(_PAYLOAD_KEY, _NOTHING), fields.get(_INPUTS_KEY, _NOTHING))


def _find_long_fields(message: bytes) -> dict[int, tuple[int, int, int]] | None:
    """By key, where the key of payload and inputs is, and where they start and end, in the order of their places.

    None if one of them comes twice, or something unusual does. IndexError where the message ends too early.
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
    """A number of seven bits a byte, the lowest first, and where the next thing begins."""
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
            raise IndexError("a varint of more than ten bytes")
    return number, at + 1
