"""The process of one compute worker. It has one thread and follows the board until it is killed or told to stop.

A worker that was killed is replaced by a new process, which reads from the board where to continue.
"""

import os
import pickle
import signal
import traceback
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch

from edge_student.host.memory import keep_freed_memory
from edge_student.ipc.parent_death import die_with_parent
from edge_student.ipc.ring import Ring
from edge_student.training.batches import Batches
from edge_student.training.own_code import OwnCodeError
from edge_student.training.recipe import Recipe
from edge_student.workers.board import Board
from edge_student.workers.server import leave_server_to_trainer
from edge_student.workers.shard import Shard, rows_of
from edge_student.workers.shared_dataset import SharedDataset
from edge_student.workers.shared_model import SharedModel
from edge_student.workers.step import ShardStep

_MOST_CHARACTERS = 10_000
"""Length of a message that a pipe takes without a reader: the trainer reads it once this process has ended."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The parts of a worker, as they are passed to its process.

    `cores` are those of the training. `recipe` is a `Recipe`, pickled with the code of functions that are defined in a notebook or
    a script. `keeps_memory`: see `keep_freed_memory`.
    """

    number: int
    board: Board
    model: SharedModel
    private: SharedDataset
    public: SharedDataset | None
    ring: Ring
    recipe: bytes
    cores: frozenset[int]
    keeps_memory: bool


def work(assignment: Assignment, errors: Connection) -> None:
    """Run one worker. An exception is sent through `errors`, as text unless the user's code caused it; the process ends then."""
    os.setsid()  # a terminal's Ctrl-C reaches only the trainer
    os.sched_setaffinity(0, assignment.cores)  # the server that forked this process may be of a training on other cores
    leave_server_to_trainer()
    die_with_parent(signal.SIGKILL)
    if assignment.keeps_memory:
        keep_freed_memory()
    torch.set_num_threads(1)
    try:
        Worker(assignment).run()
    except OwnCodeError as error:
        errors.send(OwnCodeError(str(error)[:_MOST_CHARACTERS]))
    except Exception:
        errors.send(traceback.format_exc()[-_MOST_CHARACTERS:])


class Worker:
    """Computes the granted phases in order."""

    def __init__(self, assignment: Assignment) -> None:
        recipe: Recipe = pickle.loads(assignment.recipe)
        self._number = assignment.number
        self._board = assignment.board
        self._model = assignment.model
        self._ring = assignment.ring
        self._bell = self._board.worker_bells[self._number]
        public = None if assignment.public is None else assignment.public.dataset
        self._batches = Batches(assignment.private.dataset, public, recipe)
        self._shard = Shard(self._model, rows_of(self._board.num_shards)[self._number], self._batches, recipe)
        self._step = ShardStep(self._model, self._number, self._board.progress_of(self._number), recipe)

    def run(self) -> None:
        """Compute phases for ever."""
        if not self._board.is_ready(self._number):
            self._warm_up()
            self._board.set_ready(self._number)
        while True:
            self._await_work()
            # If a killed worker had completed this Forward, its results are lost and it is repeated.
            cycle = self._board.done_by(self._number) // 2
            if self._board.num_gradients_of(self._number) <= cycle:
                with self._timed("forward", cycle):
                    self._shard.forward(cycle, self._batches.received(cycle, self._ring))
                self._board.set_done(self._number, 2 * cycle + 1)
                self._await_grant(2 * cycle + 1)
                with self._timed("backward", cycle):
                    self._board.set_loss(self._number, self._shard.backward(self._ring.logits(cycle)))
                self._step.reset()
                self._board.set_gradients(self._number, cycle + 1)
            while self._board.num_gradients <= cycle:
                self._bell.wait()
            with self._timed("step", cycle):
                self._step.run(cycle)
            self._board.set_done(self._number, 2 * cycle + 2)

    def _timed(self, part: str, cycle: int) -> AbstractContextManager[None]:
        return self._board.timed(part, self._number, cycle)

    def _warm_up(self) -> None:
        """Compute a shard twice before the run's clock starts, so that kernels are chosen and memory is there."""
        shape = self._ring.shape
        logits = np.zeros((shape.batch_size, shape.num_classes), np.float32)
        for _ in range(2):
            self._shard.forward(0, self._batches.received(0, self._ring))
            self._shard.backward(logits)

    def _await_work(self) -> None:
        """Wait until a phase that is not done is granted, and all workers have taken the step before it."""
        board = self._board
        while board.num_granted <= (done := board.done_by(self._number)) or board.num_done < done // 2 * 2:
            self._bell.wait()

    def _await_grant(self, phase: int) -> None:
        while self._board.num_granted <= phase:
            self._bell.wait()
