"""Trains with one team of threads, cycle by cycle, each cycle a Forward and a Backward.

A cycle is one forward over [private batch ; public batch], one backward and one step of the optimizer (Eq. 1 and 2). The trainer is
independent of receiver, scheduler and cores: it can block only in `Schedule`, around each task.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from copy import deepcopy

import numpy as np
import torch

from edge_student.training.batches import ALL_ROWS, Batches
from edge_student.training.frozen import set_training
from edge_student.training.loss import combined_loss, own_loss, prediction_loss
from edge_student.training.optimizers import Optimizer
from edge_student.training.recipe import Recipe
from edge_student.training.rollback import RollbackState, restore_generators, seed_generators
from edge_student.training.trainer import BatchSource, Schedule, check_tensors, split_snapshot
from edgekd.data.dataset import Dataset
from edgekd.data.tensors import normalized
from edgekd.models.accuracy import accuracy
from edgekd.wire.inputs import Inputs
from edgekd.wire.layouts import Decoded
from scheduler.model.state import Task


class TeamTrainer:
    """Trains `student` on `private` data and on a teacher's logits of `public` data. Call `warm_up()`, then `train()`.

    `public` is None if its inputs are received with the logits. A signal handler may raise anywhere except within `defer_signals`,
    a context that encloses the optimiser step and its bookkeeping. Raises ValueError if the two data sets differ in shape.
    """

    def __init__(
        self,
        *,
        student: torch.nn.Module,
        private: Dataset,
        public: Dataset | None,
        recipe: Recipe,
        defer_signals: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.student = student.to(recipe.device)
        self._batches = Batches(private, public, recipe)
        self.recipe = recipe
        self._optimizer = self._make_optimizer(self.student)
        self._defer_signals = defer_signals
        self._rollback: RollbackState | None = None
        self.num_shards = 1
        self.num_cycles = 0
        """Number of cycles with a completed optimiser step."""
        self.num_private_steps = 0
        self.last_loss = float("nan")

    def warm_up(self, num_classes: int) -> None:
        """Run two steps on a copy, so that threads exist and kernels are chosen before the clock starts."""
        student = set_training(deepcopy(self.student), self.recipe.frozen)
        optimizer = self._make_optimizer(student)
        teacher_logits = np.zeros((self.recipe.public_batch, num_classes), np.float32)
        private = self._batches.private.inputs
        public_inputs = np.zeros((self.recipe.public_batch, *private.shape[1:]), private.dtype)
        for _ in range(2):
            logits, labels = self._forward(student, 0, public_inputs)
            self._differentiate(optimizer, logits, labels, teacher_logits)
            optimizer.step(lr=self.recipe.lr, num_steps=0)

    def train(
        self, cycles: int, schedule: Schedule, source: BatchSource, on_cycle: Callable[[int], None], *, start: int = 0
    ) -> None:
        """Run cycles `start` .. `cycles` - 1. After an exception, `num_cycles` is the number of completed cycles."""
        set_training(self.student, self.recipe.frozen)
        self.num_cycles = start
        for cycle in range(start, cycles):
            if self.recipe.trains_while_starved:
                self._train_while_starved(cycle, schedule)
            with schedule.task(Task.FORWARD):
                logits, labels = self._forward(self.student, cycle, self._batches.received(cycle, source))
            with ExitStack() as signals_deferred:  # step, count and record are done together or not at all
                with schedule.task(Task.BACKWARD):
                    loss = self._differentiate(self._optimizer, logits, labels, source.logits(cycle))
                    signals_deferred.enter_context(self._defer_signals())
                    self._optimizer.step(lr=self.recipe.lr_of(cycle), num_steps=cycle + self.num_private_steps)
                    self.last_loss = loss.item()
                self.num_cycles = cycle + 1
                if self._rollback is not None:
                    self._rollback.save()
            on_cycle(self.num_cycles)

    def _train_while_starved(self, cycle: int, schedule: Schedule) -> None:
        """Take steps on L_p alone until the logits of `cycle` are there, on the cores that compute had last.

        For the scheduler, training waits: these steps are no tasks, and comm keeps its cores.
        """
        recipe = self.recipe
        while schedule.is_starved(cycle):
            samples, labels = self._batches.starved(self.num_private_steps)
            seed_generators(self.recipe.device, self.recipe.seed, self.num_private_steps, 1)
            logits = self.student(normalized(samples, recipe.preprocessing).to(recipe.device))
            self._optimizer.zero_grad()
            prediction_loss(logits, torch.from_numpy(labels).to(recipe.device)).backward()  # type: ignore[no-untyped-call]
            if recipe.clip_grad is not None:
                self._optimizer.clip(recipe.clip_grad)
            with self._defer_signals():
                self._optimizer.step(lr=recipe.lr_of(cycle), num_steps=cycle + self.num_private_steps)
                self.num_private_steps += 1
                if self._rollback is not None:
                    self._rollback.save()

    def enable_snapshots(self) -> None:
        """Keep the rollback state after each cycle from now on, so that `snapshot` can be called at any moment."""
        self._rollback = RollbackState(self.student, self.recipe.device)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return copies of all state that the next cycles depend on, as of the end of cycle `num_cycles`, for `restore`.

        Parameters and the optimizer's state change only in a step and are current. A Forward changes buffers and generators, so
        these come from the rollback state.
        """
        assert self._rollback is not None, "call enable_snapshots() first"
        student = {f"student.{name}": tensor.detach().cpu().clone() for name, tensor in self.student.state_dict().items()}
        buffers = {f"student.{name}": tensor.cpu().clone() for name, tensor in self._rollback.buffers.items()}
        optimizer = {
            f"{name}.{n}": tensor.cpu().clone() for name, states in self._optimizer.state.items() for n, tensor in states.items()
        }
        random = {f"random.{name}": state.clone() for name, state in self._rollback.generators.items()}
        return student | {name: buffers[name] for name in student.keys() & buffers.keys()} | optimizer | random

    def restore(self, snapshot: Mapping[str, torch.Tensor], num_cycles: int) -> None:
        """Restore a `snapshot` taken after `num_cycles` cycles.

        Raises ValueError if it is of another student; the weights are then unchanged.
        """
        names = self.recipe.rule.state_names
        parts = split_snapshot(snapshot, names)
        expected = self.student.state_dict()
        parameters = {str(n): parameter for n, parameter in enumerate(self.student.parameters())}
        check_tensors(parts["student"], expected, is_complete=True)
        for name in names:
            check_tensors(parts[name], parameters, is_complete=False)
        restore_generators(parts["random"], self.recipe.device)
        self.student.load_state_dict(parts["student"])
        self._optimizer.state = {name: {int(n): tensor for n, tensor in parts[name].items()} for name in names}
        self.num_cycles = num_cycles

    def accuracy(self, test: Dataset) -> float:
        """Return the fraction of `test` that the student classifies correctly."""
        return accuracy(self.student, test, self.recipe.device, self.recipe.preprocessing)

    def _forward(self, student: torch.nn.Module, cycle: int, received: Inputs | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of [private ; public], float32 [B, classes], and the private labels, int64.

        Every cycle has its own random stream, so that dropout depends neither on the program before the training nor on a resume.
        """
        inputs, labels = self._batches.rows(cycle, ALL_ROWS, received)
        seed_generators(self.recipe.device, self.recipe.seed, cycle, 0)
        logits = student(normalized(inputs, self.recipe.preprocessing).to(self.recipe.device))
        if logits.is_cuda:
            torch.cuda.synchronize()  # a task ends when its work is done, not when it is queued
        return logits, torch.from_numpy(labels).to(self.recipe.device)

    def _differentiate(
        self,
        optimizer: Optimizer,
        logits: torch.Tensor,
        labels: torch.Tensor,
        teacher_logits: Decoded,
    ) -> torch.Tensor:
        """Compute the gradients and return the loss, a scalar. `teacher_logits` is not used after the return."""
        recipe = self.recipe
        private, public = logits[: recipe.batch_size], logits[recipe.batch_size :]
        teacher = torch.from_numpy(teacher_logits).to(recipe.device, torch.float32)
        if recipe.loss is not None:
            loss = own_loss(recipe.loss, private, labels, public, teacher)
        else:
            loss = combined_loss(private, labels, public, teacher, alpha=recipe.alpha, temperature=recipe.temperature)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip_grad is not None:
            optimizer.clip(recipe.clip_grad)
        return loss.detach()

    def _make_optimizer(self, student: torch.nn.Module) -> Optimizer:
        return Optimizer(student.parameters(), self.recipe.rule)
