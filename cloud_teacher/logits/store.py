"""The logit store: keeps the computed logits of one teacher for one data set on disk.

    DIR/<teacher16>-<dataset16>/   logits.f32   float32 [num_samples, num_classes], a sparse file until rows are written
                                   have         a bitmap with one bit per sample: set if its row is computed
                                   meta.json    identity of the logits: both full digests and the shape
                                   lock         locked with flock by the server that writes to this store

Values are synced to disk before their bits are set, so a killed process loses rows but never leaves a wrong one. A store with
another identity or shape is rebuilt with a warning: logits of two teachers or data sets are never mixed.

Values are written with pwrite and read through a memory map. A write to a full disk then raises OSError; through the map it would
be a fatal signal. One thread may fill the store while others read it.
"""

import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edgekd.errors import WorldError
from edgekd.files import expanded, find_mismatch, mark_complete, named_by

ROWS_PER_FORWARD = 64
"""Samples in each forward of the teacher. A smaller request is padded to this number, so it takes as long."""

# Rows computed between two writes of the bitmap: a kill loses at most these, and an interrupt waits at most for these.
_ROWS_PER_COMMIT = 256
_FORMAT = 1

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class StoreInterruptedError(RuntimeError):
    """`LogitStore.interrupt` ended a fill early. The rows that were computed are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreKey:
    """Identity of a store: the digests of teacher and data set, and the shape of the logits."""

    teacher_digest: str
    dataset_digest: str
    num_samples: int
    num_classes: int

    @property
    def folder(self) -> str:
        """Name of the store's folder: the first 64 bits of both digests."""
        return f"{self.teacher_digest[:16]}-{self.dataset_digest[:16]}"

    @property
    def num_bytes(self) -> int:
        """Size of all rows in bytes."""
        return self.num_samples * self.num_classes * 4


class LogitStore:
    """Rows of logits by sample id. `compute(ids) -> float32 [len(ids), num_classes]` computes each row once."""

    def __init__(
        self, key: StoreKey, compute: Callable[[Ids], Rows], *, values: BinaryIO, bitmap: BinaryIO, lock: BinaryIO | None
    ) -> None:
        """Take open files of the right sizes, as `open_store` makes them. A store without a lock is private and temporary."""
        self.key = key
        self._compute = compute
        self._values, self._bitmap, self._lock = values, bitmap, lock
        self._rows: Rows = np.memmap(values, np.float32, "r", shape=(key.num_samples, key.num_classes))
        packed = np.frombuffer(os.pread(bitmap.fileno(), _num_bitmap_bytes(key), 0), np.uint8)
        self._have = np.unpackbits(packed, count=key.num_samples).astype(bool)
        self._interrupted = threading.Event()

    @property
    def is_private(self) -> bool:
        """Whether this store is temporary because another process has locked the shared one."""
        return self._lock is None

    @property
    def num_ready(self) -> int:
        """Number of rows that are computed."""
        return int(np.count_nonzero(self._have))

    def missing(self, ids: Ids) -> Ids:
        """Return the ids without a computed row, unique and in ascending order."""
        absent = ids[~self._have[ids]]
        return np.unique(absent) if len(absent) else absent

    def read(self, ids: Ids) -> Rows:
        """Return a copy of the rows of `ids`, which must all be computed: float32 [len(ids), num_classes]."""
        return np.asarray(self._rows[ids])

    def fill(self, ids: Ids, on_progress: Callable[[int], None] | None = None) -> None:
        """Compute and store the missing rows of `ids`, and call `on_progress` with the number of rows after each write.

        Only one thread may call this. Raises ValueError naming the sample if the teacher returns NaN or infinity for it, OSError
        if the disk is full, and StoreInterruptedError after `interrupt`.
        """
        missing = self.missing(ids)
        for begin in range(0, len(missing), _ROWS_PER_COMMIT):
            if self._interrupted.is_set():
                raise StoreInterruptedError("the logit store is closing")
            part = missing[begin : begin + _ROWS_PER_COMMIT]
            rows = self._checked(self._compute(part), part)
            self._write(rows, part)
            if on_progress is not None:
                on_progress(len(part))

    def rows(self, ids: Ids) -> Rows:
        """Return the rows of `ids` and compute missing ones: float32 [len(ids), num_classes]. Raises as `fill`."""
        self.fill(ids)
        return self.read(ids)

    def interrupt(self) -> None:
        """End a `fill` in another thread at its next write, and every later one at once."""
        self._interrupted.set()

    def close(self) -> None:
        """Sync the files to disk, close them and release the lock. Rows that were read stay valid. Idempotent."""
        if self._values.closed:
            return
        for file in (self._values, self._bitmap):
            os.fsync(file.fileno())
            file.close()
        if self._lock is not None:
            self._lock.close()

    def _checked(self, rows: Rows, ids: Ids) -> Rows:
        assert rows.shape == (len(ids), self.key.num_classes), f"the teacher returned {rows.shape} for {len(ids)} samples"
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"the teacher's logits of sample {ids[np.argmin(finite)]} contain NaN or infinity, must be finite: "
                "its weights are broken, train it again with a lower learning rate"
            )
        return np.ascontiguousarray(rows, np.float32)

    def _write(self, rows: Rows, ids: Ids) -> None:
        row_bytes = self.key.num_classes * 4
        for row, sample in zip(rows, ids.tolist(), strict=True):
            _write_fully(self._values, row.data.cast("B"), sample * row_bytes)
        os.fdatasync(self._values.fileno())
        self._have[ids] = True
        _write_fully(self._bitmap, np.packbits(self._have).data, 0)


