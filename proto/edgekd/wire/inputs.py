"""Codec of public inputs: sends the teacher's images to an edge that does not have the public data set.

Inputs travel as pixels, or as the JPEG and PNG files of an image folder. Files are smaller if the images are about as large as the
model's input. The result of decoding a file depends on the decoder's version, so a checksum of the pixels is sent with the inputs.
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
# A file of a few kB can decode to gigabytes of pixels. No photograph has more pixels than this.
_MAX_FILE_PIXELS = 1 << 26


class InputEncoding(StrEnum):
    """Encoding of inputs on the wire."""

    PIXELS = "pixels"
    STORED = "stored"


# Numbers of enum InputEncoding in teacher.proto.
_WIRE_NUMBERS = {None: 0, InputEncoding.PIXELS: 1, InputEncoding.STORED: 2}


def square_pixels(file: BinaryIO | Path, size: int, *, formats: tuple[str, ...] | None = None) -> Pixels:
    """Decode an image file: convert to RGB, crop the centre square, scale to `size` (bilinear). Returns uint8 [3, size, size].

    `formats` limits the file formats, by Pillow's names. Raises OSError for another format, a broken file, or too many pixels.
    """
    from PIL import Image, ImageOps

    with Image.open(file, formats=formats) as image:
        if image.width * image.height > _MAX_FILE_PIXELS:
            raise OSError(f"image has {image.width} x {image.height} pixels, must have at most {_MAX_FILE_PIXELS}")
        square = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def is_stored_format(file: Path) -> bool:
    """Return whether the file starts as a JPEG or PNG, whatever its name. Raises OSError if it cannot be read."""
    with file.open("rb") as opened:
        return opened.read(8).startswith(_MAGIC_NUMBERS)


def decode_inputs_into(data: bytes | memoryview, *, encoding: InputEncoding, lengths: list[int], crc32: int, out: Pixels) -> None:
    """Fill `out`, uint8 [rows, channels, height, width], contiguous, with the inputs of a chunk, and verify their checksum.

    Raises ChunkError for a wrong length, an invalid file or a wrong checksum; the content of `out` is then undefined.
    """
    if len(data) > MAX_INPUTS_BYTES:
        raise ChunkError(f"inputs have {len(data)} bytes, must have at most {MAX_INPUTS_BYTES}")
    match encoding:
        case InputEncoding.PIXELS:
            if lengths:
                raise ChunkError(f"{len(lengths)} input lengths were sent with pixels, must be 0")
            if len(data) != out.nbytes:
                raise ChunkError(f"inputs have {len(data)} bytes, must have {out.nbytes} for pixels {list(out.shape)}")
            out[...] = np.frombuffer(data, np.uint8).reshape(out.shape)
        case InputEncoding.STORED:
            _decode_files(data, lengths, out)
    actual = checksum(out.data.cast("B"))
    if actual != crc32:
        raise ChunkError(
            f"pixels of the inputs have CRC-32 {actual:08x}, must be {crc32:08x}: the inputs are damaged, or the decoders of both "
            "ends differ"
        )


def _decode_files(data: bytes | memoryview, lengths: list[int], out: Pixels) -> None:
    if len(lengths) != len(out) or sum(lengths) != len(data) or min(lengths) < 1:
        raise ChunkError(
            f"inputs are {len(lengths)} files of {sum(lengths)} bytes, must be {len(out)} non-empty files of {len(data)} bytes"
        )
    size = out.shape[-1]
    if out.shape[1:] != (3, size, size):
        raise ChunkError(f"input shape is {list(out.shape[1:])}, must be a square with three channels for image files")
    begin = 0
    for row, length in zip(out, lengths, strict=True):
        try:
            row[...] = square_pixels(io.BytesIO(data[begin : begin + length]), size, formats=_FORMATS)
        except Exception as error:  # a broken file makes Pillow raise exceptions of any type
            raise ChunkError(f"an input of {length} bytes is not a valid JPEG or PNG ({type(error).__name__})") from None
        begin += length


def input_to_wire(encoding: InputEncoding | None) -> "WireInputEncoding":
    """Return the number of an encoding in teacher.proto; None means that inputs do not travel."""
    return cast("WireInputEncoding", _WIRE_NUMBERS[encoding])


def input_from_wire(number: int) -> InputEncoding | None:
    """Return the encoding of a number in teacher.proto, None if inputs do not travel. Raises ValueError for an unknown number."""
    for encoding, known in _WIRE_NUMBERS.items():
        if number == known:
            return encoding
    allowed = ", ".join(f"{known} ({encoding or 'none'})" for encoding, known in _WIRE_NUMBERS.items())
    raise ValueError(f"input encoding {number} is unknown, must be one of {allowed}")
