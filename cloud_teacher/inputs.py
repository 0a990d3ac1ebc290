"""The public inputs as they leave: pixels from memory, or the files of an image folder as they are."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekd.codec import checksum
from edgekd.datasets import ImageDataset
from edgekd.inputs import STORED_SUFFIXES, InputEncoding
from edgekd.wire import MAX_INPUTS_BYTES

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedInputs:
    """Inputs of some samples one after the other, how long each is if they differ, and the checksum of their pixels."""

    data: bytes
    lengths: list[int]
    pixels_crc32: int


class PublicInputs:
    """The inputs of one data set. `encodings` are the ways in which all of them can travel."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._images = dataset.images
        self._files = dataset.files
        self.shape: tuple[int, ...] = dataset.images.shape[1:]
        self._input_bytes = int(np.prod(self.shape))
        self._file_bytes = np.array([file.stat().st_size for file in self._files], np.int64)
        self.encodings: list[InputEncoding] = []
        if self._input_bytes <= MAX_INPUTS_BYTES:
            self.encodings.append(InputEncoding.PIXELS)
        are_known = bool(self._files) and all(file.suffix.lower() in STORED_SUFFIXES for file in self._files)
        if are_known and self._file_bytes.max() <= MAX_INPUTS_BYTES:
            self.encodings.append(InputEncoding.STORED)

    def num_fitting(self, ids: Ids, encoding: InputEncoding) -> int:
        """How many of these samples, from the first on, go into one chunk; at least one."""
        if encoding is InputEncoding.PIXELS:
            return min(len(ids), MAX_INPUTS_BYTES // self._input_bytes)
        return max(1, int(np.searchsorted(np.cumsum(self._file_bytes[ids]), MAX_INPUTS_BYTES, side="right")))

    def encode(self, ids: Ids, encoding: InputEncoding) -> EncodedInputs:
        """The inputs of these samples. Raises OSError if a file is gone."""
        pixels = np.ascontiguousarray(self._images[ids])
        crc32 = checksum(pixels.data.cast("B"))
        if encoding is InputEncoding.PIXELS:
            return EncodedInputs(data=pixels.tobytes(), lengths=[], pixels_crc32=crc32)
        files = [self._files[sample].read_bytes() for sample in ids.tolist()]
        return EncodedInputs(data=b"".join(files), lengths=[len(file) for file in files], pixels_crc32=crc32)
