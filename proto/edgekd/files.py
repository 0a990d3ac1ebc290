"""Files that are whole or not there."""

import contextlib
import errno
import glob
import json
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
