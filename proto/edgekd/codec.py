"""Logits as bytes and back: what a chunk's payload holds, and how the receiver convinces itself that it does.

Both encodings are little-endian, row after row. float32 is exact. float16 halves the traffic: values beyond its range
are clipped to +-65504 and the rest are off by at most 2^-11 of their size (or 2^-25 near zero). Infinities and NaN are
refused at both ends, because one of them in a soft target silently turns the student into NaN. numpy only.
"""

import zlib
from enum import StrEnum
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from edgekd.wire import MAX_CHUNK_BYTES, MAX_CLASSES

if TYPE_CHECKING:
    from edgekd.v1.teacher_pb2 import Encoding as WireEncoding

FLOAT16_MAX = 65504.0


class Encoding(StrEnum):
    """How a value travels."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class ChunkError(ValueError):
    """A chunk that breaks a rule: says which rule, and what came. The receiver adds which batch it was."""


_DTYPES: dict[Encoding, np.dtype[np.floating]] = {Encoding.FLOAT32: np.dtype("<f4"), Encoding.FLOAT16: np.dtype("<f2")}
# Numbers of enum Encoding in teacher.proto; spelled out so that the codec needs neither the stubs nor protobuf.
_WIRE_NUMBERS = {Encoding.FLOAT32: 1, Encoding.FLOAT16: 2}


def encode(logits: npt.NDArray[np.float32], encoding: Encoding) -> bytes:
    """The payload of float32 [rows, classes].

    Raises ValueError if the array is not that, or holds a NaN or an infinity.
    """
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise ValueError(f"logits are {logits.dtype} {list(logits.shape)}, must be float32 [rows, classes]")
    if not _is_finite(logits):
        raise ValueError("logits hold a NaN or an infinity, which cannot be distilled")
    if encoding is Encoding.FLOAT16:
        # Clipped first, because a cast that overflows warns and yields an infinity.
        logits = np.clip(logits, -FLOAT16_MAX, FLOAT16_MAX)
    return logits.astype(_DTYPES[encoding], order="C", copy=False).tobytes()


def checksum(payload: bytes) -> int:
    """CRC-32 (IEEE 802.3) of a payload, 0 .. 2^32-1."""
    return zlib.crc32(payload)


def chunk_rows(num_classes: int, encoding: Encoding) -> int:
    """Whole rows of num_classes values that fit in MAX_CHUNK_BYTES, at least 1.

    Raises ValueError if num_classes is not in 1 .. MAX_CLASSES.
    """
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"num_classes is {num_classes}, must be in 1 .. {MAX_CLASSES}")
    return MAX_CHUNK_BYTES // (num_classes * _DTYPES[encoding].itemsize)


def decode_into(
    payload: bytes, *, encoding: Encoding, rows: int, num_classes: int, crc32: int, out: npt.NDArray[np.float32]
) -> None:
    """Verify a payload and only then fill `out`, float32 [rows, num_classes], without a copy in between.

    Raises ChunkError if the payload is too long or too short for its shape, was damaged on the way, holds a NaN or an
    infinity, or does not fit `out`; `out` is then untouched.
    """
    if rows < 1 or not 1 <= num_classes <= MAX_CLASSES:
        raise ChunkError(f"chunk of {rows} rows x {num_classes} classes: rows >= 1 and 1 <= classes <= {MAX_CLASSES}")
    if out.shape != (rows, num_classes) or out.dtype != np.float32:
        raise ChunkError(
            f"chunk of {rows} rows x {num_classes} classes does not fit {out.dtype} {list(out.shape)}; "
            f"it needs float32 [{rows}, {num_classes}]"
        )
    dtype = _DTYPES[encoding]
    expected = rows * num_classes * dtype.itemsize
    if expected > MAX_CHUNK_BYTES:
        raise ChunkError(f"chunk of {rows} rows x {num_classes} {encoding} is {expected} bytes, over {MAX_CHUNK_BYTES}")
    if len(payload) != expected:
        raise ChunkError(f"payload has {len(payload)} bytes, {rows} rows x {num_classes} {encoding} are {expected} bytes")
    actual = checksum(payload)
    if actual != crc32:
        raise ChunkError(f"payload has CRC-32 {actual:08x}, the chunk says {crc32:08x}")
    values = np.frombuffer(payload, dtype=dtype).reshape(rows, num_classes)
    if not _is_finite(values):
        raise ChunkError(f"payload holds a NaN or an infinity among its {rows} rows x {num_classes} {encoding}")
    np.copyto(out, values, casting="same_kind")


def to_wire(encoding: Encoding) -> "WireEncoding":
    """The number of an encoding in teacher.proto."""
    return cast("WireEncoding", _WIRE_NUMBERS[encoding])


def from_wire(number: int) -> Encoding:
    """The encoding of a number in teacher.proto. Raises ValueError for a number that this version does not know."""
    for encoding, known in _WIRE_NUMBERS.items():
        if number == known:
            return encoding
    allowed = ", ".join(f"{known} ({encoding})" for encoding, known in _WIRE_NUMBERS.items())
    raise ValueError(f"encoding {number} is unknown, must be one of {allowed}")


def _is_finite(values: npt.NDArray[np.floating]) -> bool:
    if values.dtype == np.float16:
        # An exponent of all ones, asked of the bits: isfinite on float16 costs sixteen times as much on x86.
        return bool((values.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)
    return bool(np.isfinite(values).all())
