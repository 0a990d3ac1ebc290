"""The compute worker: trains cycle by cycle, each cycle a Forward and a Backward.

A cycle is one forward over [private batch ; public batch], one backward and one SGD step (Eq. 1 and 2). The trainer is independent
of receiver, scheduler and cores: it can block only in `Schedule`, around each task and between layers.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from edge_student.training.loss import combined_loss
from edge_student.training.rollback import RollbackState, restore_generators
from edge_student.training.sgd import Sgd
from edge_student.training.yield_points import NO_YIELD_POINTS, every_layer, find_yield_points, interruptible
from edgekd.data.image_dataset import ImageDataset
from edgekd.data.tensors import to_input
from edgekd.wire.layouts import Decoded
from edgekd.wire.order import batch_ids
from scheduler.model.state import Task

_EVALUATION_BATCH = 500


class Schedule(Protocol):
    """Controls when a task may run."""

    def task(self, task: Task) -> AbstractContextManager[None]:
        """Return a context for one task; entering it may block."""

    def between_layers(self) -> None:
        """Pause or move compute if needed.

        The trainer calls it often within a task, while no parallel operation runs. May block.
        """


class BatchSource(Protocol):
    """Access to received batches, after their Comm task is done."""

    def logits(self, batch_index: int) -> Decoded:
        """Return the teacher's logits [public batch, classes], float32 or float16 as received."""

    def inputs(self, batch_index: int) -> npt.NDArray[np.uint8]:
        """Return the received public inputs, uint8 [public batch, channels, height, width]. Not called if public data is local."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyperparameters of the loss (Eq. 1), of SGD (Eq. 2) and of the batches."""

    alpha: float
    temperature: float
    lr: float
    momentum: float
    batch_size: int
    public_batch: int
    seed: int
    device: str


