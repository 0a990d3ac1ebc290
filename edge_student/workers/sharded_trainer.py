"""Trains a student with one process for each shard of a batch. It has the interface of `Trainer`, which trains with one team."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

from edge_student.ipc.ring import Ring
from edge_student.training.accuracy import accuracy
from edge_student.training.recipe import Recipe
from edge_student.training.trainer import BatchSource, Schedule, check_tensors
from edge_student.workers.board import Board
from edge_student.workers.pool import WorkerPool
from edge_student.workers.shared_dataset import SharedDataset
from edge_student.workers.shared_model import SharedModel
from edge_student.workers.step import CHUNK
from edge_student.workers.worker import Assignment
from edgekd.data.image_dataset import ImageDataset
from scheduler.model.state import Task


class ShardedTrainer:
    """Trains `student` with `num_shards` workers, which read the batches of `ring`. Use as a context manager.

    Raises ModelNotDivisible for a model that several processes cannot train.
    """

    def __init__(
        self,
        *,
        student: torch.nn.Module,
        private: SharedDataset,
        public: SharedDataset | None,
        ring: Ring,
        recipe: Recipe,
        num_shards: int,
        keeps_memory: bool = True,
        defer_signals: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.student = student
        self._ring = ring
        self._recipe = recipe
        self._board = Board(num_shards)
        self._model = SharedModel(student, num_shards, CHUNK)
        self._defer_signals = defer_signals

        def assign(number: int) -> Assignment:
            return Assignment(
                number=number,
                board=self._board,
                model=self._model,
                private=private,
                public=public,
                ring=ring,
                recipe=recipe,
                keeps_memory=keeps_memory,
            )

        self._pool = WorkerPool(self._board, assign)
        self.num_cycles = 0
        """Number of cycles with a completed optimiser step."""
        self.last_loss = float("nan")

    def __enter__(self) -> "ShardedTrainer":
        self._pool.__enter__()
        self._pool.await_ready()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers."""
        return self._pool.pids

    @property
    def replaced(self) -> list[str]:
        """A text for every worker that was replaced."""
        return self._pool.replaced

    def train(
        self, cycles: int, schedule: Schedule, source: BatchSource, on_cycle: Callable[[int], None], *, start: int = 0
    ) -> None:
        """Run cycles `start` .. `cycles` - 1. After an exception, `num_cycles` is the number of completed cycles.

        The workers read the ring of the constructor, so `source` must be that ring.
        """
        assert source is self._ring, "the workers have mapped another ring"
        self._board.restart(start)
        self.num_cycles = start
        for cycle in range(start, cycles):
            with schedule.task(Task.FORWARD):
                self._compute(2 * cycle + 1)
            with ExitStack() as signals_deferred:  # step, count and record are done together or not at all
                with schedule.task(Task.BACKWARD):
                    signals_deferred.enter_context(self._defer_signals())
                    self._compute(2 * cycle + 2)
                    self.last_loss = self._board.loss
                self.num_cycles = cycle + 1
            on_cycle(self.num_cycles)

    def enable_snapshots(self) -> None:
        """Do nothing: parameters and buffers change at the end of a cycle only."""

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return copies of all state that the next cycles depend on, as of the end of cycle `num_cycles`, for `restore`.

        Every cycle and shard has its own random stream, so random numbers are no part of the state.
        """
        student = {f"student.{name}": tensor.detach().clone() for name, tensor in self.student.state_dict().items()}
        momentum = {f"momentum.{n}": tensor.clone() for n, tensor in enumerate(self._model.momentum_views())}
        return student | momentum

    def restore(self, snapshot: Mapping[str, torch.Tensor], num_cycles: int) -> None:
        """Restore a `snapshot` taken after `num_cycles` cycles.

        Raises ValueError if it is of another student; the weights are then unchanged.
        """
        student = {name.removeprefix("student."): tensor for name, tensor in snapshot.items() if name.startswith("student.")}
        momentum = {name.removeprefix("momentum."): tensor for name, tensor in snapshot.items() if name.startswith("momentum.")}
        views = {str(n): view for n, view in enumerate(self._model.momentum_views())}
        check_tensors(student, self.student.state_dict(), is_complete=True)
        check_tensors(momentum, views, is_complete=True)
        self.student.load_state_dict(student)
        for n, view in views.items():
            view.copy_(momentum[n])
        self.num_cycles = num_cycles

    def accuracy(self, test: ImageDataset) -> float:
        """Return the fraction of `test` that the student classifies correctly."""
        return accuracy(self.student, test, self._recipe.device)

    def _compute(self, num_phases: int) -> None:
        self._board.grant(num_phases)
        self._pool.await_phases(num_phases)
