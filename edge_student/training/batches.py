"""The rows of each cycle's batch: which samples it has, and their inputs and labels."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_student.training.recipe import Recipe
from edgekd.data.image_dataset import ImageDataset
from edgekd.wire.order import batch_ids

ALL_ROWS = slice(None)


class InputSource(Protocol):
    """Access to the public inputs that were received with their logits."""

    def inputs(self, batch_index: int) -> npt.NDArray[np.uint8]:
        """Return the received public inputs, uint8 [public batch, channels, height, width]. Not called if public data is local."""


class Batches:
    """The batches [private ; public] of a training. `public` is None if its inputs are received with the logits.

    Raises ValueError if the two data sets differ in shape.
    """

    def __init__(self, private: ImageDataset, public: ImageDataset | None, recipe: Recipe) -> None:
        if public is not None:
            check_same_shape(private.name, private.images.shape[1:], public.name, public.images.shape[1:])
        self.private = private
        self.public = public
        self._recipe = recipe

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an input."""
        return self.private.images.shape[1:]

    def received(self, cycle: int, source: InputSource) -> npt.NDArray[np.uint8] | None:
        """Return the public inputs of a batch from `source`, or None if they are local."""
        return source.inputs(cycle) if self.public is None else None

    def rows(
        self, cycle: int, rows: slice, received: npt.NDArray[np.uint8] | None
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return the images [private ; public] of these rows of both parts of a batch, and the labels of the private ones.

        `received` has the public inputs of the whole batch, uint8 [public batch, channels, height, width], if inputs are received.
        """
        recipe = self._recipe
        # The protocol defines the public order by the seed. The private order must differ, so it uses the next seed.
        ids = batch_ids(recipe.seed + 1, len(self.private.images), recipe.batch_size, cycle)[rows]
        if self.public is None:
            assert received is not None
            public = received[rows]
        else:
            public = self.public.images[batch_ids(recipe.seed, len(self.public.images), recipe.public_batch, cycle)[rows]]
        return np.concatenate([self.private.images[ids], public]), self.private.labels[ids]


def check_same_shape(first: str, first_shape: Sequence[int], second: str, second_shape: Sequence[int]) -> None:
    """Raise ValueError, with both names, unless the inputs of two data sets have the same shape."""
    if tuple(first_shape) != tuple(second_shape):
        raise ValueError(
            f"{first} has inputs of shape {list(first_shape)}, {second} of {list(second_shape)}: one forward runs over both, "
            "so the shapes must be equal"
        )
