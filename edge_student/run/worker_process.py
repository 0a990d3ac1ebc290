"""The trainer's end of the comm worker: starts the program, shakes hands with it, and shows it to the scheduler as a CommPort.

The handshake: Configure ->, <- Described, UseRing with the ring's descriptor ->, <- Ready, and Go -> when the wall-clock starts.
"""

import contextlib
import importlib.metadata
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from edge_student.ipc import messages
from edge_student.ipc.messages import (
    BatchReceived,
    Configure,
    Described,
    Failed,
    Finished,
    Go,
    LinkTrouble,
    Message,
    PeerGone,
    Ready,
    UseRing,
)
from edge_student.ipc.ring import Ring
from edgekd.errors import WorldError
from scheduler.live.comm_port import BatchArrived, CommEnded, CommEvent, CommFailed, CommTrouble

logger = logging.getLogger(__name__)

_EXIT_WAIT_S = 5.0

# For glibc's malloc (mallopt(3)). By default it maps every block of more than 128 kB afresh and gives it back at once, so that each
# chunk of logits costs hundreds of page faults, three quarters of what it takes to receive it.
_KEEP_LARGE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}

# The thread that waits for a chunk reads the socket too, as gRPC did until its event engine gave that to threads of its own, which
# takes half as long again. Versions that were tried; a later one may not know the word, and says so on every start.
_READ_WHERE_AWAITED = {"GRPC_EXPERIMENTS": "-event_engine_client"}
_KNOWN_GRPC = ((1, 80), (1, 85))


class TeacherUnavailableError(WorldError):
    """The teacher could not be reached, or kept failing, for longer than the user wants to wait."""


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a process that receives logits is started with; what the user has set himself stays."""
    first, last = _KNOWN_GRPC
    version = tuple(int(part) for part in importlib.metadata.version("grpcio").split(".")[:2])
    return {**_KEEP_LARGE_BLOCKS, **(_READ_WHERE_AWAITED if first <= version <= last else {}), **environ}


class CommWorkerProcess:
    """A running comm worker. Use as a context manager: it ends the process, whatever happens."""

    def __init__(self, config: Configure) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "edge_student.receive.worker", str(theirs.fileno()), str(os.getpid())]
        # Its own session: a terminal's Ctrl-C is for the trainer, who then ends it.
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=worker_environment(os.environ),
        )
        theirs.close()
        self._control = ours
        # A second handle for wakes: Python would let a send on the first one wait as long as a receive may.
        self._doorbell = ours.dup()
        self._doorbell.setblocking(False)
        # The batch that training is waiting for, or will be next: where a failing link has stopped us.
        self._next_index: int | None = None
        self._about = {"edge": config.edge_id or None, "run": config.run_id or None}
        self._ring: Ring | None = None
        self.finished: Finished | None = None
        self._send(config)

    def __enter__(self) -> "CommWorkerProcess":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def await_description(self) -> Described:
        """What the teacher says of itself; blocks while the worker keeps trying to reach it.

        Raises TeacherUnavailableError when it gave up, ValueError when the teacher will never answer this edge.
        """
        message = self._await(Described)
        assert isinstance(message, Described)
        return message

    def use_ring(self, ring: Ring, *, start: int, stop: int) -> None:
        """Hand over the ring for batches start .. stop-1, and wait until the worker has mapped it."""
        self._ring, self._next_index = ring, start
        self._send(UseRing(start=start, stop=stop), fds=(ring.fd,))
        self._await(Ready)

    def go(self) -> None:
        """Let the worker start to receive."""
        self._send(Go())

    def next_event(self, timeout_s: float) -> CommEvent | None:
        """The worker's next event, or None after `timeout_s` seconds."""
        try:
            message = self._receive(timeout_s)
        except TimeoutError:
            return None
        except PeerGone:
            return CommFailed(error=self._death())
        if isinstance(message, BatchReceived):
            self._next_index = message.index + 1
            return BatchArrived(
                index=message.index,
                started=message.started,
                ended=message.ended,
                cpu_s=message.cpu_s,
                busy_s=message.busy_s,
                num_bytes=message.num_bytes,
            )
        if isinstance(message, LinkTrouble):
            self._say_trouble(message)
            return CommTrouble(time=message.time, cause=message.cause)
        if isinstance(message, Failed):
            return CommFailed(error=self._failure(message))
        assert isinstance(message, Finished), message
        self.finished = message
        return CommEnded()

    def hold(self) -> None:
        """Stop the worker at its next chunk."""
        assert self._ring is not None
        self._ring.set_held(True)

    def release(self) -> None:
        """Let a held worker go on."""
        assert self._ring is not None
        self._ring.set_held(False)
        messages.wake(self._doorbell)

    def free_slots(self, num_batches: int) -> None:
        """Batches 0 .. num_batches-1 have been consumed."""
        assert self._ring is not None
        self._ring.set_consumed(num_batches)
        messages.wake(self._doorbell)

    def close(self) -> None:
        """End the process, at the latest by SIGKILL, and reap it."""
        self._control.close()
        self._doorbell.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_WAIT_S if self.finished else 0.0)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _await(self, kind: type[Message]) -> Message:
        while True:
            try:
                message = self._receive(None)
            except PeerGone:
                raise self._death() from None
            if isinstance(message, kind):
                return message
            if isinstance(message, Failed):
                raise self._failure(message)
            assert isinstance(message, LinkTrouble), message
            self._say_trouble(message)

    def _send(self, message: Message, *, fds: tuple[int, ...] = ()) -> None:
        try:
            messages.send(self._control, message, fds=fds)
        except PeerGone:
            raise self._death() from None

    def _receive(self, timeout_s: float | None) -> Message:
        self._control.settimeout(timeout_s)
        message, _ = messages.receive(self._control)
        return message

    def _say_trouble(self, trouble: LinkTrouble) -> None:
        about = {**self._about, "index": self._next_index}  # said here, because the scheduler's thread knows nothing of the run
        logger.warning("attempt %d failed: %s; trying again", trouble.attempt, trouble.cause, extra=about)

    def _failure(self, message: Failed) -> Exception:
        return ValueError(message.cause) if message.is_user_error else TeacherUnavailableError(message.cause)

    def _death(self) -> Exception:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_WAIT_S)
        return WorldError(f"the comm worker (process {self.pid}) died: {_describe_status(self._process.returncode)}")


def _describe_status(status: int | None) -> str:
    if status is None:
        return "it closed its socket and lives on"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
