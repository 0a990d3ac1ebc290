"""Logits that have crossed the wire once, kept on the edge as they came: for one teacher, data set, augmentation and encoding.

    DIR/<teacher16>-<dataset16>-<encoding>/   rows        uint8 [num_samples, row_bytes]: each row as it was encoded, and its pixels
                                                          where inputs travel
                                              checksums   uint32 [num_samples]: of each row and its number; 0 where there is none
                                              meta.json   whose logits these are: digests, sizes, encoding
                                              lock        held with flock: by one that writes, or by any number that only read

A row's checksum is written after the row, begun with the sample's number, and looked at when the row is first read: whatever a
kill, a power cut or a bad disk has left half-written counts as missing and is received again. A cache whose meta.json does not fit
is begun anew: logits of two teachers, data sets or encodings are never mixed. All of the disk space is taken at first, so that it
cannot run out in the middle of a run. numpy only. Several threads may put and read, each other rows.
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
from edgekd.wire.inputs import Pixels
from edgekd.wire.layouts import Decoded, LayoutError

_FORMAT = 2

logger = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]


class CacheError(ValueError):
    """No such cache, one that another process holds, or rows that it does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """Whose logits a cache holds, of which inputs, and how they are encoded. No augmentation exists yet but "none"."""

    teacher_digest: str
    dataset_digest: str
    dataset_name: str
    num_samples: int
    num_classes: int
    encoding: str
    top_k: int
    augmentation: str = "none"
    input_shape: tuple[int, ...] = ()
    """Channels, height and width of the inputs that are kept with the logits; nothing where the edge has them anyway."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))  # JSON knows lists only
        sizes = (self.num_samples, self.num_classes, *self.input_shape)
        words = (self.teacher_digest, self.dataset_digest, self.dataset_name, self.encoding, self.augmentation)
        are_sizes = all(type(size) is int and size > 0 for size in sizes) and len(self.input_shape) in (0, 3)
        if not are_sizes or type(self.top_k) is not int or not all(isinstance(word, str) and word.isprintable() for word in words):
            raise ValueError(f"this is the key of no cache: {self!r:.500}")

    @property
    def form(self) -> Format:
        """How a row is encoded."""
        return Format(Encoding(self.encoding), self.top_k)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row: logits as they were encoded, then pixels."""
        return self.form.layout(self.num_classes).row_bytes + self.input_bytes

    @property
    def input_bytes(self) -> int:
        """Bytes of a row's pixels."""
        return math.prod(self.input_shape) if self.input_shape else 0

    @property
    def folder(self) -> str:
        """Name of the folder: the first 64 bits of both digests, the encoding, and whether inputs are in it."""
        form = str(self.form).replace(":", "-")
        return f"{self.teacher_digest[:16]}-{self.dataset_digest[:16]}-{form}{'-inputs' if self.input_shape else ''}"

    def is_same(self, meta: object) -> bool:
        """Whether a meta.json says this. A data set's name is for people: its digest decides."""
        return isinstance(meta, dict) and {**meta, "dataset_name": self.dataset_name} == _meta(self)


class LogitCache:
    """Encoded rows by sample id. Make one with `open_cache`, or open what is there with `open_filled`."""

    def __init__(self, folder: Path, key: CacheKey, lock: BinaryIO, *, is_writable: bool) -> None:
        """Of files that exist and have the right size."""
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
        """Rows that seem to be there; a damaged one is found out when it is asked for."""
        return int(np.count_nonzero(~self._is_missing))

    def has_all(self, ids: Ids) -> bool:
        """Whether the row of each sample is there and undamaged."""
        for sample in np.unique(ids[~self._is_verified[ids] & ~self._is_missing[ids]]).tolist():
            if _checksum(self._rows[sample], sample) == self._checksums[sample]:
                self._is_verified[sample] = True
            else:
                self._lose(sample, "does not fit its checksum")
        return not self._is_missing[ids].any()

    def put(self, ids: Ids, payload: bytes | memoryview, inputs: Pixels) -> None:
        """Keep the rows of a payload, whose samples these are, and their inputs, uint8 [rows, channels, height, width]."""
        rows = np.frombuffer(payload, np.uint8).reshape(len(ids), self._layout.row_bytes)
        if self.key.input_shape:
            rows = np.concatenate([rows, inputs.reshape(len(ids), -1)], axis=1)
        self._rows[ids] = rows
        self._checksums[ids] = [_checksum(row, sample) for row, sample in zip(rows, ids.tolist(), strict=True)]
        self._is_missing[ids] = False
        self._is_verified[ids] = True

    def read(self, ids: Ids, out: Decoded, inputs: Pixels) -> None:
        """Decode the rows of `ids`, all of which `has_all`, into [len(ids), classes]: what was decoded when they came.

        `inputs`, uint8 [len(ids), channels, height, width], gets their pixels, if they are kept.
        """
        rows = self._rows[ids]
        if self.key.input_shape:
            inputs[...] = rows[:, self._layout.row_bytes :].reshape(inputs.shape)
            rows = rows[:, : self._layout.row_bytes]
        try:
            self._layout.decode(rows.tobytes(), out)
        except LayoutError as error:  # a checksum that fits by chance, or a file that somebody made
            raise CacheError(f"the logit cache {self.folder} {error}: delete it and fill it again") from None

    def num_missing(self, ids: Ids) -> int:
        """How many of these samples have no row, or a damaged one."""
        wanted = np.unique(ids)
        self.has_all(wanted)
        return int(np.count_nonzero(self._is_missing[wanted]))

    def close(self) -> None:
        """Write to disk what is not yet there, and let others have the cache."""
        if self._lock.closed:
            return
        if self._is_writable:
            self._rows.flush()
            self._checksums.flush()
        self._lock.close()

    def _lose(self, sample: int, why: str) -> None:
        self.num_damaged += 1
        self._is_missing[sample] = True
        if self._is_writable:
            self._checksums[sample] = 0
        if self.num_damaged == 1:
            logger.warning("logit cache %s: the row of sample %d %s, and counts as missing", self.folder, sample, why)


