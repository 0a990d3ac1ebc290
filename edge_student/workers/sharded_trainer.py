"""A `Trainer` with one process for each shard of a batch."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import cloudpickle
import torch

from edge_student.ipc.ring import Ring
from edge_student.training.recipe import Recipe
from edge_student.training.trainer import BatchSource, Schedule, check_tensors, split_snapshot
from edge_student.workers.board import Board
from edge_student.workers.divisible import check_divisible, prefers_channels_last
from edge_student.workers.pool import WorkerPool
from edge_student.workers.shard import rows_of
from edge_student.workers.shared_dataset import SharedDataset
from edge_student.workers.shared_model import ModelNotDivisible, SharedModel
from edge_student.workers.step import CHUNK, ShardStep
from edge_student.workers.worker import Assignment
from edgekd.data.dataset import Dataset
from edgekd.models.accuracy import accuracy
from scheduler.model.state import Task


class ShardedTrainer:
    """Trains `student` with `num_shards` workers, which read the batches of `ring`. Use as a context manager: its end ends
    the workers, and closes the data sets. They and the model stay readable in this process.

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
        self._has_inputs = public is not None
        self._datasets = (private,) if public is None else (private, public)
        self.recipe = recipe
        shape = recipe.preprocessing.shape_of(private.dataset.input_shape)
        check_divisible(student, shape)
        num_rows = rows_of(num_shards)[0].total(recipe)
        self._model = SharedModel(
            student,
            num_shards,
            CHUNK,
            state_names=recipe.rule.state_names,
            is_channels_last=prefers_channels_last(student, shape, num_rows),
        )
        self._board = Board(num_shards)
        pickled, cores = _pickled(recipe), frozenset(os.sched_getaffinity(0))
        self._defer_signals = defer_signals

        def assign(number: int) -> Assignment:
            return Assignment(
                number=number,
                board=self._board,
                model=self._model,
                private=private,
                public=public,
                ring=ring,
                recipe=pickled,
                cores=cores,
                keeps_memory=keeps_memory,
            )

        self._pool = WorkerPool(self._board, assign)
        self.num_shards = num_shards
        self.num_cycles = 0
        """Number of cycles with a completed optimiser step."""
        self.num_private_steps = 0
        self.last_loss = float("nan")

    def __enter__(self) -> "ShardedTrainer":
        with ExitStack() as on_failure:
            on_failure.push(self)
            self._pool.start()
            self._pool.await_ready()
            on_failure.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()
        self._board.close()
        self._model.arrays.close()
        for dataset in self._datasets:
            dataset.close()

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
        """Run cycles `start` .. `cycles` - 1. After an exception, `num_cycles` is the number of completed cycles, and the
        workers have ended.

        The workers read the ring of the constructor, so `source` must be that ring.
        """
        assert source is self._ring, "the workers have mapped another ring"
        self._board.restart(start)
        self.num_cycles = start
        try:
            for cycle in range(start, cycles):
                self._train_cycle(cycle, schedule, is_last=cycle + 1 == cycles)
                on_cycle(self.num_cycles)
        except BaseException:
            with self._defer_signals():
                self._end_in_whole_cycle(schedule)
            raise

    def shard_spans(self) -> dict[str, Any]:
        """Return the times of the shards in the last cycle (see `Board.spans`). Call it from `on_cycle`."""
        return self._board.spans(self.num_cycles - 1)

    def enable_snapshots(self) -> None:
        """Do nothing: parameters and buffers change at the end of a cycle only."""

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return copies of all state that the next cycles depend on, as of the end of cycle `num_cycles`, for `restore`.

        Every cycle and shard has its own random stream, so random numbers are no part of the state.
        """
        student = {f"student.{name}": _copy(tensor) for name, tensor in self.student.state_dict().items()}
        optimizer = {
            f"{name}.{n}": _copy(tensor)
            for name in self.recipe.rule.state_names
            for n, tensor in enumerate(self._model.state_views(name))
        }
        return student | optimizer

    def restore(self, snapshot: Mapping[str, torch.Tensor], num_cycles: int) -> None:
        """Restore a `snapshot` taken after `num_cycles` cycles.

        Raises ValueError if it is of another student; the weights are then unchanged.
        """
        names = self.recipe.rule.state_names
        parts = split_snapshot(snapshot, names)
        views = {name: {str(n): view for n, view in enumerate(self._model.state_views(name))} for name in names}
        check_tensors(parts["student"], self.student.state_dict(), is_complete=True)
        for name in names:
            check_tensors(parts[name], views[name], is_complete=True)
        self.student.load_state_dict(parts["student"])
        for name in names:
            for n, view in views[name].items():
                view.copy_(parts[name][n])
        self.num_cycles = num_cycles

    def accuracy(self, test: Dataset) -> float:
        """Return the fraction of `test` that the student classifies correctly."""
        return accuracy(self.student, test, self.recipe.device, self.recipe.preprocessing)

    def _train_cycle(self, cycle: int, schedule: Schedule, *, is_last: bool) -> None:
        """Train one cycle. Phases are granted as early as possible, so that workers need not wait for this thread between them."""
        forward, backward = 2 * cycle + 1, 2 * cycle + 2
        with schedule.task(Task.FORWARD):
            self._board.grant(backward if schedule.has_batch(cycle) else forward)
            self._pool.await_phases(forward)
        with ExitStack() as signals_deferred:  # count and record are done together or not at all
            with schedule.task(Task.BACKWARD):
                goes_on = not is_last and (self._has_inputs or schedule.has_batch(cycle + 1))
                self._board.grant(backward + 1 if goes_on else backward)
                self._pool.await_phases(backward)
                signals_deferred.enter_context(self._defer_signals())
            self._count(cycle + 1)

    def _count(self, num_cycles: int) -> None:
        self.num_cycles = num_cycles
        self.last_loss = self._board.loss

    def _end_in_whole_cycle(self, schedule: Schedule) -> None:
        """End the workers, and complete the step of this cycle if one of them may have begun it."""
        self._pool.close()
        cycle = self.num_cycles
        if self._board.num_gradients <= cycle:
            return
        for worker in range(self._board.num_shards):
            # Not that of a worker which has taken its step: a Forward of the next cycle may have changed the shards' buffers since.
            if self._board.done_by(worker) < 2 * cycle + 2:
                ShardStep(self._model, worker, self._board.progress_of(worker), self.recipe).run(cycle)
        schedule.complete_cycle()
        self._count(cycle + 1)


def _pickled(recipe: Recipe) -> bytes:
    try:
        return cloudpickle.dumps(recipe)  # type: ignore[no-any-return]
    except Exception as error:  # functions of the user may hold anything
        raise ModelNotDivisible(f"a function of the recipe cannot be sent to another process ({error})") from error


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
