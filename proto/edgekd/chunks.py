"""A LogitsChunk taken off the wire without copying its payload, which is nearly all of it.

protobuf copies a `bytes` field twice, into the message and out of it, and for a chunk of 256 kB that takes longer than decoding it.
So the payload is found by walking over the top-level fields (protobuf's wire format: a varint key, then a value that its last three
bits describe), and protobuf parses what is around it. Whatever the walk does not understand is left to protobuf as a whole.
"""

from typing import NamedTuple

from edgekd.v1 import teacher_pb2

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_PAYLOAD_KEY = teacher_pb2.LogitsChunk.PAYLOAD_FIELD_NUMBER << 3 | _LENGTH


class Chunk(NamedTuple):
    """A chunk as it came: `header` is the message without its payload, `payload` a view into the bytes that came."""

    header: teacher_pb2.LogitsChunk
    payload: memoryview


def parse_chunk(message: bytes) -> Chunk:
    """A serialised LogitsChunk. Raises protobuf's DecodeError if it is none."""
    try:
        place = _find_payload(message)
    except IndexError:  # cut off: protobuf says so
        place = None
    if place is None:
        header = teacher_pb2.LogitsChunk.FromString(message)
        payload = header.payload
        header.ClearField("payload")
        return Chunk(header, memoryview(payload))
    key_at, start, end = place
    return Chunk(teacher_pb2.LogitsChunk.FromString(message[:key_at] + message[end:]), memoryview(message)[start:end])


def _find_payload(message: bytes) -> tuple[int, int, int] | None:
    """Where the payload's key is, and where it starts and ends; None unless there is one payload, and nothing unusual before it.

    IndexError where the message ends too early.
    """
    at, found = 0, None
    while at < len(message):
        key_at = at
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _LENGTH:
            length, at = _read_varint(message, at)
            if key == _PAYLOAD_KEY:
                if found is not None:
                    return None
                found = key_at, at, at + length
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