class Trainer:
    """Trains `student` on `private` data and on a teacher's logits of `public` data. Call `warm_up()`, then `train()`.

    `public` is None if its inputs are received with the logits. A signal handler may raise anywhere except within `defer_signals`,
    a context that encloses the optimiser step and its bookkeeping. Raises ValueError if the two data sets differ in shape.
    """

    def __init__(
        self,
        *,
        student: torch.nn.Module,
        private: ImageDataset,
        public: ImageDataset | None,
        recipe: Recipe,
        defer_signals: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if public is not None:
            check_same_shape(private.name, private.images.shape[1:], public.name, public.images.shape[1:])
        self.student = student.to(recipe.device)
        self._private = private
        self._public = public
        self._recipe = recipe
        self._optimizer = self._make_optimizer(self.student)
        # On a GPU one thread only queues the layers, so changing its cores within a pass has no use.
        self._is_on_cpu = torch.device(recipe.device).type == "cpu"
        self._yield_points = every_layer(self.student) if self._is_on_cpu else NO_YIELD_POINTS
        self._defer_signals = defer_signals
        self._rollback: RollbackState | None = None
        self.num_cycles = 0
        """Number of cycles with a completed optimiser step."""
        self.last_loss = float("nan")

    def warm_up(self, num_classes: int) -> None:
        """Run two steps on a copy, so that threads exist and kernels are chosen before the clock starts.

        On the CPU the second step also measures the yield points; without a warm-up, every layer is one.
        """
        student = deepcopy(self.student).train()
        optimizer = self._make_optimizer(student)
        teacher_logits = np.zeros((self._recipe.public_batch, num_classes), np.float32)
        public_inputs = np.zeros((self._recipe.public_batch, *self._private.images.shape[1:]), np.uint8)

        def step() -> None:
            logits, labels = self._forward(student, 0, public_inputs)
            self._differentiate(optimizer, logits, labels, teacher_logits)
            optimizer.step()

        step()
        if self._is_on_cpu:
            self._yield_points = find_yield_points(student, step)
        else:
            step()

    def train(
        self, cycles: int, schedule: Schedule, source: BatchSource, on_cycle: Callable[[int], None], *, start: int = 0
    ) -> None:
        """Run cycles `start` .. `cycles` - 1. After an exception, `num_cycles` is the number of completed cycles."""
        self.student.train()
        self.num_cycles = start
        with interruptible(self.student, self._yield_points, schedule.between_layers):
            for cycle in range(start, cycles):
                with schedule.task(Task.FORWARD):
                    logits, labels = self._forward(self.student, cycle, self._public_inputs(cycle, source))
                with ExitStack() as signals_deferred:  # step, count and record are done together or not at all
                    with schedule.task(Task.BACKWARD):
                        loss = self._differentiate(self._optimizer, logits, labels, source.logits(cycle))
                        signals_deferred.enter_context(self._defer_signals())
                        self._optimizer.step()
                        self.last_loss = loss.item()
                    self.num_cycles = cycle + 1
                    if self._rollback is not None:
                        self._rollback.save()
                on_cycle(self.num_cycles)

    def enable_snapshots(self) -> None:
        """Keep the rollback state after each cycle from now on, so that `snapshot` can be called at any moment."""
        self._rollback = RollbackState(self.student, self._recipe.device)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return copies of all state that the next cycles depend on, as of the end of cycle `num_cycles`, for `restore`.

        Parameters and momentum change only in a step and are current. A Forward changes buffers and generators, so these come from
        the rollback state.
        """
        assert self._rollback is not None, "call enable_snapshots() first"
        student = {f"student.{name}": tensor.detach().cpu().clone() for name, tensor in self.student.state_dict().items()}
        buffers = {f"student.{name}": tensor.cpu().clone() for name, tensor in self._rollback.buffers.items()}
        momentum = {f"momentum.{n}": tensor.cpu().clone() for n, tensor in self._optimizer.momentum.items()}
        random = {f"random.{name}": state.clone() for name, state in self._rollback.generators.items()}
        return student | {name: buffers[name] for name in student.keys() & buffers.keys()} | momentum | random

    def restore(self, snapshot: Mapping[str, torch.Tensor], num_cycles: int) -> None:
        """Restore a `snapshot` taken after `num_cycles` cycles.

        Raises ValueError if it is of another student; the weights are then unchanged.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {"student": {}, "momentum": {}, "random": {}}
        for name, tensor in snapshot.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"'{name}' is not part of a snapshot")
            parts[part][rest] = tensor
        expected = self.student.state_dict()
        parameters = {str(n): parameter for n, parameter in enumerate(self.student.parameters())}
        _check_tensors(parts["student"], expected, is_complete=True)
        _check_tensors(parts["momentum"], parameters, is_complete=False)
        restore_generators(parts["random"], self._recipe.device)
        self.student.load_state_dict(parts["student"])
        self._optimizer.momentum = {int(n): tensor for n, tensor in parts["momentum"].items()}
        self.num_cycles = num_cycles

    def accuracy(self, test: ImageDataset) -> float:
        """Return the fraction of `test` that the student classifies correctly."""
        self.student.eval()
        num_right = 0
        with torch.inference_mode():
            for start in range(0, len(test.labels), _EVALUATION_BATCH):
                images = to_input(test.images[start : start + _EVALUATION_BATCH]).to(self._recipe.device)
                predicted = self.student(images).argmax(dim=1).cpu().numpy()
                num_right += int((predicted == test.labels[start : start + _EVALUATION_BATCH]).sum())
        return num_right / len(test.labels)

    def _public_inputs(self, cycle: int, source: BatchSource) -> npt.NDArray[np.uint8]:
        if self._public is None:
            return source.inputs(cycle)
        return self._public.images[batch_ids(self._recipe.seed, len(self._public.images), self._recipe.public_batch, cycle)]

    def _forward(
        self, student: torch.nn.Module, cycle: int, public_inputs: npt.NDArray[np.uint8]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of [private ; public] and the private labels."""
        recipe = self._recipe
        # The protocol defines the public order by the seed. The private order must differ, so it uses the next seed.
        private_ids = batch_ids(recipe.seed + 1, len(self._private.images), recipe.batch_size, cycle)
        images = np.concatenate([self._private.images[private_ids], public_inputs])
        labels = torch.from_numpy(self._private.labels[private_ids]).to(recipe.device)
        logits = student(to_input(images).to(recipe.device))
        if logits.is_cuda:
            torch.cuda.synchronize()  # a task ends when its work is done, not when it is queued
        return logits, labels

    def _differentiate(
        self,
        optimizer: Sgd,
        logits: torch.Tensor,
        labels: torch.Tensor,
        teacher_logits: Decoded,
    ) -> torch.Tensor:
        """Compute the gradients and return the loss, a scalar. `teacher_logits` is not used after the return."""
        recipe = self._recipe
        loss = combined_loss(
            logits[: recipe.batch_size],
            labels,
            logits[recipe.batch_size :],
            torch.from_numpy(teacher_logits).to(recipe.device, torch.float32),
            alpha=recipe.alpha,
            temperature=recipe.temperature,
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _make_optimizer(self, student: torch.nn.Module) -> Sgd:
        return Sgd(student.parameters(), lr=self._recipe.lr, momentum=self._recipe.momentum)


def check_same_shape(first: str, first_shape: Sequence[int], second: str, second_shape: Sequence[int]) -> None:
    """Raise ValueError, with both names, unless the inputs of two data sets have the same shape."""
    if tuple(first_shape) != tuple(second_shape):
        raise ValueError(
            f"{first} has inputs of shape {list(first_shape)}, {second} of {list(second_shape)}: one forward runs over both, "
            "so the shapes must be equal"
        )


def _check_tensors(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, is_complete: bool) -> None:
    """Raise ValueError for the first tensor that is unexpected, of another shape or type, or (if `is_complete`) missing."""
    wrong = sorted(given.keys() - expected.keys()) or (sorted(expected.keys() - given.keys()) if is_complete else [])
    if wrong:
        raise ValueError(f"'{wrong[0]}' is {'missing' if wrong[0] in expected else 'not a tensor of this student'}")
    for name, tensor in given.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            found, needed = f"{list(tensor.shape)} {tensor.dtype}", f"{list(expected[name].shape)} {expected[name].dtype}"
            raise ValueError(f"'{name}' is {found}, must be {needed}")
