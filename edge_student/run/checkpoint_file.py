"""Reads and writes checkpoint files: checksummed, replaced atomically, kept in two generations.

A file contains a magic word, the SHA-256 of the rest, the length of the JSON, the JSON, and the tensors as safetensors. No content
is ever executed.

A new file is written under a temporary name and flushed. Then a hard link to the newest file replaces the previous file, and the
new file replaces the newest, each atomically. After a crash at any moment, a complete newest file exists. A damaged newest file is
moved aside, so that it never replaces the valid previous file.

This module does not check whether the content fits a run; see `resume`.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

logger = logging.getLogger(__name__)

NEWEST, PREVIOUS, DAMAGED = "checkpoint.edgekd", "checkpoint.before.edgekd", "checkpoint.damaged.edgekd"
_NEW, _LINK = "checkpoint.new", "checkpoint.link"
FILES = (NEWEST, PREVIOUS, DAMAGED, _NEW, _LINK)
"""All file names that this module uses in a folder."""

_MAGIC = b"EDGEKDC1"
_HEAD = struct.Struct("<8s32sQ")
_MAX_JSON_BYTES = 64 << 20
MAX_BYTES = 4 << 30
"""Maximum size of a file. No student that fits a board is larger, momentum included."""


NO_RESUME = "omit --resume to start from the first cycle"
"""The remedy in every CheckpointError."""


class CheckpointError(ValueError):
    """Checkpoints exist, but cannot be used by this run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Plain JSON values and tensors by name. No two tensors may share memory."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def save(folder: Path, checkpoint: Checkpoint) -> int:
    """Write a checkpoint as the newest file, keep the old newest as the previous one, and return the bytes written.

    Raises OSError with the file's name. Both files are then unchanged, and no temporary file is left.
    """
    new, newest, previous, link = (folder / name for name in (_NEW, NEWEST, PREVIOUS, _LINK))
    try:
        num_bytes = _write(new, checkpoint)
        link.unlink(missing_ok=True)
        if newest.exists():
            _duplicate(newest, link)
            link.replace(previous)
            # A killed writer can leave both names linked to one file. The replace does nothing then, and `link` remains.
            link.unlink(missing_ok=True)
        new.replace(newest)
        _flush_names(folder)
    except OSError as error:
        for name in (new, link):
            with contextlib.suppress(OSError):
                name.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(newest)) from error
    return num_bytes


def load(folder: Path) -> Checkpoint | None:
    """Return the newest valid checkpoint; None if there are no files.

    A damaged newest file is moved aside with a warning, and the previous one is returned. Temporary files of a killed writer are
    removed. Raises CheckpointError if files exist and none is valid, and OSError if the folder is not writable.
    """
    for name in (_NEW, _LINK):
        (folder / name).unlink(missing_ok=True)
    flaws = []
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        try:
            checkpoint = _read(path)
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            flaws.append(f"{path}: {error}")
            continue
        if flaws:
            logger.warning("%s; resuming from the previous checkpoint, keeping this file as %s", "; ".join(flaws), DAMAGED)
            _move_aside(folder)
        return checkpoint
    if flaws:
        raise CheckpointError(f"no checkpoint can be used ({'; '.join(flaws)}); {NO_RESUME}")
    return None


def remove(folder: Path) -> None:
    """Remove all checkpoint files from a folder."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def _move_aside(folder: Path) -> None:
    """Rename the newest file, of any type, to the damaged one. An earlier damaged file is removed."""
    newest, damaged = folder / NEWEST, folder / DAMAGED
    if damaged.is_dir() and not damaged.is_symlink():
        damaged.rmdir()
    else:
        damaged.unlink(missing_ok=True)
    newest.rename(damaged)


def _write(path: Path, checkpoint: Checkpoint) -> int:
    """Write a file, flush it to disk, and return its size. Tensors are serialized once and not copied again."""
    facts = json.dumps(checkpoint.facts, allow_nan=False).encode()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    parts = (struct.pack("<Q", len(facts)), facts, safetensors.torch.save(tensors))
    num_bytes = _HEAD.size - 8 + sum(map(len, parts))
    if num_bytes > MAX_BYTES or len(facts) > _MAX_JSON_BYTES:
        sizes = f"{num_bytes} bytes with {len(facts)} bytes of JSON, must have at most {MAX_BYTES} and {_MAX_JSON_BYTES}"
        raise OSError(errno.EFBIG, f"the checkpoint has {sizes}")
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    with path.open("wb") as file:
        file.write(_MAGIC + digest.digest())
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def _duplicate(path: Path, other: Path) -> None:
    """Create a hard link to a file, or a copy if the file system has no hard links (FAT, some network mounts)."""
    try:
        os.link(path, other)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        shutil.copyfile(path, other)


def _read(path: Path) -> Checkpoint:
    """Read a file; raises ValueError with its flaw. Type, size and magic word are checked before the content is read."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a regular file")
    if not _HEAD.size <= found.st_size <= MAX_BYTES:
        raise ValueError(f"{found.st_size} bytes, must have {_HEAD.size} to {MAX_BYTES}")
    with path.open("rb") as file:
        magic, digest, num_bytes = _HEAD.unpack(file.read(_HEAD.size))
        if magic != _MAGIC:
            raise ValueError("not a checkpoint of this version")
        if num_bytes > min(_MAX_JSON_BYTES, found.st_size - _HEAD.size):
            raise ValueError(f"damaged: invalid JSON length of {num_bytes} bytes")
        text = file.read(num_bytes)
        body = file.read(found.st_size - _HEAD.size - num_bytes)
    actual = hashlib.sha256(struct.pack("<Q", num_bytes))
    for part in (text, body):
        actual.update(part)
    if actual.digest() != digest:
        raise ValueError("damaged: wrong checksum")
    try:
        facts = json.loads(text)
        tensors = safetensors.torch.load(body)
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(f"invalid content: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError("invalid content: the JSON is not an object")
    return Checkpoint(facts=facts, tensors=tensors)


def _flush_names(folder: Path) -> None:
    """Flush the folder's entries to disk. Without this, a power cut can undo the renames."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
