"""Public inputs as bytes and back: how the images that the teacher speaks of reach an edge that has them not.

Either their pixels, or the JPEG and PNG files of an image folder as they are, which are smaller where they are about as large as
the model's input. What a decoder makes of a file depends on its version, so a checksum of the pixels goes with them.
"""

import io
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from edgekd.wire.codec import ChunkError, checksum
from edgekd.wire.limits import MAX_INPUTS_BYTES

if TYPE_CHECKING:
    from edgekd.v1.teacher_pb2 import InputEncoding as WireInputEncoding

Pixels = npt.NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG")
_MAGIC_NUMBERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
# A file of a few kB can hold gigabytes of pixels; no photograph has more than this.
_MAX_FILE_PIXELS = 1 << 26


class InputEncoding(StrEnum):
    """How an input travels."""

    PIXELS = "pixels"
    STORED = "stored"


# Numbers of enum InputEncoding in teacher.proto.
_WIRE_NUMBERS = {None: 0, InputEncoding.PIXELS: 1, InputEncoding.STORED: 2}


def square_pixels(file: BinaryIO | Path, size: int, *, formats: tuple[str, ...] | None = None) -> Pixels:
    """The pixels of an image file: turned to RGB, its centre cut to a square and scaled to `size`, bilinear; uint8 [3, size, size].

    `formats` are the only ones that are read, by Pillow's names. Raises OSError if it is no such image, or a broken one.
    """
    from PIL import Image, ImageOps

    with Image.open(file, formats=formats) as image:
        if image.width * image.height > _MAX_FILE_PIXELS:
            raise OSError(f"an image of {image.width} x {image.height} pixels is too large, must be at most {_MAX_FILE_PIXELS}")
        square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def is_stored_format(file: Path) -> bool:
    """Whether it begins as a JPEG or a PNG does, whatever it is called. Raises OSError if it cannot be read."""
    with file.open("rb") as opened:
        return opened.read(8).startswith(_MAGIC_NUMBERS)


def decode_inputs_into(data: bytes | memoryview, *, encoding: InputEncoding, lengths: list[int], crc32: int, out: Pixels) -> None:
    """Fill `out`, uint8 [rows, channels, height, width], contiguous, with the inputs of a chunk.

    Raises ChunkError if they are too many or too few bytes for that, or not what the sender had; what is in `out` is then worth
    nothing.
    """
    if len(data) > MAX_INPUTS_BYTES:
        raise ChunkError(f"inputs of {len(data)} bytes, must be at most {MAX_INPUTS_BYTES}")
    match encoding:
        case InputEncoding.PIXELS:
            if lengths:
                raise ChunkError(f"{len(lengths)} input lengths came with pixels, which are all of one length")
            if len(data) != out.nbytes:
                raise ChunkError(f"inputs have {len(data)} bytes, {list(out.shape)} pixels are {out.nbytes}")
            out[...] = np.frombuffer(data, np.uint8).reshape(out.shape)
        case InputEncoding.STORED:
            _decode_files(data, lengths, out)
    actual = checksum(out.data.cast("B"))
    if actual != crc32:
        raise ChunkError(
            f"inputs have pixels with CRC-32 {actual:08x}, the chunk says {crc32:08x}: they were damaged, or the decoders of both "
            "ends differ"
        )


def _decode_files(data: bytes | memoryview, lengths: list[int], out: Pixels) -> None:
    if len(lengths) != len(out) or sum(lengths) != len(data) or min(lengths) < 1:
        raise ChunkError(f"{len(lengths)} files of {sum(lengths)} bytes were announced for {len(out)} rows, {len(data)} came")
    size = out.shape[-1]
    if out.shape[1:] != (3, size, size):
        raise ChunkError(f"files are decoded to squares of three channels, not to {list(out.shape[1:])}")
    begin = 0
    for row, length in zip(out, lengths, strict=True):
        try:
            row[...] = square_pixels(io.BytesIO(data[begin : begin + length]), size, formats=_FORMATS)
        except Exception as error:  # Pillow raises whatever a broken file makes it meet
            raise ChunkError(f"an input of {length} bytes is no JPEG or PNG, or a broken one ({type(error).__name__})") from None
        begin += length


def input_to_wire(encoding: InputEncoding | None) -> "WireInputEncoding":
    """The number of an encoding in teacher.proto; that of None says that inputs do not travel."""
    return cast("WireInputEncoding", _WIRE_NUMBERS[encoding])


def input_from_wire(number: int) -> InputEncoding | None:
    """The encoding of a number in teacher.proto, None if inputs do not travel. Raises ValueError for an unknown number."""
    for encoding, known in _WIRE_NUMBERS.items():
        if number == known:
            return encoding
    allowed = ", ".join(f"{known} ({encoding or 'none'})" for encoding, known in _WIRE_NUMBERS.items())
    raise ValueError(f"input encoding {number} is unknown, must be one of {allowed}")
