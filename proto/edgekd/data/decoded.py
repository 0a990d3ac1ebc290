"""Decodes image files to samples. Large data sets are decoded once into a cache file and read from there.

    ~/.cache/edgekd/decoded/<folder>-<key>/   rows          uint8 [N, 3, height, width], appended in order
                                              meta.json     marks the file as complete
                                              digests.json  digests of the data set, so that a start does not read all rows

The key covers the files (names, sizes, modification times), the rule and Pillow's version. An interrupted call keeps the decoded
rows, and the next one continues. One process decodes; others wait for it.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.cli.progress import Progress
from edgekd.data.rows import MOST_IN_MEMORY, FileRows, Samples
from edgekd.errors import WorldError
from edgekd.files import free_bytes, mark_complete, write_json

CACHE = Path("~/.cache/edgekd/decoded")
_BATCH = 64
_RESERVE_BYTES = 64 << 20

logger = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]


def decode_files(
    files: Sequence[str], decode: Callable[[Path], Pixels], *, shape: tuple[int, int, int], rule: str, root: Path
) -> Samples:
    """Return the samples of image files, uint8 [N, *shape], in memory or in a file of the cache.

    `decode` converts one file; `rule` names the conversion and its parameters. Raises WorldError for a file that cannot be decoded,
    and for a disk without the space for the cache.
    """
    num_bytes = len(files) * int(np.prod(shape))
    if num_bytes <= MOST_IN_MEMORY:
        samples = np.empty((len(files), *shape), np.uint8)
        for begin, rows in _decoded(files, decode, 0):
            samples[begin : begin + len(rows)] = rows
        return samples
    folder = CACHE.expanduser() / f"{root.resolve().name}-{_key(files, shape, rule)}"
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"root": str(root.resolve()), "rule": rule}
    with _locked(folder):
        if not (folder / "meta.json").exists():
            write_json(folder / "identity.json", identity)
            _remove_outdated(folder, identity)
            _fill(folder, files, decode, shape=shape, root=root)
            mark_complete(folder, {**identity, "num_samples": len(files), "shape": list(shape)})
        descriptor = os.open(folder / "rows", os.O_RDONLY | os.O_CLOEXEC)
    if os.fstat(descriptor).st_size != num_bytes:
        os.close(descriptor)
        raise WorldError(f"{folder / 'rows'} is damaged: delete the folder {folder}, and the images are decoded again")
    return FileRows(descriptor, sample_shape=shape, dtype=np.uint8, row_ids=np.arange(len(files)), digests=folder / "digests.json")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache folder, which another process may hold while it decodes."""
    with (folder / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that decodes images into %s", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(folder: Path, files: Sequence[str], decode: Callable[[Path], Pixels], *, shape: tuple[int, ...], root: Path) -> None:
    """Append the missing rows. A row that a kill left incomplete is decoded again."""
    row_bytes = int(np.prod(shape))
    with (folder / "rows").open("ab") as file:
        num_done = file.tell() // row_bytes
        file.truncate(num_done * row_bytes)
        needed, free = (len(files) - num_done) * row_bytes, free_bytes(folder) - _RESERVE_BYTES
        if needed > free:
            raise WorldError(
                f"{root} has {len(files)} images, which need {needed:,} bytes of disk when decoded, but {folder} has "
                f"{max(free, 0):,}: name a smaller size=, or free some space"
            )
        logger.info("decoding %d images of %s once into %s, %.1f GB", len(files) - num_done, root, folder, needed / 1e9)
        started = time.monotonic()
        with Progress("decoding images", len(files)) as progress:
            progress.advance(num_done)
            for _, rows in _decoded(files, decode, num_done):
                file.write(rows.data)
                file.flush()
                os.fdatasync(file.fileno())  # so that a power cut leaves no rows of zeros below the length of the file
                progress.advance(len(rows))
    logger.info("decoded in %.0f s; later runs read the decoded images", time.monotonic() - started)


def _decoded(files: Sequence[str], decode: Callable[[Path], Pixels], begin: int) -> Iterator[tuple[int, Pixels]]:
    """Decode the files from `begin` on in threads, which Pillow runs in parallel. Yields the index of each batch with its rows."""

    def one(name: str) -> Pixels:
        try:
            return decode(Path(name))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNG files
            raise WorldError(f"{name} cannot be read as an image: {error}; repair or remove it") from error

    with contextlib.ExitStack() as stack:
        threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        stack.callback(threads.shutdown, cancel_futures=True)
        for first in range(begin, len(files), _BATCH):
            rows = np.stack(list(threads.map(one, files[first : first + _BATCH])))
            yield first, np.ascontiguousarray(rows)  # Pillow has channels last, and `stack` keeps the order of memory


def _key(files: Sequence[str], shape: tuple[int, ...], rule: str) -> str:
    import PIL

    digest = hashlib.sha256(f"{rule} {shape} Pillow {PIL.__version__}\n".encode())
    for name in files:
        status = Path(name).stat()
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _remove_outdated(folder: Path, identity: dict[str, str]) -> None:
    """Remove the caches of the same folder and rule that are of other files, because they can never be read again."""
    for path in folder.parent.glob("*/identity.json"):
        with contextlib.suppress(OSError, ValueError), (path.parent / "lock").open("ab") as lock:
            if path.parent != folder and json.loads(path.read_text(encoding="utf-8")) == identity:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a process that decodes into it keeps it
                logger.info("removing %s: the files of %s have changed", path.parent, identity["root"])
                shutil.rmtree(path.parent, ignore_errors=True)
