"""The work of one compute worker: Forward and Backward of its rows of every batch.

Shard s of S has the rows s, s + S, s + 2 S, ... of the private and of the public part of a batch. The loss of a shard is weighted
by its rows, so that the losses and gradients of all shards add up to those of the whole batch (Eq. 1).
"""

from dataclasses import dataclass

import numpy as np
import torch

from edge_student.training.batches import Batches
from edge_student.training.frozen import set_training
from edge_student.training.loss import combined_loss, own_loss
from edge_student.training.recipe import Recipe
from edge_student.workers.shared_model import SharedModel
from edgekd.data.tensors import normalized
from edgekd.wire.inputs import Inputs
from edgekd.wire.layouts import Decoded
from edgekd.wire.order import mix


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The rows of one shard: `number` of `num_shards`."""

    number: int
    num_shards: int

    def of(self, size: int) -> int:
        """Return the number of rows of this shard in a part of `size` rows."""
        return len(range(self.number, size, self.num_shards))

    def total(self, recipe: Recipe) -> int:
        """Return the number of rows of this shard in a batch."""
        return self.of(recipe.batch_size) + self.of(recipe.public_batch)

    @property
    def slice(self) -> slice:
        """The rows as a slice of the part."""
        return slice(self.number, None, self.num_shards)


def rows_of(num_shards: int) -> list[Rows]:
    """Return the rows of each shard."""
    return [Rows(number=number, num_shards=num_shards) for number in range(num_shards)]


class Shard:
    """One shard of a model's training. `forward` and `backward` may be repeated and then give the same result."""

    def __init__(self, model: SharedModel, rows: Rows, batches: Batches, recipe: Recipe) -> None:
        self._model = model
        self._rows = rows
        self._batches = batches
        self._recipe = recipe
        self._student = set_training(model.load(rows.number), recipe.frozen)
        self._parameters = list(self._student.parameters())
        self._gradients = model.gradient_views(rows.number)
        self._has_gradient = model.arrays["has_gradient"][rows.number]
        self._own_buffers, self._own_others = model.buffers_of(rows.number)
        self._logits: torch.Tensor | None = None
        self._labels: torch.Tensor | None = None

    def forward(self, cycle: int, public_inputs: Inputs | None) -> None:
        """Compute the shard's logits and keep them for `backward`.

        `public_inputs` has the whole public batch, [public batch, ...], or is None if inputs are local.
        Every cycle and shard has its own random stream, so that dropout does not depend on the number of processes that ran.
        """
        np.copyto(self._own_buffers, self._model.arrays["buffers"])
        np.copyto(self._own_others, self._model.arrays["other_buffers"])
        samples, labels = self._batches.rows(cycle, self._rows.slice, public_inputs)
        torch.default_generator.manual_seed(mix(mix(mix(self._recipe.seed) + cycle) + self._rows.number) >> 1)
        self._labels = torch.from_numpy(labels)
        inputs = normalized(samples, self._recipe.preprocessing)
        if self._model.is_channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        self._logits = self._student(inputs)

    def backward(self, teacher_logits: Decoded) -> float:
        """Write the gradients of the shard's part of the loss to shared memory, and return that part.

        `teacher_logits` has the whole batch, float32 or float16 [public batch, classes].
        """
        loss = self._loss(torch.from_numpy(np.ascontiguousarray(teacher_logits[self._rows.slice])).to(torch.float32))
        loss.backward()  # type: ignore[no-untyped-call]
        self._logits = self._labels = None
        self._write_gradients()
        return float(loss.detach())

    def _loss(self, teacher: torch.Tensor) -> torch.Tensor:
        """Return the shard's part of the loss of the batch."""
        assert self._logits is not None
        assert self._labels is not None
        recipe, rows = self._recipe, self._rows
        num_private = rows.of(recipe.batch_size)
        private, public = self._logits[:num_private], self._logits[num_private:]
        if recipe.loss is not None:
            return own_loss(recipe.loss, private, self._labels, public, teacher) / rows.num_shards
        return combined_loss(
            private,
            self._labels,
            public,
            teacher,
            alpha=recipe.alpha,
            temperature=recipe.temperature,
            private_share=num_private / recipe.batch_size,
            public_share=rows.of(recipe.public_batch) / recipe.public_batch,
        )

    @torch.no_grad()
    def _write_gradients(self) -> None:
        gradients = [parameter.grad for parameter in self._parameters]
        places = [place for place, gradient in zip(self._gradients, gradients, strict=True) if gradient is not None]
        torch._foreach_copy_(places, [gradient for gradient in gradients if gradient is not None])
        for place, gradient in zip(self._gradients, gradients, strict=True):
            if gradient is None:
                place.zero_()
        self._has_gradient[:] = [gradient is not None for gradient in gradients]
        for parameter in self._parameters:
            parameter.grad = None
