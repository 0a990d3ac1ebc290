"""The comm worker: a light program of its own that receives logits into the ring. `python -m edge_student.comm_worker FD PARENT`.

It is started by the trainer's process with one end of a socket pair and that process' id, does what the messages say, and ends
with it. It never imports torch, and it never decides anything: the scheduler pins its threads from outside and holds it with a
flag in the ring.
"""

import logging
import os
import signal
import socket
import sys
import time

from edge_student import messages
from edge_student.logit_cache import CacheError
from edge_student.logit_source import LogitSource, make_source
from edge_student.messages import (
    BatchReceived,
    Configure,
    Failed,
    Finished,
    Go,
    LinkTrouble,
    PeerGone,
    Ready,
    UseRing,
)
from edge_student.parent import die_with_parent
from edge_student.receiver import BadTeacherError, LinkLostError, Receiver, RequestRefusedError
from edge_student.ring import Ring
from edge_student.thread_times import Busy


def main() -> int:
    """Entry point; exit status 0 when all batches were received, 1 when not (the reason went to the trainer)."""
    if len(sys.argv) != 3 or not all(argument.isdigit() for argument in sys.argv[1:]):
        print("edge_student.comm_worker is started by edge-student, with a socket's descriptor and a process id", file=sys.stderr)
        return 2
    die_with_parent(signal.SIGKILL)
    # Its id tells whether it died before we asked: in a container the trainer is process 1, and not every orphan's parent is.
    if os.getppid() != int(sys.argv[2]):
        return 1
    # Ctrl-C in a terminal reaches both processes; the trainer decides when to stop, and this one ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        return serve(control)
    except PeerGone:
        return 1


def serve(control: socket.socket) -> int:
    """Do what the trainer asks over `control`, until all batches are received or one end fails."""
    config, _ = messages.receive(control)
    assert isinstance(config, Configure), config
    logging.basicConfig(level=config.log_level.upper(), format="comm worker: %(message)s")
    yield_to_training(config)
    receiver = Receiver(config, lambda cause, attempt: messages.send(control, _trouble(cause, attempt)))
    source: LogitSource | None = None
    try:
        source = make_source(config, receiver)
        messages.send(control, source.describe())
        job, fds = messages.receive(control)
        assert isinstance(job, UseRing), job
        ring = Ring.attach(fds[0])
        source.check(job.start, job.stop)
        messages.send(control, Ready())
        go, _ = messages.receive(control)
        assert isinstance(go, Go), go
        receive_all(control, source, receiver, ring, job)
    except (RequestRefusedError, CacheError) as error:
        messages.send(control, Failed(cause=str(error), is_user_error=True))
        return 1
    except (LinkLostError, BadTeacherError) as error:
        messages.send(control, Failed(cause=str(error), is_user_error=False))
        return 1
    except PeerGone:
        raise
    except OSError as error:  # of the cache's files
        messages.send(control, Failed(cause=f"{error.filename}: {error.strerror}", is_user_error=False))
        return 1
    finally:
        if source is not None:
            source.close()
    return 0


def yield_to_training(config: Configure) -> None:
    """Take the priority that the policy wants for comm. Before gRPC's threads are born, which inherit it."""
    os.nice(config.niceness)
    if config.is_idle:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        except PermissionError as error:  # a container's rules; niceness alone does most of it
            logging.getLogger(__name__).warning("the kernel refused SCHED_IDLE (%s); comm may interrupt training", error.strerror)


def receive_all(control: socket.socket, source: LogitSource, receiver: Receiver, ring: Ring, job: UseRing) -> None:
    """Receive batches `job.start` .. `job.stop - 1` into the ring, each as soon as its slot is free and nobody holds us."""
    gate = Gate(control, ring)
    cpu_before = time.process_time()
    before = time.monotonic()
    busy = Busy(before)
    total_bytes = 0
    for index in range(job.start, job.stop):
        gate.wait_for_slot(index)
        gate.wait_while_held()
        started = time.monotonic()
        num_bytes = source.receive(
            index,
            job.stop,
            logits=ring.logits(index),
            sample_ids=ring.sample_ids(index),
            between_chunks=gate.wait_while_held,
        )
        total_bytes += num_bytes
        cpu_now, ended = time.process_time(), time.monotonic()
        message = BatchReceived(
            index=index,
            started=started,
            ended=ended,
            cpu_s=cpu_now - cpu_before,
            busy_s=busy.between(before, ended),
            num_bytes=num_bytes,
        )
        cpu_before, before = cpu_now, ended
        messages.send(control, message)
    finished = Finished(
        cpu_s=time.process_time(),
        num_bytes=total_bytes,
        num_reconnects=receiver.num_reconnects,
        num_refused_chunks=receiver.num_refused_chunks,
    )
    messages.send(control, finished)


class Gate:
    """Lets the worker go on when it may: its slot is free, and it is not held. Asleep on the socket otherwise."""

    def __init__(self, control: socket.socket, ring: Ring) -> None:
        self._control = control
        self._ring = ring

    def wait_for_slot(self, index: int) -> None:
        """Wait until the batch that lay in the slot of `index` has been consumed."""
        while not self._ring.has_slot_for(index):
            self._wait_for_wake()

    def wait_while_held(self) -> None:
        """Wait until the scheduler lets comm have cores."""
        while self._ring.is_held:
            self._wait_for_wake()

    def _wait_for_wake(self) -> None:
        messages.await_wake(self._control)


def _trouble(cause: str, attempt: int) -> LinkTrouble:
    return LinkTrouble(time=time.monotonic(), cause=cause, attempt=attempt)


if __name__ == "__main__":
    sys.exit(main())
