"""Codec of public inputs: sends the teacher's samples to an edge that does not have the public data set.

Inputs travel as values, pixels or float32, or as the JPEG and PNG files of an image folder. Files are smaller if the images are
about as large as the model's input. The result of decoding a file depends on the decoder's version, so a checksum of the pixels is
sent with the inputs.
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
    from PIL.Image import Image

    from edgekd.v1.teacher_pb2 import InputEncoding as WireInputEncoding

Pixels = npt.NDArray[np.uint8]
Inputs = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
INPUT_DTYPES = ("uint8", "float32")
"""Types of the values of inputs."""

_FORMATS = ("JPEG", "PNG")
_MAGIC_NUMBERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
# A file of a few kB can decode to gigabytes of pixels. No photograph has more pixels than this.
_MAX_FILE_PIXELS = 1 << 26


class InputEncoding(StrEnum):
    """Encoding of inputs on the wire."""

    PIXELS = "pixels"
    STORED = "stored"
    FLOAT32 = "float32"


# Numbers of enum InputEncoding in teacher.proto.
_WIRE_NUMBERS = {None: 0, InputEncoding.PIXELS: 1, InputEncoding.STORED: 2, InputEncoding.FLOAT32: 3}


def for_dtype(encoding: InputEncoding | None, dtype: str) -> InputEncoding | None:
    """Return the encoding for inputs of this type: values that are not pixels travel as float32."""
    return InputEncoding.FLOAT32 if encoding is InputEncoding.PIXELS and dtype == "float32" else encoding


def open_rgb(file: BinaryIO | Path, *, formats: tuple[str, ...] | None = None) -> "Image":
    """Decode an image file to RGB. 16-bit grey values are scaled to 8 bits, and transparency is dropped.

    `formats` limits the file formats, by Pillow's names. Raises OSError for another format, a broken file, too many pixels, or
    pixels that are not 8 or 16 bits.
    """
    from PIL import Image

    try:
        opened = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise OSError(f"image is too large: {error}") from None
    with opened as image:
        if image.width * image.height > _MAX_FILE_PIXELS:
            raise OSError(f"image has {image.width} x {image.height} pixels, must have at most {_MAX_FILE_PIXELS}")
        if image.mode.startswith("I;16"):
            # Pillow's own conversion clips at 255, so that nearly all pixels become white.
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise OSError(f"image has pixels of mode {image.mode}, 32 bits, must have 8 or 16 bits: convert the file")
        return image.convert("RGB")


def square_pixels(file: BinaryIO | Path, size: int, *, formats: tuple[str, ...] | None = None) -> Pixels:
    """Decode an image file: convert to RGB, crop the centre square, scale to `size` (bilinear). Returns uint8 [3, size, size].

    Raises OSError as `open_rgb`.
    """
    from PIL import Image, ImageOps

    square = ImageOps.fit(open_rgb(file, formats=formats), (size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def is_stored_format(file: Path) -> bool:
    """Return whether the file starts as a JPEG or PNG, whatever its name. Raises OSError if it cannot be read."""
    with file.open("rb") as opened:
        return opened.read(8).startswith(_MAGIC_NUMBERS)


def decode_inputs_into(data: bytes | memoryview, *, encoding: InputEncoding, lengths: list[int], crc32: int, out: Inputs) -> None:
    """Fill `out`, uint8 or float32 [rows, ...], contiguous, with the inputs of a chunk, and verify their checksum.

    Raises ChunkError for a wrong length, an invalid file or a wrong checksum; the content of `out` is then undefined.
    """
    if len(data) > MAX_INPUTS_BYTES:
        raise ChunkError(f"inputs have {len(data)} bytes, must have at most {MAX_INPUTS_BYTES}")
    match encoding:
        case InputEncoding.PIXELS | InputEncoding.FLOAT32:
            if lengths:
                raise ChunkError(f"{len(lengths)} input lengths were sent with {encoding}, must be 0")
            if len(data) != out.nbytes:
                raise ChunkError(f"inputs have {len(data)} bytes, must have {out.nbytes} for {encoding} {list(out.shape)}")
            out[...] = np.frombuffer(data, out.dtype.newbyteorder("<")).reshape(out.shape)
            if encoding is InputEncoding.FLOAT32 and not np.isfinite(out).all():
                raise ChunkError("inputs contain NaN or infinity, must be finite")
        case InputEncoding.STORED:
            assert out.dtype == np.uint8
            _decode_files(data, lengths, out)  # type: ignore[arg-type]
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
