"""Runs several streams in one comm worker: each is a thread that receives every n-th batch over its own connection.

Batches are reported to the trainer in index order, whatever their order of arrival. A thread waits for a free slot or while the
worker is held; a Wake on the socket ends both waits.
"""

import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence

from edge_student.ipc import messages
from edge_student.ipc.messages import BatchReceived, UseRing
from edge_student.ipc.ring import Ring
from edge_student.receive.busy_time import Busy
from edge_student.receive.source import LogitSource


def receive_all(control: socket.socket, sources: Sequence[LogitSource], ring: Ring, job: UseRing) -> int:
    """Receive batches `job.start` .. `job.stop - 1` into the ring, each as soon as its slot is free and the worker is not held.

    Every source runs in its own thread; a single source runs in this thread. Returns the bytes that crossed the wire.

    Raises the error of the first source that fails. The threads of the other sources may then still run.
    """
    gate, order = Gate(control, ring), InOrderReporter(control, job.start, len(sources))

    def receive_share(number: int) -> None:
        source = sources[number]
        for index in range(job.start + number, job.stop, len(sources)):
            if not order.wait_for_room(index, ring.shape.num_slots, _RELEASE_AFTER_S):
                source.release()  # a stream that is behind may wait for the teacher's last stream slot, which this one holds
                order.wait_for_room(index, ring.shape.num_slots)
            gate.wait_for_slot(index)
            gate.wait_while_held()
            if source.needs_all_before(index):
                order.wait_for_all_before(index)
            started = time.monotonic()
            num_bytes = source.receive(index, job.stop, ring.slot(index), gate.wait_while_held)
            order.report(index, started, num_bytes)

    if len(sources) == 1:
        receive_share(0)
    else:
        _in_threads([lambda number=number: receive_share(number) for number in range(len(sources))])  # type: ignore[misc]
    return order.num_bytes


def are_running() -> bool:
    """Return whether threads of `receive_all` are still running."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


def _in_threads(tasks: Sequence[Callable[[], None]]) -> None:
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    for number, task in enumerate(tasks):
        threading.Thread(target=run, args=(task,), name=f"{_THREAD}{number}", daemon=True).start()
    for _ in tasks:
        error = outcomes.get()
        if error is not None:
            raise error


_THREAD = "stream-"

_RELEASE_AFTER_S = 1.0
"""Seconds for which a stream stays open while the other streams are behind."""


class Gate:
    """Blocks threads until their slot is free and the worker is not held.

    One waiting thread reads the socket. After each Wake it notifies the others, and all of them check the ring again.
    """

    def __init__(self, control: socket.socket, ring: Ring) -> None:
        self._control = control
        self._ring = ring
        self._changed = threading.Condition()
        self._has_reader = False

    def wait_for_slot(self, index: int) -> None:
        """Wait until the previous batch in the slot of `index` has been consumed."""
        if not self._ring.has_slot_for(index):
            self._wait_until(lambda: self._ring.has_slot_for(index))

    def wait_while_held(self) -> None:
        """Wait until the scheduler releases the worker."""
        if self._ring.is_held:
            self._wait_until(lambda: not self._ring.is_held)

    def _wait_until(self, is_open: Callable[[], bool]) -> None:
        with self._changed:
            while not is_open():
                if self._has_reader:
                    self._changed.wait()
                    continue
                self._has_reader = True
                self._changed.release()
                try:
                    messages.await_wake(self._control)
                finally:
                    self._changed.acquire()
                    self._has_reader = False
                    self._changed.notify_all()


class InOrderReporter:
    """Reports received batches to the trainer in index order.

    The reported times do not overlap, as with one stream: a batch starts no earlier than the report of the batch before it.
    """

    def __init__(self, control: socket.socket, start: int, num_streams: int) -> None:
        self._control = control
        self._num_streams = num_streams
        self._next = start
        self._received: dict[int, tuple[float, int]] = {}
        self._changed = threading.Condition()
        self._cpu_s = time.process_time()
        self._reported = time.monotonic()
        self._busy = Busy(self._reported)
        self.num_bytes = 0

    def report(self, index: int, started: float, num_bytes: int) -> None:
        """Record batch `index` as complete in the ring, and report all batches that are next in order.

        `started` is the start of its reception on the monotonic clock; `num_bytes` crossed the wire.
        """
        with self._changed:
            self._received[index] = started, num_bytes
            while self._next in self._received:
                self._send(self._next, *self._received.pop(self._next))
                self._next += 1
            self._changed.notify_all()

    def wait_for_room(self, index: int, num_slots: int, timeout_s: float | None = None) -> bool:
        """Wait until the previous batch of the slot of `index` has been reported. Returns False on timeout.

        The ring alone is not enough: a trainer that reuses no slots marks all of them as free before any stream has filled them.
        """
        if index - self._next < num_slots:
            return True
        with self._changed:
            return self._changed.wait_for(lambda: index - self._next < num_slots, timeout_s)

    def wait_for_all_before(self, index: int) -> None:
        """Wait until every batch before `index` has been reported."""
        with self._changed:
            self._changed.wait_for(lambda: self._next >= index)

    def _send(self, index: int, started: float, num_bytes: int) -> None:
        cpu_now, ended = time.process_time(), time.monotonic()
        busy_s = self._busy.between(self._reported, ended)
        message = BatchReceived(
            index=index,
            started=max(started, self._reported),
            ended=ended,
            cpu_s=cpu_now - self._cpu_s,
            # Mean per stream: if every stream is busy all the time, the batch has no wait for the link.
            busy_s=None if busy_s is None else busy_s / self._num_streams,
            num_bytes=num_bytes,
        )
        self._cpu_s, self._reported = cpu_now, ended
        self.num_bytes += num_bytes
        messages.send(self._control, message)
