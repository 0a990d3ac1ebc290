"""The optimiser step of one worker: its slice of the parameters, from the gradients of all shards.

The step updates parameters and momentum in place, chunk by chunk. Before a chunk is changed, its values are kept in `undo`, so that
a worker that was killed in the middle can be replaced by one that repeats the chunk.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from edge_student.training.recipe import Recipe
from edge_student.training.sgd import descend
from edge_student.workers.board import StepProgress
from edge_student.workers.shard import rows_of
from edge_student.workers.shared_model import SharedModel

CHUNK = 1 << 16
"""Number of elements that are updated together. Their values and gradients stay in a level-2 cache."""

_LINE = 16  # float32 values in a cache line


class ShardStep:
    """SGD with momentum (Eq. 2) on the slice of one worker; the first worker also combines the buffers.

    Results depend on the number of shards, not on the worker's process.
    """

    def __init__(self, model: SharedModel, worker: int, progress: StepProgress, recipe: Recipe) -> None:
        arrays = model.arrays
        self._model = model
        self._combines_buffers = worker == 0
        self._recipe = recipe
        self._parameters = torch.from_numpy(arrays["parameters"])
        self._momentum = torch.from_numpy(arrays["momentum"])
        self._gradients = torch.from_numpy(arrays["gradients"])
        self._has_gradient = arrays["has_gradient"]
        self._undo = torch.from_numpy(arrays["undo"][worker])
        self._places = model.parameters
        self._progress = progress
        num_shards, size = self._gradients.shape
        self._start, self._stop = (_boundary(n, num_shards, size) for n in (worker, worker + 1))
        self._sum = torch.empty(CHUNK)

    @torch.no_grad()
    def run(self) -> None:
        """Step the slice. Call `reset` before the gradients of the next cycle."""
        for start, stop in self._chunks():
            if stop - self._start <= self._progress.stepped:
                continue
            if self._progress.begun > self._progress.stepped:
                self._restore(start, stop)
            else:
                self._keep(start, stop)
            self._update(start, stop)
            self._progress.stepped = stop - self._start
        if self._combines_buffers:
            combine_buffers(self._model, [rows.total(self._recipe) for rows in rows_of(len(self._gradients))])

    def reset(self) -> None:
        """Prepare for the step of the next cycle."""
        self._progress.begun = 0
        self._progress.stepped = 0

    def _update(self, start: int, stop: int) -> None:
        gradient = self._sum[: stop - start]
        gradient.copy_(self._gradients[0, start:stop])
        for shard in range(1, len(self._gradients)):  # floating-point sums depend on the order, so it is fixed
            gradient.add_(self._gradients[shard, start:stop])
        recipe = self._recipe
        parameters, momentum = self._parameters[start:stop], self._momentum[start:stop]
        descend([parameters], [gradient], [momentum], lr=recipe.lr, momentum=recipe.momentum)

    def _keep(self, start: int, stop: int) -> None:
        self._undo[0, : stop - start].copy_(self._parameters[start:stop])
        self._undo[1, : stop - start].copy_(self._momentum[start:stop])
        self._progress.begun = stop - self._start

    def _restore(self, start: int, stop: int) -> None:
        self._parameters[start:stop].copy_(self._undo[0, : stop - start])
        self._momentum[start:stop].copy_(self._undo[1, : stop - start])

    def _chunks(self) -> Iterator[tuple[int, int]]:
        """Divide the slice into chunks, without the parameters that no shard has a gradient for."""
        used: npt.NDArray[np.bool_] = np.any(self._has_gradient, axis=0)
        runs = [(self._start, self._stop)] if used.all() else self._runs(used.tolist())
        for start, stop in runs:
            for first in range(start, stop, CHUNK):
                yield first, min(first + CHUNK, stop)

    def _runs(self, used: list[bool]) -> list[tuple[int, int]]:
        """Return the parts of the slice that belong to the parameters in use."""
        places = [place for place, is_used in zip(self._places, used, strict=True) if is_used]
        parts = [(max(place.start, self._start), min(place.stop, self._stop)) for place in places]
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
