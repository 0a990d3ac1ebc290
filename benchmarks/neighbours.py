"""Busy processes that compete with a measurement for the cores. As a program it does nothing."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from edge_student.ipc.parent_death import end_with_parent


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Run `count` processes with an endless loop during the block, on all cores that this process may use.

    They stay in this process's session, because the kernel's autogroups would otherwise share the cores among sessions. They end
    with the block, and with this process. Raises SystemExit if one of them ended during the block.
    """
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_busy()) for _ in range(count)]
        yield
        if any(process.poll() is not None for process in processes):
            raise SystemExit("a neighbour ended during the measurement")


@contextlib.contextmanager
def _busy() -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)  # noqa: PLW1509 -- no other thread here
    try:
        yield process
    finally:
        process.kill()
        process.wait()
