"""The comm worker program, which receives logits into the ring: `python -m edge_student.receive.worker FD PARENT`.

The trainer's process starts it with one end of a socket pair and its own process id. The worker follows the messages on the socket
and exits with its parent. It never imports torch and makes no scheduling decisions: the scheduler pins its threads from outside and
holds it with a flag in the ring.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

from edge_student.ipc import messages
from edge_student.ipc.messages import (
    Configure,
    Failed,
    Finished,
    Go,
    LinkTrouble,
    PeerGone,
    Ready,
    UseRing,
)
from edge_student.ipc.parent_death import die_with_parent
from edge_student.ipc.ring import Ring
from edge_student.receive.cache import CacheError
from edge_student.receive.description import RequestRefusedError
from edge_student.receive.receiver import BadTeacherError, Receiver
from edge_student.receive.retry import LinkLostError
from edge_student.receive.source import LogitSource, make_source
from edge_student.receive.streams import are_running, receive_all
from edgekd.cli.logs import start_logging

logger = logging.getLogger(__name__)


def main() -> int:
    """Run the worker. Returns 0 after the last batch, 1 on a failure, 2 on wrong usage.

    The cause of a failure is sent to the trainer.
    """
    if len(sys.argv) != 3 or not all(argument.isdigit() for argument in sys.argv[1:]):
        print("edge_student.receive.worker is started by edge-student with a socket descriptor and a process id", file=sys.stderr)
        return 2
    die_with_parent(signal.SIGKILL)
    # Another parent: the trainer exited before the call above. An id of 1 proves nothing: in a container the trainer may have it.
    if os.getppid() != int(sys.argv[2]):
        return 1
    # Ctrl-C in a terminal reaches both processes. The trainer handles it, and this process exits with the trainer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    status = 1
    try:
        status = serve(control)
    except PeerGone:
        pass
    except Exception:
        logger.exception("the comm worker failed")
    if are_running():  # another stream failed; these may wait for a dead link
        sys.stderr.flush()
        os._exit(status)
    return status


def serve(control: socket.socket) -> int:
    """Follow the trainer's messages until all batches are received or a process fails. Returns the exit status."""
    config, _ = messages.receive(control)
    assert isinstance(config, Configure), config
    fields = {"edge": config.edge_id or None, "run": config.run_id or None}
    start_logging(config.log_level, config.log_format, text="comm worker: %(message)s", fields=fields)
    lower_priority(config)
    receiver = Receiver(config, lambda cause, attempt: messages.send(control, _trouble(cause, attempt)))
    sources: list[LogitSource] = []
    try:
        source = make_source(config, receiver)
        sources = [source]
        messages.send(control, source.describe())
        sources = source.divide(config.num_streams)
        if len(sources) < config.num_streams:
            logger.warning("the teacher serves at most %d streams, %d were requested", len(sources), config.num_streams)
        job, fds = messages.receive(control)
        assert isinstance(job, UseRing), job
        ring = Ring.attach(fds[0])
        source.check(job.start, job.stop)
        messages.send(control, Ready())
        go, _ = messages.receive(control)
        assert isinstance(go, Go), go
        num_bytes = receive_all(control, sources, ring, job)
        receivers = [receiver for each in sources for receiver in each.receivers]
        finished = Finished(
            cpu_s=time.process_time(),
            num_bytes=num_bytes,
            num_reconnects=sum(receiver.num_reconnects for receiver in receivers),
            num_refused_chunks=sum(receiver.num_refused_chunks for receiver in receivers),
            num_duplicate_chunks=sum(receiver.num_duplicate_chunks for receiver in receivers),
        )
        messages.send(control, finished)
    except (RequestRefusedError, CacheError) as error:
        messages.send(control, Failed(cause=str(error), is_user_error=True))
        return 1
    except (LinkLostError, BadTeacherError) as error:
        messages.send(control, Failed(cause=str(error), is_user_error=False))
        return 1
    except PeerGone:
        raise
    except OSError as error:  # from the cache files
        cause = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        messages.send(control, Failed(cause=cause, is_user_error=False))
        return 1
    finally:
        if not are_running():  # else other streams still use the sources, and this process exits at once
            for each in reversed(sources):  # the first source owns the cache
                each.close()
    return 0


def lower_priority(config: Configure) -> None:
    """Set the scheduling priority that the policy gives to comm. Must run before gRPC starts its threads, which inherit it.

    This process has a session of its own, and with it an autogroup (sched(7)), whose niceness is what counts beside other sessions.
    """
    os.nice(config.niceness)
    with contextlib.suppress(OSError):  # a kernel without autogroups
        Path("/proc/self/autogroup").write_text(str(config.niceness), encoding="ascii")
    if config.is_idle:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except PermissionError as error:  # forbidden in some containers; niceness alone has most of the effect
            logger.warning("the kernel rejected SCHED_IDLE (%s); comm may interrupt training", error.strerror)


def _trouble(cause: str, attempt: int) -> LinkTrouble:
    return LinkTrouble(time=time.monotonic(), cause=cause, attempt=attempt)


if __name__ == "__main__":
    sys.exit(main())
