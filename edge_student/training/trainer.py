"""What the rest of a run expects of a trainer, whether it trains with one team of threads or with one process for each shard."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from edge_student.training.recipe import Recipe
from edgekd.data.dataset import Dataset
from edgekd.wire.inputs import Inputs
from edgekd.wire.layouts import Decoded
from scheduler.model.state import Task


class Schedule(Protocol):
    """Controls when a task may run."""

    def task(self, task: Task) -> AbstractContextManager[None]:
        """Return a context for one task; entering it may block."""

    def has_batch(self, index: int) -> bool:
        """Return whether the Comm of this cycle is done. Never blocks."""

    def is_starved(self, index: int) -> bool:
        """Return whether the Comm of this cycle is not done. Never blocks. Raises its failure."""

    def complete_cycle(self) -> None:
        """Report the tasks of the present cycle as done, after an exception at which compute completed them. Never blocks."""


class BatchSource(Protocol):
    """Access to received batches, after their Comm task is done."""

    def logits(self, batch_index: int) -> Decoded:
        """Return the teacher's logits [public batch, classes], float32 or float16 as received."""

    def inputs(self, batch_index: int) -> Inputs:
        """Return the received public inputs, [public batch, ...], uint8 or float32. Not called if public data is local."""


class Trainer(Protocol):
    """Trains a student cycle by cycle."""

    student: torch.nn.Module
    recipe: Recipe
    num_shards: int
    """Number of shards of a batch, 1 for one team of threads."""
    num_cycles: int
    """Number of cycles with a completed optimiser step."""
    num_private_steps: int
    """Number of steps on private data alone, see `Recipe.trains_while_starved`."""
    last_loss: float

    def train(
        self, cycles: int, schedule: Schedule, source: BatchSource, on_cycle: Callable[[int], None], *, start: int = 0
    ) -> None:
        """Run cycles `start` .. `cycles` - 1. After an exception, `num_cycles` is the number of completed cycles."""

    def enable_snapshots(self) -> None:
        """Keep what `snapshot` needs after each cycle from now on, so that it can be called at any moment."""

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Return copies of all state that the next cycles depend on, as of the end of cycle `num_cycles`, for `restore`."""

    def restore(self, snapshot: Mapping[str, torch.Tensor], num_cycles: int) -> None:
        """Restore a `snapshot` taken after `num_cycles` cycles.

        Raises ValueError if it is of another student; the weights are then unchanged.
        """

    def accuracy(self, test: Dataset) -> float:
        """Return the fraction of `test` that the student classifies correctly."""


def split_snapshot(snapshot: Mapping[str, torch.Tensor], state_names: Sequence[str]) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of the parts student, random, and each state of the optimizer, by name.

    Raises ValueError for a tensor of another part.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in ("student", "random", *state_names)}
    for name, tensor in snapshot.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise ValueError(f"'{name}' is not part of a snapshot")
        parts[part][rest] = tensor
    return parts


def check_tensors(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, is_complete: bool) -> None:
    """Raise ValueError for the first tensor that is unexpected, of another shape or type, or (if `is_complete`) missing."""
    wrong = sorted(given.keys() - expected.keys()) or (sorted(expected.keys() - given.keys()) if is_complete else [])
    if wrong:
        raise ValueError(f"'{wrong[0]}' is {'missing' if wrong[0] in expected else 'not a tensor of this student'}")
    for name, tensor in given.items():
        if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
            found, needed = f"{list(tensor.shape)} {tensor.dtype}", f"{list(expected[name].shape)} {expected[name].dtype}"
            raise ValueError(f"'{name}' is {found}, must be {needed}")
