"""Borrows the process for a training and gives it back: core masks of all threads, and environment variables."""

import contextlib
import os
import threading
from collections.abc import Iterator

from edge_student.host.environment import settle
from scheduler.live.threads import threads_of

_RUNNING = threading.Lock()


@contextlib.contextmanager
def borrowed_process(requested_cores: str | None) -> Iterator[tuple[int, ...]]:
    """Confine the process to the cores of a training during the block, and yield them. Each thread gets its former mask back.

    Raises ValueError for a core that is not allowed, and if another training runs in this process, which has one set of cores.
    """
    if not _RUNNING.acquire(blocking=False):
        raise ValueError("another training runs in this process, which has one set of cores: wait for its end")
    masks = {tid: os.sched_getaffinity(tid) for tid in threads_of(os.getpid())}
    try:
        yield settle(os.environ, requested_cores)
    finally:
        for tid, mask in masks.items():
            with contextlib.suppress(OSError):  # the thread has ended, or its cores were taken meanwhile
                os.sched_setaffinity(tid, mask)
        _RUNNING.release()
