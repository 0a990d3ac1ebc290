"""The logit store: every row of logits that the teacher has computed, on disk, for one teacher and one data set.

    DIR/<teacher16>-<dataset16>/   logits.f32   float32 [num_samples, num_classes], sparse until rows come
                                   have         one bit per sample: is its row there?
                                   meta.json    whose logits these are: full digests and shape
                                   lock         held with flock by the one server that writes here

A row's values are on disk before its bit is set, so a kill at any moment leaves a store that is merely less full. Whatever does not
fit the digests or the shape is thrown away with a warning: logits of two teachers or data sets are never mixed.

Values are written with pwrite and read through a map: a full disk is then an OSError, where a write through the map would be a
fatal signal. One thread may fill while others ask and read.
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

from edgekd.files import expanded, find_flaw, named_by, write_meta

# Rows computed between two marks: what a kill can cost, and how soon an interrupt is noticed.
_ROWS_PER_MARK = 256
_FORMAT = 1

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class StoreInterruptedError(RuntimeError):
    """The store was told to stop before all rows were computed; those that were are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreKey:
    """Whose logits a store holds, and how many."""

    teacher_digest: str
    dataset_digest: str
    num_samples: int
    num_classes: int

    @property
    def folder(self) -> str:
        """Name of the folder, of the first 64 bits of both digests."""
        return f"{self.teacher_digest[:16]}-{self.dataset_digest[:16]}"

    @property
    def num_bytes(self) -> int:
        """Size of all rows."""
        return self.num_samples * self.num_classes * 4


class LogitStore:
    """Rows of logits by sample id, each computed once, by `compute(ids) -> float32 [len(ids), num_classes]`."""

    def __init__(
        self, key: StoreKey, compute: Callable[[Ids], Rows], *, values: BinaryIO, marks: BinaryIO, lock: BinaryIO | None
    ) -> None:
        """Of open files of the right size, which `open_store` makes. A store without a lock is private: it vanishes when closed."""
        self.key = key
        self._compute = compute
        self._values, self._marks, self._lock = values, marks, lock
        self._rows: Rows = np.memmap(values, np.float32, "r", shape=(key.num_samples, key.num_classes))
        packed = np.frombuffer(os.pread(marks.fileno(), _num_mark_bytes(key), 0), np.uint8)
        self._have = np.unpackbits(packed, count=key.num_samples).astype(bool)
        self._interrupted = threading.Event()

    @property
    def is_private(self) -> bool:
        """Whether this store is a temporary one, because another server holds the shared one."""
        return self._lock is None

    @property
    def num_ready(self) -> int:
        """Rows that need no computing any more."""
        return int(np.count_nonzero(self._have))

    def missing(self, ids: Ids) -> Ids:
        """Those of `ids` that have no row yet, each once, in ascending order."""
        absent = ids[~self._have[ids]]
        return np.unique(absent) if len(absent) else absent

    def read(self, ids: Ids) -> Rows:
        """A copy of the rows of `ids`, none of which may be missing: float32 [len(ids), num_classes]."""
        return np.asarray(self._rows[ids])

    def fill(self, ids: Ids, on_progress: Callable[[int], None] | None = None) -> None:
        """Compute and keep what is missing of `ids`; `on_progress` hears the number of rows done, each time some are.

        Only one thread may do this. Raises ValueError naming the sample if the teacher yields a NaN or an infinity for it, OSError
        if the disk is full, StoreInterruptedError after `interrupt`.
        """
        wanted = self.missing(ids)
        for begin in range(0, len(wanted), _ROWS_PER_MARK):
            if self._interrupted.is_set():
                raise StoreInterruptedError("the logit store is closing")
            part = wanted[begin : begin + _ROWS_PER_MARK]
            rows = self._checked(self._compute(part), part)
            self._keep(rows, part)
            if on_progress is not None:
                on_progress(len(part))

    def rows(self, ids: Ids) -> Rows:
        """Rows of `ids`, computing what is missing: float32 [len(ids), num_classes]. Raises as `fill`."""
        self.fill(ids)
        return self.read(ids)

    def interrupt(self) -> None:
        """Make a `fill` in another thread end soon, and every later one at once."""
        self._interrupted.set()

    def close(self) -> None:
        """Flush, and let go of the lock. What was read before stays valid; idempotent."""
        if self._values.closed:
            return
        for file in (self._values, self._marks):
            os.fsync(file.fileno())
            file.close()
        if self._lock is not None:
            self._lock.close()

    def _checked(self, rows: Rows, ids: Ids) -> Rows:
        assert rows.shape == (len(ids), self.key.num_classes), f"teacher gave {rows.shape} for {len(ids)} samples"
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"the teacher's logits of sample {ids[np.argmin(finite)]} hold a NaN or an infinity, which cannot be "
                "distilled: its weights are broken, train it again with a lower learning rate"
            )
        return np.ascontiguousarray(rows, np.float32)

    def _keep(self, rows: Rows, ids: Ids) -> None:
        row_bytes = self.key.num_classes * 4
        for row, sample in zip(rows, ids.tolist(), strict=True):
            _write_fully(self._values, row.data.cast("B"), sample * row_bytes)
        os.fdatasync(self._values.fileno())
        self._have[ids] = True
        _write_fully(self._marks, np.packbits(self._have).data, 0)


