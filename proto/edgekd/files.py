"""Files that are whole or not there."""

import contextlib
import errno
import fcntl
import glob
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


def expanded(path: Path) -> Path:
    """The path with ~ and ~user replaced. Raises ValueError, naming it, where nobody has that home."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such home folder; write the path out") from None


_LITTER_S = 3600.0

_MISTAKES = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP
}  # fmt: skip


@contextlib.contextmanager
def named_by(flag: str, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Around what first touches a path that the user named: one that cannot be is his mistake, of `kind`, with flag and path.

    A full or a broken disk stays the world's, an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _MISTAKES or error.filename is None:
            raise
        raise kind(f"{flag}: {error.filename}: {error.strerror}") from None


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it in its place: old or new, never half, also after a power cut.

    Raises OSError that names `path`; nothing is left beside it, but by a process that was killed, and that by none after it.
    """
    try:
        for litter in path.parent.glob(f".{glob.escape(path.name)}.????????"):
            with contextlib.suppress(FileNotFoundError):  # swept up by another process, or put in its place, meanwhile
                if litter.stat().st_mtime < time.time() - _LITTER_S:  # else somebody may be writing the same file
                    shutil.rmtree(litter, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            write(fresh)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write meta.json, which vouches for the other files of a folder: gone while they are made, there once they are whole."""
    replace_atomically(folder / "meta.json", lambda fresh: fresh.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8"))


def find_flaw(folder: Path, sizes: Mapping[str, int], *, is_ours: Callable[[Any], bool], of_another: str) -> str | None:
    """Why the files of a folder with a meta.json cannot be used: None if they can, "" if there are none yet.

    `sizes` has the bytes of each but meta.json. `is_ours` is asked about what that says, and `of_another` completes the sentence
    "meta.json is of another ..." if it is not.
    """
    names = ("meta.json", *sizes)
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        return "" if len(absent) == len(names) else f"{absent[0]} is missing"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return "meta.json is damaged"
    if not is_ours(meta):
        return f"meta.json is of another {of_another}"
    for name, num_bytes in sizes.items():
        size = (folder / name).stat().st_size
        if size != num_bytes:
            return f"{name} has {size} bytes, must have {num_bytes}"
    return None


logger = logging.getLogger(__name__)


def make_folder(folder: Path) -> None:
    """Make the folder that --out wants, and try it: what cannot be written is said before the work, not after.

    ValueError if something else has that name, or nothing may be written there; OSError naming the folder if the disk is at fault.
    """
    with named_by("--out"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            what = "a link that leads nowhere" if folder.is_symlink() else "a file"
            raise ValueError(f"--out: {folder} cannot be a folder, because {what} has that name, or that of one above it") from None
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error


def claim_folder(folder: Path) -> int:
    """Keep other runs from writing there while this process lives; the descriptor that does.

    ValueError if another run has it. Where the file system knows no locks it is only said.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"--out {folder}: another run is at work there; wait for its end, or name another folder") from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): see that no other run writes there", folder, error.strerror)
    return descriptor


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it. OSError names the file."""
    replace_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does. ValueError for NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
