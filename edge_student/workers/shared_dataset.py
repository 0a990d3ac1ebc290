"""A data set in shared memory, so that all workers read one copy."""

from dataclasses import replace

import numpy as np

from edge_student.workers.shared_arrays import SharedArrays
from edgekd.data.image_dataset import ImageDataset


class SharedDataset:
    """The images and labels of `dataset` in shared memory. A child process that the object is passed to maps the same memory."""

    def __init__(self, dataset: ImageDataset) -> None:
        images, labels = dataset.images, dataset.labels
        self._arrays = SharedArrays({"images": (images.dtype.str, images.shape), "labels": (labels.dtype.str, labels.shape)})
        self._arrays["images"][:] = images
        self._arrays["labels"][:] = labels
        nothing = np.empty((0, *images.shape[1:]), images.dtype)
        self._facts = replace(dataset, images=nothing, labels=labels[:0], files=())

    @property
    def dataset(self) -> ImageDataset:
        """The data set, with views of the shared memory."""
        return replace(self._facts, images=self._arrays["images"], labels=self._arrays["labels"])

    def close(self) -> None:
        """Close the descriptor."""
        self._arrays.close()