def open_cache(base: Path, key: CacheKey) -> LogitCache:
    """The cache of this key under `base`, for reading and writing, made or begun anew as needed.

    Raises CacheError if another process has it or nothing may be written there, OSError if the disk is at fault or has not the
    space for all of it.
    """
    folder = expanded(base) / key.folder
    with named_by("--cache", CacheError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder, fcntl.LOCK_EX)
    try:
        # Without its meta.json a folder is new, or was never finished.
        flaw = _find_flaw(folder, key) if (folder / "meta.json").exists() else ""
        if flaw is not None:
            if flaw:
                logger.warning("logit cache %s is thrown away and begun anew: %s", folder, flaw)
            _rebuild(folder, key)
        return LogitCache(folder, key, lock, is_writable=True)
    except BaseException:
        lock.close()
        raise


def open_filled(base: Path, *, dataset_digest: str, form: Format, with_inputs: bool = False) -> LogitCache:
    """The one cache under `base`, or `base` itself, that holds logits of this data set in this encoding, for reading only.

    With `with_inputs` it must have the inputs too, and then any data set will do if no digest is given.

    Raises CacheError if there is none, or more than one, because of several teachers.
    """
    base = expanded(base)
    found = []
    for meta in [base / "meta.json", *sorted(base.glob("*/meta.json"))]:
        try:
            fields = json.loads(meta.read_text(encoding="utf-8"))
            version = fields.pop("format")
            key = CacheKey(**fields)
            key.form.layout(key.num_classes)
            is_of_it = key.dataset_digest == dataset_digest or (with_inputs and not dataset_digest)
            if version == _FORMAT and is_of_it and key.form == form and bool(key.input_shape) == with_inputs:
                found.append((meta.parent, key))
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            continue  # nobody's cache, or that of another version
    if not found:
        raise CacheError(
            f"there is no logit cache of this data set with encoding {form}{' and inputs' if with_inputs else ''} in {base}: "
            "fill one with `edge-student fetch`"
        )
    if len(found) > 1:
        folders = " and ".join(str(folder) for folder, _ in found)
        raise CacheError(f"{folders} hold logits of several teachers or data sets: name the one you mean with --cache")
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
            f"another process uses the logit cache {folder}: wait for it, or name another folder with --cache"
        ) from None
    return lock


def _checksum(row: npt.NDArray[np.uint8], sample: int) -> int:
    """Of a row in its place; never 0, which says that there is none."""
    return zlib_ng.crc32(row.data, sample & 0xFFFFFFFF) or 1


def _sizes(key: CacheKey) -> dict[str, int]:
    return {"rows": key.num_samples * key.row_bytes, "checksums": 4 * key.num_samples}


def _meta(key: CacheKey) -> dict[str, object]:
    return {"format": _FORMAT, **asdict(key), "input_shape": list(key.input_shape)}


def _find_flaw(folder: Path, key: CacheKey) -> str | None:
    return find_mismatch(folder, _sizes(key), is_same=key.is_same, identity="teacher, data set, encoding or version")


def _rebuild(folder: Path, key: CacheKey) -> None:
    # meta.json vouches for the other files, so it goes first and comes last.
    (folder / "meta.json").unlink(missing_ok=True)
    for name, num_bytes in _sizes(key).items():
        with (folder / name).open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                file.truncate(0)
                cause = f"{error.strerror}: this file of the cache takes {num_bytes:,} bytes"
                raise OSError(error.errno, cause, str(folder / name)) from error
    mark_complete(folder, _meta(key))
