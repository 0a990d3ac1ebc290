"""Encodes public inputs for the wire: their values, or the stored files of an image folder unchanged."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.data.dataset import Dataset
from edgekd.errors import WorldError
from edgekd.wire.codec import checksum
from edgekd.wire.inputs import InputEncoding, is_stored_format
from edgekd.wire.limits import MAX_DIMENSIONS, MAX_INPUTS_BYTES

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedInputs:
    """Inputs of several samples, concatenated. `lengths` is empty if all have the same size; the checksum covers the values."""

    data: bytes
    lengths: list[int]
    pixels_crc32: int


class InputChangedError(WorldError):
    """An image file was changed or deleted since the server started. `sample` is its id; the message names the file."""

    def __init__(self, sample: int, file: Path) -> None:
        super().__init__(f"{file}, of sample {sample}, was changed or deleted while the server ran; restart the server")
        self.sample = sample


class PublicInputs:
    """The inputs of one data set. `encodings` lists the input encodings that all of its samples allow."""

    def __init__(self, dataset: Dataset) -> None:
        self._samples = dataset.inputs
        self._files = tuple(map(Path, dataset.files))
        self.shape = dataset.input_shape
        self.dtype = str(dataset.inputs.dtype)
        self._input_bytes = int(np.prod(self.shape)) * dataset.inputs.dtype.itemsize
        self._file_bytes = np.array([file.stat().st_size for file in self._files], np.int64)
        self._values = InputEncoding.PIXELS if self.dtype == "uint8" else InputEncoding.FLOAT32
        self.encodings: list[InputEncoding] = []
        if self._input_bytes <= MAX_INPUTS_BYTES and len(self.shape) <= MAX_DIMENSIONS:
            self.encodings.append(self._values)
        if self._files and self._file_bytes.max() <= MAX_INPUTS_BYTES and all(map(is_stored_format, self._files)):
            self.encodings.append(InputEncoding.STORED)

    def num_fitting(self, ids: Ids, encoding: InputEncoding, most_bytes: int = MAX_INPUTS_BYTES) -> int:
        """Return how many of the first samples fit into one chunk of `most_bytes`, at least one."""
        if encoding is self._values:
            return max(1, min(len(ids), most_bytes // self._input_bytes))
        return max(1, int(np.searchsorted(np.cumsum(self._file_bytes[ids]), most_bytes, side="right")))

    def encode(self, ids: Ids, encoding: InputEncoding) -> EncodedInputs:
        """Encode the inputs of these samples. Raises InputChangedError if a file is missing or its size has changed."""
        values = np.ascontiguousarray(self._samples[ids])
        crc32 = checksum(values.data.cast("B"))
        if encoding is self._values:
            return EncodedInputs(data=values.tobytes(), lengths=[], pixels_crc32=crc32)
        files = [self._read(sample) for sample in ids.tolist()]
        return EncodedInputs(data=b"".join(files), lengths=[len(file) for file in files], pixels_crc32=crc32)

    def _read(self, sample: int) -> bytes:
        """Read a file of unchanged size, so that the chunk stays within its limit. The edge verifies the pixels by checksum."""
        with suppress(OSError), self._files[sample].open("rb") as file:
            content = file.read(int(self._file_bytes[sample]) + 1)
            if len(content) == self._file_bytes[sample]:
                return content
        raise InputChangedError(sample, self._files[sample])
