"""Paths, atomic files, output folders with locks, and folders that meta.json marks as complete."""

import contextlib
import errno
import fcntl
import glob
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_STALE_S = 3600.0
"""Age at which a temporary folder beside an atomic file counts as left by a killed process. A younger one may be in use."""

_USER_ERRORS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP
}  # fmt: skip

logger = logging.getLogger(__name__)


def expanded(path: Path) -> Path:
    """Return the path with ~ and ~user replaced. Raises ValueError naming the path if the home folder does not exist."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such home folder; write the path out") from None


@contextlib.contextmanager
def named_by(flag: str, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Convert path errors inside the block to `kind`, with the flag, the path and the reason.

    Wrap the first access to a path that the user gave. Errors of the disk itself, such as a full one, pass through as OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _USER_ERRORS or error.filename is None:
            raise
        raise kind(f"{flag}: {error.filename}: {error.strerror}") from None


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path, sync the file to disk, and rename it to `path`.

    A reader sees the old or the new file, never a part of it, also after a power failure. Raises OSError that names `path`.
    A failed call leaves no temporary file. A killed process may leave one; a later call removes it.
    """
    try:
        _remove_stale(path)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            write(fresh)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _remove_stale(path: Path) -> None:
    """Remove the temporary folders that killed processes left beside `path`."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(FileNotFoundError):  # another process removed or renamed it meanwhile
            if folder.stat().st_mtime < time.time() - _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8. Raises OSError that names the file."""
    replace_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Raises ValueError for NaN and infinity, which JSON lacks, and OSError as `write_text`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def free_bytes(path: Path) -> float:
    """Return the bytes that this process can still write to the disk of `path`; infinity where the file system does not know."""
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else math.inf  # some FUSE and network file systems report 0 blocks


def make_folder(folder: Path) -> bool:
    """Create the folder of --out and write a test file, so that a path without write access fails before the work starts.

    Returns whether the folder is new.
    Raises ValueError if a file has that name or access is denied, and OSError naming the folder if the disk fails.
    """
    with named_by("--out"):
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            kind = "a link that leads nowhere" if folder.is_symlink() else "a file"
            cause = f"it, or a folder above it, is {kind}; name another path"
            raise ValueError(f"--out: {folder} must be a folder, but {cause}") from None
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
    return is_new


def remove_if_empty(folder: Path) -> None:
    """Remove the folder of a command that failed before it wrote a file."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def claim_folder(folder: Path) -> int:
    """Lock the folder against other runs with flock, and return the descriptor that holds the lock.

    Closing the descriptor or the end of the process releases the lock. Raises ValueError if another run holds it.
    Logs a warning where the file system has no locks, and returns the descriptor without one.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"--out {folder}: another run uses it; wait until it ends, or name another folder") from None
    except OSError as error:
        logger.warning("%s cannot be locked (%s): make sure that no other run writes there", folder, error.strerror)
    return descriptor


def is_locked(folder: Path) -> bool:
    """Return whether a run has locked the folder, see `claim_folder`. Raises OSError if the folder cannot be opened."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system has no locks
        return False
    finally:
        os.close(descriptor)
    return False


def mark_complete(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write meta.json, which marks the other files of a folder as complete.

    Callers delete it before they write these files, and call this function after.
    """
    write_json(folder / "meta.json", meta)


def find_mismatch(folder: Path, sizes: Mapping[str, int], *, is_same: Callable[[Any], bool], identity: str) -> str | None:
    """Compare the files of a folder with their expected sizes, and its meta.json with the expected identity.

    `sizes` has the bytes of each file but meta.json. `is_same` compares the content of meta.json; `identity` names what it
    compares, for the message. Returns None if everything matches, "" if the folder has none of the files, else the mismatch.
    """
    names = ("meta.json", *sizes)
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        return "" if len(absent) == len(names) else f"{absent[0]} is missing"
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return "meta.json is damaged"
    if not is_same(meta):
        return f"meta.json is of another {identity}"
    for name, num_bytes in sizes.items():
        size = (folder / name).stat().st_size
        if size != num_bytes:
            return f"{name} has {size} bytes, must have {num_bytes}"
    return None
