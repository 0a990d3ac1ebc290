"""Cache of received logits on the edge's disk, as they were encoded: one folder per teacher, data set and encoding.

    DIR/<teacher16>-<dataset16>-<encoding>/   rows        uint8 [num_samples, row_bytes]: each row as encoded; its input follows it
                                                          if inputs travel
                                              checksums   uint32 [num_samples]: CRC-32 of each row; 0 for a missing row
                                              meta.json   key of the cache: digests, sizes, encoding
                                              lock        flock: exclusive for one writer, shared for readers

The checksum of a row starts from the sample id, is written after the row, and is verified at the first read. A row that a kill, a
power cut or a bad disk left incomplete therefore counts as missing and is received again. A cache with another meta.json is
rebuilt, so logits of two teachers, data sets or encodings are never mixed. All disk space is allocated at creation, so that it
cannot run out during a run. Several threads may put and read different rows.
"""

import fcntl
import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from zlib_ng import zlib_ng

from edgekd.files import expanded, find_mismatch, mark_complete, named_by
from edgekd.wire.codec import Encoding, Format
from edgekd.wire.inputs import INPUT_DTYPES, Inputs
from edgekd.wire.layouts import Decoded, LayoutError
from edgekd.wire.limits import MAX_DIMENSIONS

_FORMAT = 2
_AUGMENTATION = "none"
"""A field of every meta.json of this format. No other value has ever been written."""

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]


