"""Runs the comm worker as a child process and implements the scheduler's CommPort on top of it.

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

# For glibc's malloc (mallopt(3)). By default it maps every block above 128 kB separately and unmaps it when freed. Each chunk of
# logits then causes hundreds of page faults, which take three quarters of the time to receive it.
_KEEP_LARGE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}

# Lets the thread that waits for a chunk read the socket itself. gRPC's event engine uses separate threads, which takes 50 % longer.
# Set only for tested versions: a later one may not know the name, and would log a warning at every start.
_READ_IN_WAITING_THREAD = {"GRPC_EXPERIMENTS": "-event_engine_client"}
_TESTED_GRPC = ((1, 80), (1, 85))


class TeacherUnavailableError(WorldError):
    """The teacher was unreachable or failing for longer than --max-wait."""


def worker_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process that receives logits. Variables in `environ` have precedence."""
    first, last = _TESTED_GRPC
    version = tuple(int(part) for part in importlib.metadata.version("grpcio").split(".")[:2])
    return {**_KEEP_LARGE_BLOCKS, **(_READ_IN_WAITING_THREAD if first <= version <= last else {}), **environ}


class CommWorkerProcess:
    """A running comm worker process. Use as a context manager, which ends the process in all cases."""

    def __init__(self, config: Configure) -> None:
        local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "edge_student.receive.worker", str(remote.fileno()), str(os.getpid())]
        # In a session of its own, so that a terminal's Ctrl-C reaches only the trainer, which then ends the worker.
        self._process = subprocess.Popen(
            command,
            pass_fds=[remote.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=worker_environment(os.environ),
        )
        remote.close()
        self._control = local
        # A second handle for wakes, because Python applies the timeout of a receive to a send on the same socket object.
        self._wake_socket = local.dup()
        self._wake_socket.setblocking(False)
        self._next_index: int | None = None  # the next batch to arrive, for log records of a failing link
        self._log_fields = {"edge": config.edge_id or None, "run": config.run_id or None}
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

    def has_idle_priority(self) -> bool:
        """Return whether the worker has the class SCHED_IDLE, as the kernel reports it. False if the worker has exited."""
        try:
            return os.sched_getscheduler(self.pid) == os.SCHED_IDLE
        except ProcessLookupError:
            return False

    def await_description(self) -> Described:
        """Wait for the teacher's description while the worker connects and retries, and return it.

        Raises TeacherUnavailableError after --max-wait, and ValueError if the teacher permanently rejects this edge.
        """
        message = self._await(Described)
        assert isinstance(message, Described)
        return message

    def use_ring(self, ring: Ring, *, start: int, stop: int) -> None:
        """Pass the ring for batches start .. stop-1 to the worker, and wait until the worker has mapped it."""
        self._ring, self._next_index = ring, start
        self._send(UseRing(start=start, stop=stop), fds=(ring.fd,))
        self._await(Ready)

    def go(self) -> None:
        """Start receiving."""
        self._send(Go())

    def next_event(self, timeout_s: float) -> CommEvent | None:
        """Return the worker's next event, or None after `timeout_s` seconds."""
        try:
            message = self._receive(timeout_s)
        except TimeoutError:
            return None
        except PeerGone:
            return CommFailed(error=self._exit_error())
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
            self._log_trouble(message)
            return CommTrouble(time=message.time, cause=message.cause)
        if isinstance(message, Failed):
            return CommFailed(error=self._to_error(message))
        assert isinstance(message, Finished), message
        self.finished = message
        return CommEnded()

    def hold(self) -> None:
        """Pause the worker at its next chunk."""
        assert self._ring is not None
        self._ring.set_held(True)

    def release(self) -> None:
        """Resume a held worker."""
        assert self._ring is not None
        self._ring.set_held(False)
        messages.wake(self._wake_socket)

    def free_slots(self, num_batches: int) -> None:
        """Free the slots of batches 0 .. num_batches-1, which have been consumed."""
        assert self._ring is not None
        self._ring.set_consumed(num_batches)
        messages.wake(self._wake_socket)

    def close(self) -> None:
        """Close the sockets, end the process (by SIGKILL if necessary) and reap it."""
        self._control.close()
        self._wake_socket.close()
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
                raise self._exit_error() from None
            if isinstance(message, kind):
                return message
            if isinstance(message, Failed):
                raise self._to_error(message)
            assert isinstance(message, LinkTrouble), message
            self._log_trouble(message)

    def _send(self, message: Message, *, fds: tuple[int, ...] = ()) -> None:
        try:
            messages.send(self._control, message, fds=fds)
        except PeerGone:
            raise self._exit_error() from None

    def _receive(self, timeout_s: float | None) -> Message:
        self._control.settimeout(timeout_s)
        message, _ = messages.receive(self._control)
        return message

    def _log_trouble(self, trouble: LinkTrouble) -> None:
        # The fields are explicit, because this can run in the scheduler's thread, which lacks the run's log context.
        fields = {**self._log_fields, "index": self._next_index}
        logger.warning("attempt %d failed: %s; trying again", trouble.attempt, trouble.cause, extra=fields)

    def _to_error(self, message: Failed) -> Exception:
        return ValueError(message.cause) if message.is_user_error else TeacherUnavailableError(message.cause)

    def _exit_error(self) -> Exception:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_WAIT_S)
        return WorldError(f"the comm worker (process {self.pid}) ended early: {_describe_status(self._process.returncode)}")


def _describe_status(status: int | None) -> str:
    if status is None:
        return "its socket is closed, but the process still runs"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
