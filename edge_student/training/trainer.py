"""The compute worker: one cycle after the other, each a Forward and a Backward.

It trains; it does not know who receives, who schedules, or which cores it runs on. Everything it may wait for is behind
`schedule`: around each task, and between layers. One forward over [private batch ; public batch], one backward, one SGD step
(Eq. 1 and 2).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from edge_student.training.loss import combined_loss
from edge_student.training.rollback import RollbackState, restore_random
from edge_student.training.sgd import Sgd
from edge_student.training.yield_points import NOWHERE, everywhere, interruptible, measure
from edgekd.data.image_dataset import ImageDataset
from edgekd.data.tensors import to_input
from edgekd.wire.layouts import Decoded
from edgekd.wire.order import batch_ids
from scheduler.model.state import Task

_EVALUATION_BATCH = 500
_PROBE_ROUNDS = 4
_PROBE_ELEMENTS_PER_THREAD = 1 << 16  # twice the grain of an element-wise operation in ATen, so that no thread is left out


class Schedule(Protocol):
    """Who says when a task may run."""

    def task(self, task: Task) -> AbstractContextManager[None]:
        """Surrounds one task; entering may block."""

    def between_layers(self) -> None:
        """Called inside a task, in the same thread, where no parallel operation runs; may block, and is called often."""


class BatchSource(Protocol):
    """Where what came over the wire lies once its Comm task is done."""

    def logits(self, batch_index: int) -> Decoded:
        """[public batch, classes] of float32, or of float16 where they came so."""

    def inputs(self, batch_index: int) -> npt.NDArray[np.uint8]:
        """The public inputs, uint8 [public batch, channels, height, width]; asked for only where they travel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train: the loss (Eq. 1), SGD (Eq. 2) and the batches."""

    alpha: float
    temperature: float
    lr: float
    momentum: float
    batch_size: int
    public_batch: int
    seed: int
    device: str


class Trainer:
    """Trains `student` on `private` with a teacher's logits of `public`. Use: `warm_up()`, then `train()`.

    `public` is None where its inputs travel with the logits. A signal may break it off anywhere but within `uninterrupted`.
    """

    def __init__(
        self,
        *,
        student: torch.nn.Module,
        private: ImageDataset,
        public: ImageDataset | None,
        recipe: Recipe,
        uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        if public is not None and private.images.shape[1:] != public.images.shape[1:]:
            raise ValueError(
                f"{private.name} has images of {private.images.shape[1:]}, {public.name} of {public.images.shape[1:]}; "
                "one forward runs over both, so they must be of one shape"
            )
        self.student = student.to(recipe.device)
        self._private = private
        self._public = public
        self._recipe = recipe
        self._optimizer = self._make_optimizer(self.student)
        # On a GPU the layers are only queued, by one thread, which needs no cores to be moved.
        self._is_on_cpu = torch.device(recipe.device).type == "cpu"
        self._places = everywhere(self.student) if self._is_on_cpu else NOWHERE
        self._uninterrupted = uninterrupted
        self._boundary: RollbackState | None = None
        self.num_cycles = 0
        """Cycles whose optimiser step has been taken."""
        self.last_loss = float("nan")

    def warm_up(self, num_classes: int) -> None:
        """Run two steps on a copy, so that threads exist and kernels are chosen before the clock starts.

        The second also tells between which of its layers training will ask for new cores; without it, it asks between all.
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
            self._places = measure(student, step)
        else:
            step()

    def train(
        self, cycles: int, schedule: Schedule, source: BatchSource, on_cycle: Callable[[int], None], *, start: int = 0
    ) -> None:
        """Run cycles `start` .. `cycles` - 1; `num_cycles` tells how far it came if something raises on the way."""
        self.student.train()
        self.num_cycles = start
        with interruptible(self.student, self._places, schedule.between_layers):
            for cycle in range(start, cycles):
                with schedule.task(Task.FORWARD):
                    logits, labels = self._forward(self.student, cycle, self._public_inputs(cycle, source))
                with ExitStack() as until_booked:  # the step, its count and its record: all of them, or none
                    with schedule.task(Task.BACKWARD):
                        loss = self._differentiate(self._optimizer, logits, labels, source.logits(cycle))
                        until_booked.enter_context(self._uninterrupted())
                        self._optimizer.step()
                        self.last_loss = loss.item()
                    self.num_cycles = cycle + 1
                    if self._boundary is not None:
                        self._boundary.remember()
                on_cycle(self.num_cycles)

    def keep_boundaries(self) -> None:
        """From now on `snapshot` can be asked for, at any moment."""
        self._boundary = RollbackState(self.student, self._recipe.device)

    def snapshot(self) -> dict[str, torch.Tensor]:
        """All that the next cycles depend on, as it was after `num_cycles` cycles: for `restore`, in memory of its own.

        Parameters and momentum change in a step only; buffers and random state, which a Forward changes, are those of the boundary.
        """
        assert self._boundary is not None, "keep_boundaries() comes first"
        student = {f"student.{name}": tensor.detach().cpu().clone() for name, tensor in self.student.state_dict().items()}
        buffers = {f"student.{name}": tensor.cpu().clone() for name, tensor in self._boundary.buffers.items()}
        momentum = {f"momentum.{n}": tensor.cpu().clone() for n, tensor in self._optimizer.momentum.items()}
        random = {f"random.{name}": state.clone() for name, state in self._boundary.random.items()}
        return student | {name: buffers[name] for name in student.keys() & buffers.keys()} | momentum | random

    def restore(self, snapshot: Mapping[str, torch.Tensor], num_cycles: int) -> None:
        """Be again what `snapshot` told after so many cycles. ValueError for what is not of this student, and its weights stay."""
        parts: dict[str, dict[str, torch.Tensor]] = {"student": {}, "momentum": {}, "random": {}}
        for name, tensor in snapshot.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"'{name}' belongs to no student")
            parts[part][rest] = tensor
        expected = self.student.state_dict()
        parameters = {str(n): parameter for n, parameter in enumerate(self.student.parameters())}
        _check_alike(parts["student"], expected, is_whole=True)
        _check_alike(parts["momentum"], parameters, is_whole=False)
        restore_random(parts["random"], self._recipe.device)
        self.student.load_state_dict(parts["student"])
        self._optimizer.momentum = {int(n): tensor for n, tensor in parts["momentum"].items()}
        self.num_cycles = num_cycles

    def accuracy(self, test: ImageDataset) -> float:
        """Fraction of `test` that the student gets right."""
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
        """Logits of [private ; public], and the private labels."""
        recipe = self._recipe
        # The public order is the protocol's; the private one must not be the same, so it has the next seed.
        private_ids = batch_ids(recipe.seed + 1, len(self._private.images), recipe.batch_size, cycle)
        images = np.concatenate([self._private.images[private_ids], public_inputs])
        labels = torch.from_numpy(self._private.labels[private_ids]).to(recipe.device)
        logits = student(to_input(images).to(recipe.device))
        if logits.is_cuda:
            torch.cuda.synchronize()  # a task ends when its work is done, not when it was queued
        return logits, labels

    def _differentiate(
        self,
        optimizer: Sgd,
        logits: torch.Tensor,
        labels: torch.Tensor,
        teacher_logits: Decoded,
    ) -> torch.Tensor:
        """The loss, a scalar, and its gradients. Everything read from `teacher_logits` has been used when it returns."""
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


