"""A data set in shared memory, so that all workers read one copy."""

from dataclasses import replace

import numpy as np

from edge_student.workers.shared_arrays import SharedArrays
from edgekd.data.dataset import Dataset
from edgekd.data.rows import FileRows


class SharedDataset:
    """Samples and labels of `dataset` in shared memory; samples on disk stay there, because every process can read them.

    A child process that the object is passed to maps the same memory.
    """

    def __init__(self, dataset: Dataset) -> None:
        inputs, labels = dataset.inputs, dataset.labels
        layout = {"labels": (labels.dtype.str, labels.shape)}
        if not isinstance(inputs, FileRows):
            layout["inputs"] = (inputs.dtype.str, inputs.shape)
        self._arrays = SharedArrays(layout)
        self._arrays["labels"][:] = labels
        if not isinstance(inputs, FileRows):
            self._arrays["inputs"][:] = inputs
            inputs = np.empty((0, *inputs.shape[1:]), inputs.dtype)
        self._facts = replace(dataset, inputs=inputs, labels=labels[:0], files=(), root=None)

    @property
    def dataset(self) -> Dataset:
        """The data set, with views of the shared memory."""
        inputs = self._facts.inputs
        return replace(
            self._facts, inputs=inputs if isinstance(inputs, FileRows) else self._arrays["inputs"], labels=self._arrays["labels"]
        )

    def close(self) -> None:
        """Close the descriptor."""
        self._arrays.close()
