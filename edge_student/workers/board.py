"""The board on which the trainer and its compute workers record how far they are, and the bells with which they wake each other.

A word of the board has one writer. A process that changes a word rings the bell of every process that may wait for it. Ringing and
waiting are system calls, which in practice also order the changes of memory between the processes.
"""

import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import reduction
from typing import Any

import numpy as np

from edge_student.events.spans import SHARD_PARTS
from edge_student.workers.shared_arrays import SharedArrays

_DIGITS = 6  # of seconds


class Bell:
    """A wake-up call for one waiting process: an eventfd(2). A ring before the wait is not lost."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if fd is None else fd

    def ring(self) -> None:
        """Wake the process that waits, or that waits next."""
        os.eventfd_write(self.fd, 1)

    def wait(self, others: Sequence[int] = (), timeout_s: float | None = None) -> list[int]:
        """Wait for a ring or until one of the descriptors `others` is readable, and return the readable ones.

        An empty list means a ring, or that `timeout_s` seconds have passed.
        """
        poll = select.poll()
        for fd in (self.fd, *others):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)]
        if self.fd in ready:
            os.eventfd_read(self.fd)
            ready.remove(self.fd)
        return ready

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __reduce__(self) -> tuple[Callable[..., "Bell"], tuple[Any, ...]]:
        return _attach, (reduction.DupFd(self.fd),)


def _attach(descriptor: Any) -> Bell:
    return Bell(descriptor.detach())


class Board:
    """The state of `num_shards` compute workers.

    A cycle has two phases, numbered 2 * cycle for its Forward and 2 * cycle + 1 for its Backward with the optimiser step.
    """

    def __init__(self, num_shards: int) -> None:
        self.num_shards = num_shards
        per_worker = ("int64", (num_shards,))
        self._words = SharedArrays(
            {
                "granted": ("int64", (1,)),
                "ready": per_worker,
                "done": per_worker,
                "gradients": per_worker,
                "begun": per_worker,
                "stepped": per_worker,
                "loss": ("float64", (num_shards,)),
                "spans": ("float64", (2, len(SHARD_PARTS), num_shards, 2)),
            }
        )
        self.trainer_bell = Bell()
        self.worker_bells = [Bell() for _ in range(num_shards)]

    def grant(self, num_phases: int) -> None:
        """Let the workers compute the phases below `num_phases`."""
        self._words["granted"][0] = num_phases
        for bell in self.worker_bells:
            bell.ring()

    @property
    def num_granted(self) -> int:
        """Number of phases that the workers may compute."""
        return int(self._words["granted"][0])

    def is_ready(self, worker: int) -> bool:
        """Whether the worker, or one that it replaces, has warmed up."""
        return bool(self._words["ready"][worker])

    def set_ready(self, worker: int) -> None:
        """Record that the worker has warmed up."""
        self._words["ready"][worker] = 1
        self.trainer_bell.ring()

    @property
    def are_all_ready(self) -> bool:
        """Whether all workers have warmed up."""
        return bool(self._words["ready"].all())

    @property
    def num_done(self) -> int:
        """Number of phases that all workers have completed."""
        return int(self._words["done"].min())

    def done_by(self, worker: int) -> int:
        """Return the number of phases that one worker has completed."""
        return int(self._words["done"][worker])

    def set_done(self, worker: int, num_phases: int) -> None:
        """Record the number of phases that `worker` has completed, and wake the trainer; after a step, also the other workers."""
        self._words["done"][worker] = num_phases
        self.trainer_bell.ring()
        if num_phases % 2 == 0:
            self._ring_others(worker)

    @property
    def num_gradients(self) -> int:
        """Number of cycles whose gradients all workers have written."""
        return int(self._words["gradients"].min())

    def num_gradients_of(self, worker: int) -> int:
        """Return the number of cycles whose gradients one worker has written."""
        return int(self._words["gradients"][worker])

    def set_gradients(self, worker: int, num_cycles: int) -> None:
        """Record the number of cycles whose gradients `worker` has written, and wake the other workers."""
        self._words["gradients"][worker] = num_cycles
        self._ring_others(worker)

    def _ring_others(self, worker: int) -> None:
        for other, bell in enumerate(self.worker_bells):
            if other != worker:
                bell.ring()

    def progress_of(self, worker: int) -> "StepProgress":
        """Return the progress of one worker within the optimiser step."""
        return StepProgress(self._words, worker)

    def set_loss(self, worker: int, loss: float) -> None:
        """Record the worker's part of the loss."""
        self._words["loss"][worker] = loss

    @property
    def loss(self) -> float:
        """The loss of the last cycle: the sum of the workers' parts, in their order."""
        return float(sum(self._words["loss"].tolist()))

    @contextmanager
    def timed(self, part: str, worker: int, cycle: int) -> Iterator[None]:
        """Record the start and the end of one of SHARD_PARTS, in seconds of the monotonic clock, for this cycle and the next."""
        span = self._words["spans"][cycle % 2, SHARD_PARTS.index(part), worker]
        span[0] = time.monotonic()
        yield
        span[1] = time.monotonic()

    def spans(self, cycle: int) -> dict[str, Any]:
        """Return the start of a cycle's first part, the end of its last, and [start, end] of each part by shard.

        Seconds; those of the parts count from `started`. All workers must have completed the cycle, and none of them may have begun
        cycle + 2.
        """
        spans = self._words["spans"][cycle % 2]
        started = float(spans.min())
        parts = np.round(spans - started, _DIGITS).tolist()
        return {"started": started, "ended": float(spans.max()), **dict(zip(SHARD_PARTS, parts, strict=True))}

    def close(self) -> None:
        """Close the descriptors. The words stay readable."""
        self._words.close()
        for bell in (self.trainer_bell, *self.worker_bells):
            bell.close()

    def restart(self, num_cycles: int) -> None:
        """Set all counts to the state after `num_cycles` complete cycles. No worker may run."""
        self._words["granted"][:] = self._words["done"][:] = 2 * num_cycles
        self._words["gradients"][:] = num_cycles
        self._words["begun"][:] = self._words["stepped"][:] = 0


class StepProgress:
    """How far one worker is in the optimiser step of its part of the parameters, in elements.

    `begun` > `stepped` means that the elements from `stepped` up to `begun` may be half updated.
    """

    def __init__(self, words: SharedArrays, worker: int) -> None:
        self._begun, self._stepped = words["begun"], words["stepped"]
        self._worker = worker

    @property
    def begun(self) -> int:
        """Number of elements whose update has begun."""
        return int(self._begun[self._worker])

    @begun.setter
    def begun(self, num_elements: int) -> None:
        self._begun[self._worker] = num_elements

    @property
    def stepped(self) -> int:
        """Number of elements whose update is complete."""
        return int(self._stepped[self._worker])

    @stepped.setter
    def stepped(self, num_elements: int) -> None:
        self._stepped[self._worker] = num_elements
