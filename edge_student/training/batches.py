"""The rows of each cycle's batch: which samples it has, and their inputs and labels."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_student.training.augment import augmented
from edge_student.training.recipe import Recipe
from edgekd.data.dataset import Dataset
from edgekd.data.tensors import resized
from edgekd.wire.inputs import Inputs
from edgekd.wire.order import batch_ids

ALL_ROWS = slice(None)
_STARVED = 1 << 16  # the part of a step without logits, for its random numbers; other parts are shards


class InputSource(Protocol):
    """Access to the public inputs that were received with their logits."""

    def inputs(self, batch_index: int) -> Inputs:
        """Return the received public inputs, [public batch, ...], uint8 or float32. Not called if public data is local."""


class Batches:
    """The batches [private ; public] of a training. `public` is None if its inputs are received with the logits.

    Raises ValueError if the two data sets differ in shape.
    """

    def __init__(self, private: Dataset, public: Dataset | None, recipe: Recipe) -> None:
        if public is not None:
            check_same_kind(private.name, private.inputs, public.name, public.inputs)
        self.private = private
        self.public = public
        self._recipe = recipe

    def received(self, cycle: int, source: InputSource) -> Inputs | None:
        """Return the public inputs of a batch from `source`, or None if they are local."""
        return source.inputs(cycle) if self.public is None else None

    def rows(self, cycle: int, rows: slice, received: Inputs | None) -> tuple[Inputs, npt.NDArray[np.int64]]:
        """Return the samples [private ; public] of these rows of both parts of a batch, and the labels of the private ones.

        `received` has the public inputs of the whole batch, [public batch, ...], if inputs are received. They are resized here.
        """
        recipe = self._recipe
        # The protocol defines the public order by the seed. The private order must differ, so it uses the next seed.
        ids = batch_ids(recipe.seed + 1, len(self.private.inputs), recipe.batch_size, cycle)[rows]
        if self.public is None:
            assert received is not None
            public = resized(received[rows], recipe.preprocessing)
        else:
            public = self.public.inputs[batch_ids(recipe.seed, len(self.public.inputs), recipe.public_batch, cycle)[rows]]
        private = self.private.inputs[ids]
        if recipe.augment is not None:
            private = augmented(recipe.augment, private, seed=recipe.seed, cycle=cycle, part=rows.start or 0)
        return np.concatenate([private, public]), self.private.labels[ids]

    def starved(self, number: int) -> tuple[Inputs, npt.NDArray[np.int64]]:
        """Return the private samples [B, ...] and labels [B] of step `number` without logits, in an order of their own."""
        recipe = self._recipe
        ids = batch_ids(recipe.seed + 2, len(self.private.inputs), recipe.batch_size, number)
        samples = self.private.inputs[ids]
        if recipe.augment is not None:
            samples = augmented(recipe.augment, samples, seed=recipe.seed, cycle=number, part=_STARVED)
        return samples, self.private.labels[ids]


class HasShape(Protocol):
    """An array, or samples on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Samples, and the shape of one."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""


def check_same_kind(first: str, one: HasShape, second: str, other: HasShape) -> None:
    """Raise ValueError, with both names, unless the samples of two data sets have the same shape and type."""
    check_same_shape(first, (*one.shape[1:], str(one.dtype)), second, (*other.shape[1:], str(other.dtype)))


def check_same_shape(first: str, first_shape: Sequence[int | str], second: str, second_shape: Sequence[int | str]) -> None:
    """Raise ValueError, with both names, unless the inputs of two data sets have the same shape and type."""
    if tuple(first_shape) != tuple(second_shape):
        one, other = ("x".join(map(str, shape)) for shape in (first_shape, second_shape))
        raise ValueError(
            f"{first} has inputs of {one}, {second} of {other}: one forward runs over both, so the shapes must be equal; name the "
            "same size for both, with size= or --resize"
        )
