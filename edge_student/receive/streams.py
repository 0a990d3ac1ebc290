"""Several streams at a time in one comm worker: each is a thread that receives every n-th batch over a connection of its own.

Whichever comes first, the trainer hears of the batches in their order. The threads wait in two places, for a free slot and while
they are held, and one socket tells of both.
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
    """Receive batches `job.start` .. `job.stop - 1` into the ring, each as soon as its slot is free and nobody holds us.

    Every source takes its share in a thread of its own; a single one in this thread. Returns the bytes that crossed the wire.
    Raises what the first source that failed has raised; the others may then still be at work, in threads to be left alone.
    """
    gate, order = Gate(control, ring), InOrderReporter(control, job.start, len(sources))

    def receive_share(number: int) -> None:
        source = sources[number]
        for index in range(job.start + number, job.stop, len(sources)):
            if not order.wait_for_room(index, ring.shape.num_slots, _STOP_TIMEOUT_S):
                source.release()  # the stream that is behind may be waiting for a teacher that has none left but ours
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
    """Whether streams are still at work, or wait for a dead link, in threads of their own."""
    return any(thread.name.startswith(_THREAD) for thread in threading.enumerate())


def _in_threads(works: Sequence[Callable[[], None]]) -> None:
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    for number, work in enumerate(works):
        threading.Thread(target=run, args=(work,), name=f"{_THREAD}{number}", daemon=True).start()
    for _ in works:
        error = outcomes.get()
        if error is not None:
            raise error


_THREAD = "stream-"

_STOP_TIMEOUT_S = 1.0
"""How long a stream may be kept open while those of the other batches are behind."""


class Gate:
    """Lets a thread go on when it may: its slot is free, and nobody holds the worker.

    Of those that wait one sleeps on the socket, and wakes the others to look into the ring as it does itself.
    """

    def __init__(self, control: socket.socket, ring: Ring) -> None:
        self._control = control
        self._ring = ring
        self._changed = threading.Condition()
        self._somebody_listens = False

    def wait_for_slot(self, index: int) -> None:
        """Wait until the batch that lay in the slot of `index` has been consumed."""
        if not self._ring.has_slot_for(index):
            self._wait_until(lambda: self._ring.has_slot_for(index))

    def wait_while_held(self) -> None:
        """Wait until the scheduler lets comm have cores."""
        if self._ring.is_held:
            self._wait_until(lambda: not self._ring.is_held)

    def _wait_until(self, is_open: Callable[[], bool]) -> None:
        with self._changed:
            while not is_open():
                if self._somebody_listens:
                    self._changed.wait()
                    continue
                self._somebody_listens = True
                self._changed.release()
                try:
                    messages.await_wake(self._control)
                finally:
                    self._changed.acquire()
                    self._somebody_listens = False
                    self._changed.notify_all()


class InOrderReporter:
    """Tells the trainer of batches in the order of their indices, whichever came first.

    For whoever measures, they follow one another as those of one stream do: a batch begins when the one before it was told of, if
    it did not begin later.
    """

    def __init__(self, control: socket.socket, start: int, num_streams: int) -> None:
        self._control = control
        self._num_streams = num_streams
        self._next = start
        self._came: dict[int, tuple[float, int]] = {}
        self._changed = threading.Condition()
        self._cpu_s = time.process_time()
        self._told = time.monotonic()
        self._busy = Busy(self._told)
        self.num_bytes = 0

    def report(self, index: int, started: float, num_bytes: int) -> None:
        """Batch `index` lies complete in the ring, and `num_bytes` crossed the wire for it from `started` (monotonic clock) on."""
        with self._changed:
            self._came[index] = started, num_bytes
            while self._next in self._came:
                self._tell(self._next, *self._came.pop(self._next))
                self._next += 1
            self._changed.notify_all()

    def wait_for_room(self, index: int, num_slots: int, timeout_s: float | None = None) -> bool:
        """Wait until the batch that was to lie in the slot of `index` before it has been told of; False when the time is up.

        A slot may count as free although no stream has filled it yet, where the trainer needs none of them back.
        """
        if index - self._next < num_slots:
            return True
        with self._changed:
            return self._changed.wait_for(lambda: index - self._next < num_slots, timeout_s)

    def wait_for_all_before(self, index: int) -> None:
        """Wait until every batch before `index` has been told of."""
        with self._changed:
            self._changed.wait_for(lambda: self._next >= index)

    def _tell(self, index: int, started: float, num_bytes: int) -> None:
        cpu_now, ended = time.process_time(), time.monotonic()
        busy_s = self._busy.between(self._told, ended)
        message = BatchReceived(
            index=index,
            started=max(started, self._told),
            ended=ended,
            cpu_s=cpu_now - self._cpu_s,
            # Of one stream, in the mean: where all of them compute all the time, none of that time was a wait for the link.
            busy_s=None if busy_s is None else busy_s / self._num_streams,
            num_bytes=num_bytes,
        )
        self._cpu_s, self._told = cpu_now, ended
        self.num_bytes += num_bytes
        messages.send(self._control, message)
