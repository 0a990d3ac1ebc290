"""Codec of logits: encodes rows to the payload of a chunk, and verifies and decodes a payload.

layouts.py has the encodings; this module has the parts that they share. Both ends reject infinities and NaN, because one of them
in a soft target silently turns the student's weights into NaN.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from edgekd.wire.layouts import Decoded, Float16, Float32, Layout, LayoutError, ScaledInt8, TopK
from edgekd.wire.limits import MAX_CHUNK_BYTES, MAX_CLASSES, MAX_TOP_K

if TYPE_CHECKING:
    from edgekd.v1.teacher_pb2 import Encoding as WireEncoding


class Encoding(StrEnum):
    """Encoding of logits on the wire."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    TOPK = "topk"


class ChunkError(ValueError):
    """A chunk breaks a rule. The message names the rule and the received value; the receiver adds the batch."""


# Numbers of enum Encoding in teacher.proto, repeated here so that the codec needs neither the stubs nor protobuf.
_WIRE_NUMBERS = {Encoding.FLOAT32: 1, Encoding.FLOAT16: 2, Encoding.INT8: 3, Encoding.TOPK: 4}


@dataclass(frozen=True, slots=True)
class Format:
    """An encoding and its parameter: `top_k` is the k of `topk`, and 0 for every other encoding.

    Raises ValueError for a k that is invalid for the encoding or above the protocol's limit.
    """

    encoding: Encoding
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.encoding is Encoding.TOPK and not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k is {self.top_k}, must be in 1 .. {MAX_TOP_K} with encoding topk")
        if self.encoding is not Encoding.TOPK and self.top_k != 0:
            raise ValueError(f"top_k is {self.top_k}, must be 0 with encoding {self.encoding}")

    def __str__(self) -> str:
        return f"{self.encoding}:{self.top_k}" if self.top_k else str(self.encoding)

    def layout(self, num_classes: int) -> Layout:
        """Return the layout of rows with `num_classes` classes.

        Raises ValueError if num_classes is not in 1 .. MAX_CLASSES, or if top_k is not below it.
        """
        return _layout(self, num_classes)


@lru_cache(maxsize=64)
def _layout(form: Format, num_classes: int) -> Layout:
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes is {num_classes}, must be in 1 .. {MAX_CLASSES}")
    if form.top_k >= num_classes:
        raise ValueError(f"top_k is {form.top_k}, must be below the number of classes, {num_classes}")
    match form.encoding:
        case Encoding.FLOAT32:
            return Float32(num_classes)
        case Encoding.FLOAT16:
            return Float16(num_classes)
        case Encoding.INT8:
            return ScaledInt8(num_classes)
        case Encoding.TOPK:
            return TopK(num_classes, form.top_k)


def encode(logits: npt.NDArray[np.float32], form: Format) -> bytes:
    """Encode logits, float32 [rows, classes], to a payload.

    Raises ValueError for another type or shape, or for a NaN or an infinity.
    """
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise ValueError(f"logits are {logits.dtype} {list(logits.shape)}, must be float32 [rows, classes]")
    if not np.isfinite(logits).all():
        raise ValueError("logits hold a NaN or an infinity, must be finite")
    return form.layout(logits.shape[1]).encode(logits)


def checksum(payload: bytes | memoryview) -> int:
    """Return the CRC-32 (IEEE 802.3) of a payload, 0 .. 2^32-1."""
    return zlib_ng.crc32(payload)


def chunk_rows(num_classes: int, form: Format) -> int:
    """Return the number of whole rows that fit in MAX_CHUNK_BYTES, at least 1. Raises ValueError as `Format.layout`."""
    return MAX_CHUNK_BYTES // form.layout(num_classes).row_bytes


def decode_into(payload: bytes | memoryview, *, form: Format, rows: int, num_classes: int, crc32: int, out: Decoded) -> None:
    """Verify a payload, then fill `out`, [rows, num_classes] of float32 or of the layout's own type.

    Raises ChunkError for a wrong length, a wrong checksum, a value that the encoding does not allow, or an `out` of another shape
    or type; `out` is then unchanged.
    """
    if rows < 1:
        raise ChunkError(f"chunk has {rows} rows, must have at least 1")
    try:
        layout = form.layout(num_classes)
    except ValueError as error:
        raise ChunkError(f"chunk of {rows} rows x {num_classes} {form}: {error}") from None
    if out.shape != (rows, num_classes) or out.dtype not in (np.float32, layout.dtype):
        raise ChunkError(
            f"output is {out.dtype} {list(out.shape)}, must be float32 [{rows}, {num_classes}] for a chunk of {rows} rows "
            f"x {num_classes} classes"
        )
    expected = rows * layout.row_bytes
    if expected > MAX_CHUNK_BYTES:
        raise ChunkError(f"chunk of {rows} rows x {num_classes} {form} has {expected} bytes, must have at most {MAX_CHUNK_BYTES}")
    if len(payload) != expected:
        raise ChunkError(f"payload has {len(payload)} bytes, must have {expected} for {rows} rows x {num_classes} {form}")
    actual = checksum(payload)
    if actual != crc32:
        raise ChunkError(f"payload has CRC-32 {actual:08x}, must be {crc32:08x}")
    try:
        layout.decode(payload, out)
    except LayoutError as error:
        raise ChunkError(f"payload {error} in its {rows} rows x {num_classes} {form}") from None


def to_wire(encoding: Encoding) -> "WireEncoding":
    """Return the number of an encoding in teacher.proto."""
    return cast("WireEncoding", _WIRE_NUMBERS[encoding])


def from_wire(number: int) -> Encoding:
    """Return the encoding of a number in teacher.proto. Raises ValueError for a number that this version does not know."""
    for encoding, known in _WIRE_NUMBERS.items():
        if number == known:
            return encoding
    allowed = ", ".join(f"{known} ({encoding})" for encoding, known in _WIRE_NUMBERS.items())
    raise ValueError(f"encoding {number} is unknown, must be one of {allowed}")
