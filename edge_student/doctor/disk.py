"""Check the disk for output and cache: write permission, free space, and the latency of synced writes.

The check writes one small file into the folder, or into its nearest existing parent, and removes it.
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
# Below the first limit, a comparison of many runs may not fit. Below the second, not even one run and its checkpoints fit.
_LOW_SPACE_MIB, _NO_SPACE_MIB = 1024, 64
_SLOW_SYNC_S = 0.1
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Result of the test write. `tried` is the existing folder; `sync_s` are the seconds of each write with fsync.

    `write_error` is the reason why the write failed, `read_error` why the folder could not be inspected. Both are empty on success.
    """

    folder: Path
    tried: Path
    free_mib: int
    kind: str
    sync_s: tuple[float, ...]
    write_error: str = ""
    read_error: str = ""


def try_disk(folder: Path, *, mounts: str | None = None) -> Disk:
    """Write, sync and remove a small file. `mounts` is the text of /proc/self/mounts. Disk errors are returned, never raised."""
    folder = folder.expanduser().absolute()
    tried, free_mib, kind = folder, 0, ""
    try:
        tried = next(place for place in (folder, *folder.parents) if place.exists())
        if not tried.is_dir():
            return Disk(folder=folder, tried=tried, free_mib=0, kind=kind, sync_s=(), write_error=os.strerror(errno.ENOTDIR))
        free_mib = shutil.disk_usage(tried).free >> 20
        kind = _kind_of(tried.resolve(), mounts or "")
    except (OSError, StopIteration) as error:
        return Disk(folder=folder, tried=tried, free_mib=0, kind=kind, sync_s=(), read_error=_reason(error))
    try:
        return Disk(folder=folder, tried=tried, free_mib=free_mib, kind=kind, sync_s=_time_syncs(tried))
    except OSError as error:
        return Disk(folder=folder, tried=tried, free_mib=free_mib, kind=kind, sync_s=(), write_error=_reason(error))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or "no parent folder exists"


def _time_syncs(folder: Path) -> tuple[float, ...]:
    seconds = []
    block = os.urandom(_SYNC_BYTES)  # random, because some controllers skip writes of zeros
    with tempfile.TemporaryFile(dir=folder, prefix=".edgekd-doctor-", buffering=0) as file:
        for _ in range(_NUM_SYNCS):
            started = time.perf_counter()
            file.write(block)
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - started)
    return tuple(seconds)


def _kind_of(folder: Path, mounts: str) -> str:
    """Return the file system type of the nearest mount point above. Of several mounts at one point, the last one is active."""
    rows = [line.split() for line in mounts.splitlines()]
    found = [(len(row[1]), number, row[2]) for number, row in enumerate(rows) if len(row) > 2 and folder.is_relative_to(row[1])]
    return max(found)[2] if found else ""


def check_disk(check: str, disk: Disk, *, flag: str, worst: Status) -> Finding:
    """Judge the disk of the folder given with `flag`. `worst` is the status if nothing can be written there."""
    details = {
        "folder": str(disk.folder),
        "tried": str(disk.tried),
        "free_mib": disk.free_mib,
        "file_system": disk.kind or None,
        "fsync_ms": [round(seconds * 1000, 3) for seconds in disk.sync_s],
    }
    name = f"{flag} {disk.folder}"
    if disk.read_error:
        return unknown(check, f"{name} cannot be read: {disk.read_error}", f"set {flag} to another folder", **details)
    if disk.write_error:
        text = f"{name} is not writable: writing to {disk.tried} fails with {disk.write_error}"
        remedy = f"set {flag} to another folder"
        if disk.write_error == os.strerror(errno.EACCES):
            remedy = f"run `sudo chown $USER {disk.tried}`, or {remedy}"
        return Finding(check=check, status=worst, summary=text, remedy=remedy, details=details)
    sync_s, longest_s = statistics.median(disk.sync_s), max(disk.sync_s)
    latency = f"a synced write takes {sync_s * 1000:.1f} ms (maximum of {len(disk.sync_s)}: {longest_s * 1000:.1f} ms)"
    text = f"{name}: {disk.free_mib} MiB free, {latency}"
    free_space = f"delete files there, or set {flag} to a folder on another disk"
    if disk.free_mib < _NO_SPACE_MIB:
        return Finding(check=check, status=worst, summary=text, remedy=free_space, details=details)
    if disk.free_mib < _LOW_SPACE_MIB:
        return warning(check, text, free_space, **details)
    if sync_s > _SLOW_SYNC_S:
        text += "; training waits that long at every checkpoint"
        return warning(check, text, f"set {flag} to a folder on a faster disk", **details)
    if disk.kind in _IN_MEMORY:
        text += f"; it is a {disk.kind}, which uses memory and is empty after a reboot"
        return note(check, text, f"set {flag} to a folder on a disk", **details)
    return ok(check, text, **details)