class CacheError(ValueError):
    """The cache is missing, locked by another process, damaged, or lacks rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """Identifies the logits of a cache: teacher, data set, encoding, and the inputs that are stored with them."""

    teacher_digest: str
    dataset_digest: str
    dataset_name: str
    num_samples: int
    num_classes: int
    encoding: str
    top_k: int
    input_shape: tuple[int, ...] = ()
    """Shape of the inputs that are stored with the logits; empty if the edge has the inputs."""
    input_dtype: str = "uint8"
    """Type of the values of these inputs."""
    class_names: tuple[str, ...] = ()
    """Class names as the teacher sent them. The teacher's digest identifies the logits."""
    classes_digest: str = ""

    def __post_init__(self) -> None:
        for name in ("input_shape", "class_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists only
        sizes = (self.num_samples, self.num_classes, *self.input_shape)
        texts = (self.teacher_digest, self.dataset_digest, self.dataset_name, self.encoding, *self.class_names, self.classes_digest)
        are_sizes = all(type(size) is int and size > 0 for size in sizes) and len(self.input_shape) <= MAX_DIMENSIONS
        are_sizes = are_sizes and self.input_dtype in INPUT_DTYPES and len(self.class_names) in (0, self.num_classes)
        if not are_sizes or type(self.top_k) is not int or not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError(f"invalid cache key: {self!r:.500}")

    @property
    def form(self) -> Format:
        """Encoding of a row."""
        return Format(Encoding(self.encoding), self.top_k)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: the encoded logits, then the input."""
        return self.form.layout(self.num_classes).row_bytes + self.input_bytes

    @property
    def input_bytes(self) -> int:
        """Bytes of the input of one row."""
        return math.prod(self.input_shape) * np.dtype(self.input_dtype).itemsize if self.input_shape else 0

    @property
    def folder(self) -> str:
        """Folder name: the first 64 bits of both digests, the encoding, and a suffix if inputs are stored."""
        form = str(self.form).replace(":", "-")
        return f"{self.teacher_digest[:16]}-{self.dataset_digest[:16]}-{form}{'-inputs' if self.input_shape else ''}"

    def is_same(self, meta: object) -> bool:
        """Return whether a parsed meta.json has this key. Names are ignored: the digests decide."""
        if not isinstance(meta, dict):
            return False
        ignored = ("dataset_name", "class_names", "classes_digest")
        found, own = ({k: v for k, v in fields.items() if k not in ignored} for fields in (meta, _meta(self)))
        return found == own


class LogitCache:
    """Encoded rows by sample id. Open it for writing with `open_cache`, or for reading with `open_filled`."""

    def __init__(self, folder: Path, key: CacheKey, lock: BinaryIO, *, is_writable: bool) -> None:
        """Map the files of `folder`, which must exist and have the right size."""
        self.folder, self.key = folder, key
        self._layout = key.form.layout(key.num_classes)
        mode = "r+" if is_writable else "r"
        self._is_writable = is_writable
        self._rows = np.memmap(folder / "rows", np.uint8, mode, shape=(key.num_samples, key.row_bytes))  # type: ignore[call-overload]
        self._checksums = np.memmap(folder / "checksums", np.uint32, mode, shape=(key.num_samples,))  # type: ignore[call-overload]
        self._is_missing = np.asarray(self._checksums == 0)
        self._is_verified = np.zeros(key.num_samples, bool)
        self._lock = lock
        self.num_damaged = 0

    @property
    def num_rows(self) -> int:
        """Number of rows with a checksum; a damaged row is detected only when it is read."""
        return int(np.count_nonzero(~self._is_missing))

    def has_all(self, ids: Ids) -> bool:
        """Return whether the cache has an undamaged row for each of these samples."""
        for sample in np.unique(ids[~self._is_verified[ids] & ~self._is_missing[ids]]).tolist():
            if _checksum(self._rows[sample], sample) == self._checksums[sample]:
                self._is_verified[sample] = True
            else:
                self._drop(sample)
        return not self._is_missing[ids].any()

    def put(self, ids: Ids, payload: bytes | memoryview, inputs: Inputs) -> None:
        """Store the rows of a payload for these sample ids, and their inputs, [rows, ...]."""
        rows = np.frombuffer(payload, np.uint8).reshape(len(ids), self._layout.row_bytes)
        if self.key.input_shape:
            rows = np.concatenate([rows, np.ascontiguousarray(inputs).reshape(len(ids), -1).view(np.uint8)], axis=1)
        self._rows[ids] = rows
        self._checksums[ids] = [_checksum(row, sample) for row, sample in zip(rows, ids.tolist(), strict=True)]
        self._is_missing[ids] = False
        self._is_verified[ids] = True

    def read(self, ids: Ids, out: Decoded, inputs: Inputs) -> None:
        """Decode the rows of `ids` into `out`, [len(ids), classes], with the same result as at their reception.

        `has_all(ids)` must hold. Fills `inputs`, [len(ids), ...], if the cache stores inputs. Raises
        CacheError for a row that cannot be decoded.
        """
        rows = self._rows[ids]
        if self.key.input_shape:
            values = np.ascontiguousarray(rows[:, self._layout.row_bytes :]).view(self.key.input_dtype)
            inputs[...] = values.reshape(inputs.shape)
            rows = rows[:, : self._layout.row_bytes]
        try:
            self._layout.decode(rows.tobytes(), out)
        except LayoutError as error:  # a checksum that matches by chance, or a manipulated file
            raise CacheError(f"the logit cache {self.folder} {error}: delete it and fill it again") from None

    def num_missing(self, ids: Ids) -> int:
        """Count the distinct samples that have no row or a damaged one."""
        samples = np.unique(ids)
        self.has_all(samples)
        return int(np.count_nonzero(self._is_missing[samples]))

    def close(self) -> None:
        """Flush the cache to disk and release its lock."""
        if self._lock.closed:
            return
        if self._is_writable:
            self._rows.flush()
            self._checksums.flush()
        self._lock.close()

    def _drop(self, sample: int) -> None:
        self.num_damaged += 1
        self._is_missing[sample] = True
        if self._is_writable:
            self._checksums[sample] = 0
        if self.num_damaged == 1:
            logger.warning(
                "logit cache %s: the row of sample %d does not match its checksum and counts as missing", self.folder, sample
            )


def open_cache(base: Path, key: CacheKey) -> LogitCache:
    """Open the cache of `key` under `base` for reading and writing; create or rebuild it if needed.

    Raises CacheError if another process uses it or the folder is not writable, OSError if the disk fails or lacks the space.
    """
    folder = expanded(base) / key.folder
    with named_by("--cache", CacheError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder, fcntl.LOCK_EX)
    try:
        # A folder without meta.json is new or incomplete.
        flaw = _find_flaw(folder, key) if (folder / "meta.json").exists() else ""
        if flaw is not None:
            if flaw:
                logger.warning("logit cache %s is deleted and rebuilt: %s", folder, flaw)
            _rebuild(folder, key)
        elif json.loads((folder / "meta.json").read_text(encoding="utf-8")) != _meta(key):
            mark_complete(folder, _meta(key))  # the teacher's names have changed
        return LogitCache(folder, key, lock, is_writable=True)
    except BaseException:
        lock.close()
        raise


def open_filled(base: Path, *, dataset_digest: str, form: Format, with_inputs: bool = False) -> LogitCache:
    """Open the only cache in `base`, or in a folder below it, with logits of this data set and encoding. Read-only.

    With `with_inputs` the cache must also store the inputs; an empty `dataset_digest` then matches any data set.

    Raises CacheError if no cache matches, or several do, for example of several teachers.
    """
    base = expanded(base)
    found = []
    for meta in [base / "meta.json", *sorted(base.glob("*/meta.json"))]:
        try:
            fields = json.loads(meta.read_text(encoding="utf-8"))
            version, augmentation = fields.pop("format"), fields.pop("augmentation")
            key = CacheKey(**fields)
            key.form.layout(key.num_classes)
            is_this_version = (version, augmentation) == (_FORMAT, _AUGMENTATION)
            is_this_dataset = key.dataset_digest == dataset_digest or (with_inputs and not dataset_digest)
            if is_this_version and is_this_dataset and key.form == form and bool(key.input_shape) == with_inputs:
                found.append((meta.parent, key))
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            continue  # not a cache, or a cache of another version
    if not found:
        raise CacheError(
            f"there is no logit cache of this data set with encoding {form}{' and inputs' if with_inputs else ''} in {base}: "
            "fill one with `edge-student fetch`"
        )
    if len(found) > 1:
        folders = " and ".join(str(folder) for folder, _ in found)
        raise CacheError(f"{folders} hold logits of several teachers or data sets: select one folder with --cache")
    folder, key = found[0]
    flaw = _find_flaw(folder, key)
    if flaw is not None:
        raise CacheError(f"the logit cache {folder} is damaged: {flaw}; fill it again with `edge-student fetch`")
    return LogitCache(folder, key, _lock(folder, fcntl.LOCK_SH), is_writable=False)


def _lock(folder: Path, kind: int) -> BinaryIO:
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise CacheError(
            f"another process uses the logit cache {folder}: wait for it, or give another folder with --cache"
        ) from None
    return lock


def _checksum(row: npt.NDArray[np.uint8], sample: int) -> int:
    """Return the CRC-32 of a row, starting from its sample id; never 0, which marks a missing row."""
    return zlib_ng.crc32(row.data, sample & 0xFFFFFFFF) or 1


def _sizes(key: CacheKey) -> dict[str, int]:
    return {"rows": key.num_samples * key.row_bytes, "checksums": 4 * key.num_samples}


def _meta(key: CacheKey) -> dict[str, object]:
    fields = asdict(key)
    shape, names = list(fields.pop("input_shape")), list(fields.pop("class_names"))
    if fields["input_dtype"] == "uint8":  # former caches lack the key, and have this type
        del fields["input_dtype"]
    return {"format": _FORMAT, **fields, "augmentation": _AUGMENTATION, "input_shape": shape, "class_names": names}


def _find_flaw(folder: Path, key: CacheKey) -> str | None:
    return find_mismatch(folder, _sizes(key), is_same=key.is_same, identity="teacher, data set, encoding or version")


def _rebuild(folder: Path, key: CacheKey) -> None:
    # meta.json marks the other files as complete, so it is deleted first and written last.
    (folder / "meta.json").unlink(missing_ok=True)
    for name, num_bytes in _sizes(key).items():
        with (folder / name).open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                file.truncate(0)
                cause = f"{error.strerror}: this file of the cache needs {num_bytes:,} bytes"
                raise OSError(error.errno, cause, str(folder / name)) from error
    mark_complete(folder, _meta(key))