def open_store(directory: Path, key: StoreKey, compute: Callable[[Ids], Rows], *, may_be_private: bool = True) -> LogitStore:
    """Open the store of this teacher and data set under `directory`, and create or rebuild it as needed.

    If another process has locked it, log a warning and return a private store in the temporary folder instead, or raise WorldError
    unless `may_be_private`. Raises ValueError if the path cannot be written, and OSError if the disk fails.
    """
    folder = expanded(directory) / key.folder
    with named_by("--store"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        if not may_be_private:
            raise WorldError(
                f"another process uses the logit store {folder}: let it compute (serve --precompute), or stop it"
            ) from None
        logger.warning("another server uses the logit store %s: using a private one, which is deleted on exit", folder)
        return _open_private(key, compute)
    try:
        mismatch = _find_mismatch(folder, key)
        if mismatch is not None:
            if mismatch:
                logger.warning("rebuilding logit store %s without its rows: %s", folder, mismatch)
            _rebuild(folder, key)
    except BaseException:
        lock.close()
        raise
    values, bitmap = ((folder / name).open("r+b", buffering=0) for name in ("logits.f32", "have"))
    store = LogitStore(key, compute, values=values, bitmap=bitmap, lock=lock)
    still_needed = key.num_bytes - store.num_ready * key.num_classes * 4
    if shutil.disk_usage(folder).free < still_needed:
        logger.warning("the disk of %s has less than the %.0f MB free that a full store needs", folder, still_needed / 1e6)
    return store


def _open_private(key: StoreKey, compute: Callable[[Ids], Rows]) -> LogitStore:
    # Unnamed files, which the kernel removes even if this process is killed.
    values, bitmap = tempfile.TemporaryFile(buffering=0), tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    _resize(values, bitmap, key)
    return LogitStore(key, compute, values=values, bitmap=bitmap, lock=None)


def _find_mismatch(folder: Path, key: StoreKey) -> str | None:
    sizes = {"logits.f32": key.num_bytes, "have": _num_bitmap_bytes(key)}
    return find_mismatch(folder, sizes, is_same=lambda meta: meta == _meta(key), identity="teacher, data set or version")


def _rebuild(folder: Path, key: StoreKey) -> None:
    # meta.json marks the other files as complete, so it is deleted first and written last.
    (folder / "meta.json").unlink(missing_ok=True)
    with (folder / "logits.f32").open("wb") as values, (folder / "have").open("wb") as bitmap:
        _resize(values, bitmap, key)
    mark_complete(folder, _meta(key))


def _resize(values: BinaryIO, bitmap: BinaryIO, key: StoreKey) -> None:
    values.truncate(key.num_bytes)
    bitmap.truncate(_num_bitmap_bytes(key))


def _meta(key: StoreKey) -> dict[str, object]:
    return {"format": _FORMAT, **asdict(key)}


def _num_bitmap_bytes(key: StoreKey) -> int:
    return (key.num_samples + 7) // 8


def _write_fully(file: BinaryIO, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written