def open_store(directory: Path, key: StoreKey, compute: Callable[[Ids], Rows]) -> LogitStore:
    """The store of this teacher and data set under `directory`, made or mended as needed.

    Where another process holds it, a private one in the temporary folder, with a warning. Raises ValueError if nothing may be
    written there, OSError if the disk is at fault.
    """
    folder = expanded(directory) / key.folder
    with named_by("--store"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        logger.warning("another server holds the logit store %s: using a private one, which is not kept", folder)
        return _open_private(key, compute)
    try:
        flaw = _find_flaw(folder, key)
        if flaw is not None:
            if flaw:
                logger.warning("logit store %s is thrown away and begun anew: %s", folder, flaw)
            _rebuild(folder, key)
    except BaseException:
        lock.close()
        raise
    values, marks = ((folder / name).open("r+b", buffering=0) for name in ("logits.f32", "have"))
    store = LogitStore(key, compute, values=values, marks=marks, lock=lock)
    still_needed = key.num_bytes - store.num_ready * key.num_classes * 4
    if shutil.disk_usage(folder).free < still_needed:
        logger.warning("the disk of %s has not the %.0f MB free that a full store needs", folder, still_needed / 1e6)
    return store


def _open_private(key: StoreKey, compute: Callable[[Ids], Rows]) -> LogitStore:
    # Files without a name: nothing is left behind, however this process ends.
    values, marks = tempfile.TemporaryFile(buffering=0), tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    _size_files(values, marks, key)
    return LogitStore(key, compute, values=values, marks=marks, lock=None)


def _find_flaw(folder: Path, key: StoreKey) -> str | None:
    sizes = {"logits.f32": key.num_bytes, "have": _num_mark_bytes(key)}
    return find_flaw(folder, sizes, is_ours=lambda meta: meta == _meta(key), of_another="teacher, data set or version")


def _rebuild(folder: Path, key: StoreKey) -> None:
    # meta.json vouches for the other files, so it goes first and comes last.
    (folder / "meta.json").unlink(missing_ok=True)
    with (folder / "logits.f32").open("wb") as values, (folder / "have").open("wb") as marks:
        _size_files(values, marks, key)
    write_meta(folder, _meta(key))


def _size_files(values: BinaryIO, marks: BinaryIO, key: StoreKey) -> None:
    values.truncate(key.num_bytes)
    marks.truncate(_num_mark_bytes(key))


def _meta(key: StoreKey) -> dict[str, object]:
    return {"format": _FORMAT, **asdict(key)}


def _num_mark_bytes(key: StoreKey) -> int:
    return (key.num_samples + 7) // 8


def _write_fully(file: BinaryIO, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


ROWS_PER_FORWARD = 64
"""A teacher's forward takes so many samples, padded where fewer are wanted, so that fewer would take as long."""
