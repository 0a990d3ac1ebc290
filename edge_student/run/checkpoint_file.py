"""A checkpoint on disk: one file that is whole or not believed, kept in two generations.

A file is a magic word, the SHA-256 of all that follows, the length of the JSON, the JSON, and the tensors as safetensors. Nothing
in it is ever executed. A new one is written beside the others and flushed; then the newest becomes the one before it, and the new
one the newest, each in one step of the file system: whenever the machine stops, there is the old newest or the new one. A newest
that turns out to be damaged is put aside, so that it never takes the place of the good one before it.

It knows files. What is in them, and whether that fits a run, is for others.
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

NEWEST, BEFORE, DAMAGED = "checkpoint.edgekd", "checkpoint.before.edgekd", "checkpoint.damaged.edgekd"
_FRESH, _LINK = "checkpoint.new", "checkpoint.link"
FILES = (NEWEST, BEFORE, DAMAGED, _FRESH, _LINK)
"""Every name that is ever used in a folder."""

_MAGIC = b"EDGEKDC1"
_HEAD = struct.Struct("<8s32sQ")
_MOST_JSON = 64 << 20
MOST_BYTES = 4 << 30
"""No student of a board is larger, its momentum included."""


class CheckpointError(ValueError):
    """Checkpoints are there, and none of them can be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Plain JSON values, and tensors by name; no two of them may share their memory."""

    facts: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def save(folder: Path, checkpoint: Checkpoint) -> int:
    """Write the newest checkpoint; the newest of before is kept. Returns the bytes written.

    Raises OSError naming the file if it cannot be; then both are what they were, and nothing else is left.
    """
    fresh, newest, before, link = (folder / name for name in (_FRESH, NEWEST, BEFORE, _LINK))
    try:
        num_bytes = _write(fresh, checkpoint)
        link.unlink(missing_ok=True)
        if newest.exists():  # the first has none before it
            _duplicate(newest, link)
            link.replace(before)
            link.unlink(missing_ok=True)  # a writer that was killed may have left both names of one file, and then that did nothing
        fresh.replace(newest)
        _flush_names(folder)
    except OSError as error:
        for name in (fresh, link):
            with contextlib.suppress(OSError):
                name.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(newest)) from error
    return num_bytes


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, None if there is none; a damaged one is put aside for the one before it, with a warning.

    Raises CheckpointError if there are some and none can be used, OSError if the folder cannot be written. Whatever a writer that
    was killed has left is removed.
    """
    for name in (_FRESH, _LINK):
        (folder / name).unlink(missing_ok=True)
    flaws = []
    for name in (NEWEST, BEFORE):
        path = folder / name
        try:
            checkpoint = _read(path)
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            flaws.append(f"{path}: {error}")
            continue
        if flaws:
            logger.warning("%s; going on from the checkpoint before it, and keeping this one as %s", "; ".join(flaws), DAMAGED)
            _put_aside(folder)
        return checkpoint
    if flaws:
        raise CheckpointError(f"no checkpoint can be used ({'; '.join(flaws)}): leave --resume out to start anew")
    return None


def remove(folder: Path) -> None:
    """Remove every checkpoint from a folder."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def _put_aside(folder: Path) -> None:
    """The newest, whatever it is, gets another name; one that was put aside earlier goes."""
    newest, damaged = folder / NEWEST, folder / DAMAGED
    if damaged.is_dir() and not damaged.is_symlink():
        damaged.rmdir()
    else:
        damaged.unlink(missing_ok=True)
    newest.rename(damaged)


def _write(path: Path, checkpoint: Checkpoint) -> int:
    """The whole file, on the disk when this returns; its bytes. The tensors are not copied once more than it takes."""
    facts = json.dumps(checkpoint.facts, allow_nan=False).encode()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    parts = (struct.pack("<Q", len(facts)), facts, safetensors.torch.save(tensors))
    num_bytes = _HEAD.size - 8 + sum(map(len, parts))
    if num_bytes > MOST_BYTES or len(facts) > _MOST_JSON:
        raise OSError(
            errno.EFBIG, f"{num_bytes} bytes, {len(facts)} of them JSON, and none of more than {MOST_BYTES} is read again"
        )
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
    """A second name for a file; where the file system knows no such thing (FAT, some network mounts), a copy."""
    try:
        os.link(path, other)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        shutil.copyfile(path, other)


def _read(path: Path) -> Checkpoint:
    """ValueError says what is wrong with it, in a few words. Nothing is read before it looks like a checkpoint."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    if not _HEAD.size <= found.st_size <= MOST_BYTES:
        raise ValueError(f"it has {found.st_size} bytes, must have {_HEAD.size} to {MOST_BYTES}")
    with path.open("rb") as file:
        magic, digest, num_bytes = _HEAD.unpack(file.read(_HEAD.size))
        if magic != _MAGIC:
            raise ValueError("it is no checkpoint of this version")
        if num_bytes > min(_MOST_JSON, found.st_size - _HEAD.size):
            raise ValueError(f"its JSON is said to have {num_bytes} bytes: it is damaged")
        text = file.read(num_bytes)
        body = file.read(found.st_size - _HEAD.size - num_bytes)
    actual = hashlib.sha256(struct.pack("<Q", num_bytes))
    for part in (text, body):
        actual.update(part)
    if actual.digest() != digest:
        raise ValueError("its checksum is wrong: it is damaged")
    try:
        facts = json.loads(text)
        tensors = safetensors.torch.load(body)
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise ValueError(f"it is no checkpoint: {error}") from None
    if not isinstance(facts, dict):
        raise ValueError("it is no checkpoint: its JSON is no object")
    return Checkpoint(facts=facts, tensors=tensors)


def _flush_names(folder: Path) -> None:
    """Without this a power cut may bring the old names back."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
