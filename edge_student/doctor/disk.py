"""The disk that runs write to: whether they may, how much room there is, and how long it takes until a write is really there.

It writes one small file into the folder, or the nearest one above it that exists, and removes it.
"""

import errno
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from edge_student.doctor.finding import Finding, Status, note, ok, unknown, warning

_NUM_SYNCS = 9
_SYNC_BYTES = 1 << 16
# Below the first a comparison of many runs may not fit any more, below the second not even one run and its checkpoints.
_LITTLE_MIB, _NOTHING_MIB = 1024, 64
_SLOW_SYNC_S = 0.1
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What was tried. `tried` is the folder that exists; `sync_s` are the seconds of each write with fsync.

    `refusal` says why nothing can be written, `trouble` why nothing could be asked; empty if there is no such thing.
    """

    folder: Path
    tried: Path
    free_mib: int
    kind: str
    sync_s: tuple[float, ...]
    refusal: str = ""
    trouble: str = ""


def try_disk(folder: Path, *, mounts: str | None = None) -> Disk:
    """Write, sync and remove a small file. `mounts` is the text of /proc/self/mounts. Raises nothing that a disk can do."""
    folder = folder.expanduser().absolute()
    tried, free_mib, kind = folder, 0, ""
    try:
        tried = next(place for place in (folder, *folder.parents) if place.is_dir())
        free_mib = shutil.disk_usage(tried).free >> 20
        kind = _kind_of(tried.resolve(), mounts or "")
    except (OSError, StopIteration) as error:
        return Disk(folder=folder, tried=tried, free_mib=0, kind=kind, sync_s=(), trouble=_reason(error))
    try:
        return Disk(folder=folder, tried=tried, free_mib=free_mib, kind=kind, sync_s=_time_syncs(tried))
    except OSError as error:
        return Disk(folder=folder, tried=tried, free_mib=free_mib, kind=kind, sync_s=(), refusal=_reason(error))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or "no folder above it exists"


def _time_syncs(folder: Path) -> tuple[float, ...]:
    seconds = []
    block = os.urandom(_SYNC_BYTES)  # some controllers do not write zeros
    with tempfile.TemporaryFile(dir=folder, prefix=".edgekd-doctor-", buffering=0) as file:
        for _ in range(_NUM_SYNCS):
            started = time.perf_counter()
            file.write(block)
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - started)
    return tuple(seconds)


def _kind_of(folder: Path, mounts: str) -> str:
    """The file system's kind, of the mount that lies nearest above; the last of several at one place covers the others."""
    rows = [line.split() for line in mounts.splitlines()]
    found = [(len(row[1]), number, row[2]) for number, row in enumerate(rows) if len(row) > 2 and folder.is_relative_to(row[1])]
    return max(found)[2] if found else ""


def find_disk(check: str, disk: Disk, *, flag: str, worst: Status) -> Finding:
    """What follows for runs that are told `flag`; `worst` is how bad it is that nothing can be written there."""
    details = {
        "folder": str(disk.folder),
        "tried": str(disk.tried),
        "free_mib": disk.free_mib,
        "file_system": disk.kind or None,
        "fsync_ms": [round(seconds * 1000, 3) for seconds in disk.sync_s],
    }
    name = f"{flag} {disk.folder}"
    if disk.trouble:
        return unknown(check, f"{name} cannot be looked at: {disk.trouble}", f"name another folder with {flag}", **details)
    if disk.refusal:
        text = f"nothing can be written for {name}: {disk.tried} says {disk.refusal}"
        remedy = f"name another folder with {flag}"
        if disk.refusal == os.strerror(errno.EACCES):
            remedy = f"`sudo chown $USER {disk.tried}`, or {remedy}"
        return Finding(check=check, status=worst, summary=text, remedy=remedy, details=details)
    sync_s, longest_s = statistics.median(disk.sync_s), max(disk.sync_s)
    took = f"a synced write takes {sync_s * 1000:.1f} ms (at most {longest_s * 1000:.1f} of {len(disk.sync_s)})"
    text = f"{name}: {disk.free_mib} MiB free, {took}"
    if disk.free_mib < _NOTHING_MIB:
        return Finding(
            check=check, status=worst, summary=text, remedy=f"make room there, or name another disk with {flag}", details=details
        )
    if disk.free_mib < _LITTLE_MIB:
        return warning(check, text, f"make room there, or name another disk with {flag}", **details)
    if sync_s > _SLOW_SYNC_S:
        return warning(
            check, f"{text}, which training waits for at every checkpoint", f"put {flag} on another disk than this card", **details
        )
    if disk.kind in _IN_MEMORY:
        return note(
            check,
            f"{text}; it is a {disk.kind}, which takes memory and is empty after a reboot",
            f"name a disk with {flag}",
            **details,
        )
    return ok(check, text, **details)
