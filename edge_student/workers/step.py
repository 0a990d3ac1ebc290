"""The optimiser step of one worker: its slice of the parameters, from the gradients of all shards.

The step updates parameters and the optimizer's states in place, chunk by chunk. Before a chunk is changed, its values are kept in
`undo`, so that a worker that was killed in the middle can be replaced by one that repeats the chunk.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from edge_student.training.recipe import Recipe
from edge_student.workers.board import StepProgress
from edge_student.workers.shard import rows_of
from edge_student.workers.shared_model import SharedModel

CHUNK = 1 << 16
"""Number of elements that are updated together. Their values and gradients stay in a level-2 cache."""

_LINE = 16  # float32 values in a cache line
_CLIP_EPS = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


class ShardStep:
    """The optimizer's step (Eq. 2) on the slice of one worker; the first worker also combines the buffers.

    Results depend on the number of shards, not on the worker's process.
    """

    def __init__(self, model: SharedModel, worker: int, progress: StepProgress, recipe: Recipe) -> None:
        arrays = model.arrays
        self._model = model
        self._combines_buffers = worker == 0
        self._recipe = recipe
        self._parameters = torch.from_numpy(arrays["parameters"])
        self._states = {name: torch.from_numpy(arrays[name]) for name in recipe.rule.state_names}
        self._gradients = torch.from_numpy(arrays["gradients"])
        self._has_gradient = arrays["has_gradient"]
        self._undo = torch.from_numpy(arrays["undo"][worker])
        self._places = model.parameters
        self._progress = progress
        num_shards, size = self._gradients.shape
        self._start, self._stop = (_boundary(n, num_shards, size) for n in (worker, worker + 1))
        self._sum = torch.empty(CHUNK)

    @torch.no_grad()
    def run(self, cycle: int) -> None:
        """Step the slice at the end of a cycle. Call `reset` before the gradients of the next one."""
        scale = self._clip_factor()
        for start, stop in self._chunks(self._start, self._stop):
            if stop - self._start <= self._progress.stepped:
                continue
            if self._progress.begun > self._progress.stepped:
                self._restore(start, stop)
            else:
                self._keep(start, stop)
            self._update(start, stop, cycle, scale)
            self._progress.stepped = stop - self._start
        if self._combines_buffers:
            combine_buffers(self._model, [rows.total(self._recipe) for rows in rows_of(len(self._gradients))])

    def reset(self) -> None:
        """Prepare for the step of the next cycle."""
        self._progress.begun = 0
        self._progress.stepped = 0

    def _clip_factor(self) -> float | None:
        """Return the factor that limits the norm of the gradients; None if it is not limited.

        Every worker computes the same factor, from all gradients in the same order.
        """
        limit = self._recipe.clip_grad
        if limit is None:
            return None
        chunks = (self._gradient(start, stop) for start, stop in self._chunks(0, self._gradients.shape[1]))
        norm = math.sqrt(sum(float(torch.dot(gradient, gradient)) for gradient in chunks))
        factor = limit / (norm + _CLIP_EPS)
        return 1.0 if factor > 1.0 else factor  # NaN stays NaN, as in torch

    def _gradient(self, start: int, stop: int) -> torch.Tensor:
        """Return the sum over the shards, in a tensor that the next call overwrites."""
        gradient = self._sum[: stop - start]
        gradient.copy_(self._gradients[0, start:stop])
        for shard in range(1, len(self._gradients)):  # floating-point sums depend on the order, so it is fixed
            gradient.add_(self._gradients[shard, start:stop])
        return gradient

    def _update(self, start: int, stop: int, cycle: int, scale: float | None) -> None:
        gradient, recipe = self._gradient(start, stop), self._recipe
        if scale is not None:
            gradient.mul_(scale)
        states: dict[str, list[torch.Tensor | None]] = {name: [state[start:stop]] for name, state in self._states.items()}
        recipe.rule.update([self._parameters[start:stop]], [gradient], states, lr=recipe.lr_of(cycle), num_steps=cycle)

    def _changed(self, start: int, stop: int) -> list[torch.Tensor]:
        """Return what the step changes in a chunk."""
        return [self._parameters[start:stop], *(state[start:stop] for state in self._states.values())]

    def _keep(self, start: int, stop: int) -> None:
        for kept, values in zip(self._undo, self._changed(start, stop), strict=True):
            kept[: stop - start].copy_(values)
        self._progress.begun = stop - self._start

    def _restore(self, start: int, stop: int) -> None:
        for kept, values in zip(self._undo, self._changed(start, stop), strict=True):
            values.copy_(kept[: stop - start])

    def _chunks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Divide the elements first .. last - 1 into chunks, without the parameters that no shard has a gradient for."""
        used: npt.NDArray[np.bool_] = np.any(self._has_gradient, axis=0)
        runs = [(first, last)] if used.all() else self._runs(used.tolist(), first, last)
        for start, stop in runs:
            for begin in range(start, stop, CHUNK):
                yield begin, min(begin + CHUNK, stop)

    def _runs(self, used: list[bool], first: int, last: int) -> list[tuple[int, int]]:
        """Return the parts of first .. last - 1 that belong to the parameters in use."""
        places = [place for place, is_used in zip(self._places, used, strict=True) if is_used]
        parts = [(max(place.start, first), min(place.stop, last)) for place in places]
        return [(start, stop) for start, stop in parts if start < stop]


def combine_buffers(model: SharedModel, rows: list[int]) -> None:
    """Compute the buffers after a cycle from those of all shards: the mean by `rows` of each shard, in the order of shards.

    Batch normalisation's running mean and variance are float32. A buffer of another type, such as its counter, is that of the first
    shard. A value that no shard changed is kept, so that constants stay exact.
    """
    arrays = model.arrays
    before, shards = arrays["buffers"], arrays["shard_buffers"]
    total = float(sum(rows))
    mean = np.zeros_like(before)
    for values, count in zip(shards, rows, strict=True):
        mean += values * np.float32(count / total)
    np.copyto(before, mean, where=(shards != before).any(axis=0))
    arrays["other_buffers"][:] = arrays["other_shard_buffers"][0]


def _boundary(number: int, num_shards: int, size: int) -> int:
    """Return the first element of slice `number`, at the start of a cache line."""
    return size if number == num_shards else size * number // num_shards // _LINE * _LINE
