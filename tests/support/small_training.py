"""A tiny student with its data and recipe, for tests of the training loop."""

from contextlib import nullcontext

import numpy as np
import torch

from edge_student.training.recipe import Recipe
from edgekd.data.datasets import load_dataset
from edgekd.models.build import build_model
from scheduler.model.state import Task

RECIPE = Recipe(alpha=0.3, temperature=2.0, lr=0.1, batch_size=6, public_batch=10, seed=4, device="cpu")
PRIVATE, PUBLIC, TEST = (load_dataset(f"digits:{split}") for split in ("private", "public", "test"))


class Logits:
    """A source of logits that are a function of the batch."""

    def logits(self, batch_index: int) -> np.ndarray:
        return np.random.default_rng(batch_index).normal(size=(10, 10)).astype(np.float32)


class Boundaries:
    """A schedule that never waits, and records the tasks."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def task(self, task: Task) -> nullcontext:
        self.tasks.append(task)
        return nullcontext()

    def has_batch(self, index: int) -> bool:
        return True

    def is_starved(self, index: int) -> bool:
        return False

    def complete_cycle(self) -> None:
        self.tasks.append(Task.BACKWARD)


def student() -> torch.nn.Module:
    return build_model("cnn:width=2", num_classes=10, input_shape=(1, 8, 8), seed=4)
