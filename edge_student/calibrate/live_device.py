"""The real device for `visits`: a comm worker that receives without end, and a trainer that steps without waiting.

Neither side waits for the other. All slots of the ring stay free, so receiving never stops. Training repeats the few batches that
were received before the measurement. Both sides are bound and held as in a run.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from edge_student.calibrate.visits import Visit
from edge_student.ipc.ring import Ring
from edge_student.run.worker_process import CommWorkerProcess
from edge_student.training.trainer import Trainer
from edgekd.errors import WorldError
from scheduler.live.binding import CommBinding, TeamBinding, WorkersBinding
from scheduler.live.comm_port import BatchArrived, CommEnded, CommFailed, CommTrouble
from scheduler.live.comm_side import CommSide
from scheduler.live.threads import may_leave_idle_priority, name_this_thread
from scheduler.model.handover import hand_over
from scheduler.model.placement import place
from scheduler.model.state import Allocation, Task

logger = logging.getLogger(__name__)

FOREVER = 1 << 60
"""More batches than any run receives."""

MOST_BATCHES = 8
"""Number of received batches that are kept for training."""
_POLL_S = 0.25


class LiveDevice:
    """Both sides on `cores`. A context manager for the compute thread: call `receive_first()`, then `stay()` for every visit."""

    def __init__(
        self,
        *,
        worker: CommWorkerProcess,
        ring: Ring,
        kept: Ring,
        trainer: Trainer,
        compute: TeamBinding | WorkersBinding,
        cores: Sequence[int],
    ) -> None:
        """`worker` receives into `ring`. `trainer` reads the batches that are `kept`."""
        self._worker, self._ring, self._kept, self._trainer, self._cores = worker, ring, kept, trainer, tuple(cores)
        self._comm = CommSide(worker, CommBinding(worker.pid))
        self._comp_binding = compute
        self._changed = threading.Condition()
        self._listener = threading.Thread(target=self._listen, name="edgekd-listener", daemon=True)
        self._listener_is_known = threading.Event()
        self._is_stopping = False
        self._failure: Exception | None = None
        self._num_received = 0
        self._may_use_idle_priority = may_leave_idle_priority()
        self._visit: Visit | None = None
        self._num_kept = 0
        self.num_troubles = 0

    def __enter__(self) -> "LiveDevice":
        self._listener.start()
        self._listener_is_known.wait()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_stopping = True
        self._listener.join()
        self._comp_binding.restore()

    def receive_first(self, timeout_s: float) -> None:
        """Receive the batches to train on: as many as are kept within `timeout_s` seconds, and at least one without a timeout."""
        wanted = self._kept.shape.num_slots
        self._worker.go()
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._num_received < wanted and not (self._num_received and time.monotonic() > deadline):
                self._raise_failure()
                self._changed.wait(_POLL_S)
            num_batches = min(self._num_received, wanted)
        # Copied before any slot is freed, so that the comm worker cannot overwrite them.
        for index in range(num_batches):
            self._kept.slot(index).fill(self._ring.slot(index))
        self._num_kept = num_batches
        self._worker.free_slots(FOREVER)

    def stay(self, visit: Visit) -> None:
        """Run both sides in the mode of `visit` until it is over. Raises the error that made the comm worker fail."""
        self._switch(visit.mode.allocation)
        with self._changed:
            visit.begin(time.monotonic())
            self._visit = visit
        try:
            if visit.mode.has_comp:
                self._train(visit)
            else:
                self._wait(visit)
        finally:
            with self._changed:
                self._visit = None

    def is_starved(self, index: int) -> bool:
        """Return False: all batches are received before a visit."""
        return False

    def has_batch(self, index: int) -> bool:
        """Return True: all batches are received before a visit."""
        return True

    def complete_cycle(self) -> None:
        """Do nothing: a visit that fails ends the measurement."""

    @contextmanager
    def task(self, task: Task) -> Iterator[None]:
        """Surround one task. Called by the trainer."""
        now = time.monotonic()
        with self._changed:
            self._raise_failure()
            assert self._visit is not None
            self._visit.task_boundary(task, now)
        self._comp_binding.apply(self._comp_cores)
        yield

    def _train(self, visit: Visit) -> None:
        cycle = 0
        while not visit.is_over(time.monotonic()):
            self._trainer.train(cycle + 1, self, self._kept, lambda num_cycles: None, start=cycle)
            cycle = (cycle + 1) % self._num_kept

    def _wait(self, visit: Visit) -> None:
        with self._changed:
            while not visit.is_over(time.monotonic()):
                self._raise_failure()
                self._changed.wait(_POLL_S)

    def _switch(self, allocation: Allocation) -> None:
        """Give both sides the cores of `allocation`, as the live loop does at a task boundary."""
        placement = place(allocation, self._cores)
        self._comp_cores = placement.comp
        if placement.comp:
            self._comp_binding.apply(placement.comp)
        with self._changed:
            self._comm.apply(hand_over(placement, frozenset()))
            if placement.comm and self._may_use_idle_priority:
                self._comm.set_idle_priority(placement.comm_is_idle, lambda record: None)

    @property
    def notes(self) -> list[str]:
        """What makes the rates doubtful: a refused scheduling class, and failures of the link."""
        notes = []
        if not self._may_use_idle_priority or self._comm.class_refusal:
            cause = self._comm.class_refusal or "the kernel does not allow leaving SCHED_IDLE"
            notes.append(f"compute-first was measured without idle priority: {cause}")
        if self.num_troubles:
            notes.append(f"the link failed {self.num_troubles} times; the affected batches do not count")
        return notes

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _listen(self) -> None:
        self._comp_binding.leave_alone(name_this_thread("edgekd-listener"))
        self._listener_is_known.set()
        try:
            while not self._is_stopping and self._failure is None:
                event = self._worker.next_event(_POLL_S)
                if event is not None:
                    with self._changed:
                        self._handle(event)
        except Exception as error:  # training must not continue without a receiver
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _handle(self, event: BatchArrived | CommEnded | CommFailed | CommTrouble) -> None:
        """Process one event of the comm worker. Call with the lock held."""
        if isinstance(event, BatchArrived):
            self._num_received += 1
            self._comm.pin_new_threads()
            if self._visit is not None:
                self._visit.batch(event.ended, event.cpu_s)
        elif isinstance(event, CommTrouble):
            self.num_troubles += 1
            if self._visit is not None:
                self._visit.trouble()
        else:
            self._failure = (
                event.error if isinstance(event, CommFailed) else WorldError("the comm worker exited during the measurement")
            )
        self._changed.notify_all()