def _check_alike(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, is_whole: bool) -> None:
    """ValueError, naming the first, for a tensor that is not expected, or not as expected; or missing, where none may be."""
    strange = sorted(given.keys() - expected.keys()) or (sorted(expected.keys() - given.keys()) if is_whole else [])
    if strange:
        raise ValueError(f"'{strange[0]}' is {'missing' if strange[0] in expected else 'not of this student'}")
    for name, tensor in given.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            there, here = f"{list(tensor.shape)} of {tensor.dtype}", f"{list(expected[name].shape)} of {expected[name].dtype}"
            raise ValueError(f"'{name}' is {there}, and this student's {here}")


class TorchTeam:
    """The OpenMP team of the calling thread, as scheduler.live.binding.ThreadTeam wants it."""

    def size(self) -> int:
        """Number of threads, master included."""
        return torch.get_num_threads()

    def resize(self, num_threads: int) -> None:
        """Change the number of threads; torch applies it to the calling thread only."""
        torch.set_num_threads(num_threads)

    def exercise(self) -> None:
        """A few parallel operations that give every thread of the team something to do; about 0.1 ms."""
        values = torch.zeros(torch.get_num_threads() * _PROBE_ELEMENTS_PER_THREAD)
        for _ in range(_PROBE_ROUNDS):
            values.add_(1.0)
