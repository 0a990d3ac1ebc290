"""Samples on disk: rows of a file that are read when they are indexed, so that a data set may be larger than the memory."""

import os
import tempfile
from collections.abc import Callable, Iterable
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import WorldError
from edgekd.files import free_bytes

MOST_IN_MEMORY = 128 << 20
"""Data sets up to this size are held in memory. Larger ones are rows of a file, so that they need no memory."""
_CHUNK_BYTES = 64 << 20
_FOLDER = Path("~/.cache/edgekd")
_RESERVE_BYTES = 64 << 20


class _OpenFile:
    """A descriptor that is closed with the last array that reads it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class FileRows:
    """An array [N, ...] in a file. Indexing with ids or a slice reads these rows.

    Rows are read with pread instead of a memory map: pages of a map count as resident memory of this process as long as other
    programs do not need them. The kernel caches the file in both cases. A child process that the object is passed to reads
    through a duplicate of the descriptor, so the file may be deleted.
    """

    def __init__(
        self,
        file: "int | _OpenFile",
        *,
        sample_shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        row_ids: npt.NDArray[np.int64],
        offset: int = 0,
        digests: Path | None = None,
    ) -> None:
        """Take an open descriptor, which it closes. Row i of this array is row `row_ids[i]` of the file, from byte `offset` on."""
        self._file = _OpenFile(file) if isinstance(file, int) else file
        self._row_ids = row_ids
        self._offset = offset
        self.digests = digests
        """A JSON file that keeps the digests of all rows, so that they are not read at every start; None without one."""
        self.dtype = np.dtype(dtype)
        self.shape = (len(row_ids), *sample_shape)
        self._row_bytes = self.dtype.itemsize * int(np.prod(sample_shape, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._row_ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self._row_bytes

    def __getitem__(self, ids: slice | npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Read rows. Raises OSError if the file has become shorter or the disk fails."""
        row_ids = self._row_ids[ids]
        rows = np.empty((len(row_ids), *self.shape[1:]), self.dtype)
        buffer = rows.reshape(-1).view(np.uint8).data
        for index, row in enumerate(row_ids.tolist()):
            part = buffer[index * self._row_bytes : (index + 1) * self._row_bytes]
            position = self._offset + row * self._row_bytes
            while part:
                num_read = os.preadv(self._file.descriptor, [part], position)
                if not num_read:
                    raise OSError(f"a file of samples ends before row {row}: it was changed while it was in use")
                part, position = part[num_read:], position + num_read
        return rows

    def select(self, ids: slice | npt.NDArray[np.int64], digests: Path | None = None) -> "FileRows":
        """Return an array of these rows, without reading them."""
        row_ids, shape = self._row_ids[ids], self.shape[1:]
        return FileRows(self._file, sample_shape=shape, dtype=self.dtype, row_ids=row_ids, offset=self._offset, digests=digests)

    def __reduce__(self) -> tuple[Callable[..., "FileRows"], tuple[Any, ...]]:
        return _attach, (reduction.DupFd(self._file.descriptor), self.shape[1:], self.dtype.str, self._row_ids, self._offset)


def _attach(descriptor: Any, sample_shape: tuple[int, ...], dtype: str, row_ids: npt.NDArray[np.int64], offset: int) -> FileRows:
    return FileRows(descriptor.detach(), sample_shape=sample_shape, dtype=dtype, row_ids=row_ids, offset=offset)


Samples = npt.NDArray[Any] | FileRows
"""Samples [N, ...], uint8 or float32, in memory or on disk."""


def head(samples: Samples, num_rows: int) -> Samples:
    """Return the first rows without copying or reading them."""
    return samples.select(slice(num_rows)) if isinstance(samples, FileRows) else samples[:num_rows]


def write_rows(parts: Iterable[npt.NDArray[Any]], count: int, sample_shape: tuple[int, ...], dtype: npt.DTypeLike) -> FileRows:
    """Write parts of an array [count, *sample_shape] to a file without a name. Raises WorldError if the disk lacks the space."""
    folder = _FOLDER.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    needed = count * int(np.prod(sample_shape)) * np.dtype(dtype).itemsize
    free = free_bytes(folder) - _RESERVE_BYTES
    if needed > free:
        raise WorldError(f"{count} samples need {needed:,} bytes of disk, but {folder} has {max(free, 0):,}: free some space")
    with tempfile.TemporaryFile(dir=folder) as file:  # not in /tmp, which may be in memory
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)
        file.flush()
        return FileRows(os.dup(file.fileno()), sample_shape=sample_shape, dtype=dtype, row_ids=np.arange(count))


def chunks(samples: Samples, num_bytes: int = _CHUNK_BYTES, most_rows: int | None = None) -> list[slice]:
    """Return slices that divide the rows into parts of about `num_bytes`, and of at most `most_rows`."""
    step = max(1, num_bytes // max(1, samples.nbytes // max(1, len(samples))))
    step = step if most_rows is None else min(step, most_rows)
    return [slice(begin, begin + step) for begin in range(0, len(samples), step)]
