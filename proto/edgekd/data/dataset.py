"""One data set: its samples, labels and class names, with the digest that both ends compare. Does not load torch."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.data.rows import Samples, head


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Samples with their classes, and a digest by which edge and cloud verify that they have the same samples."""

    name: str
    """The spec that the user gave, for example "digits:public"."""
    inputs: Samples
    """uint8 or float32 [N, ...], images as [N, C, H, W]; in memory, or in a file that is read by row."""
    labels: npt.NDArray[np.int64]
    """int64 [N], each in 0 .. num_classes-1; zeros if the data are unlabelled."""
    num_classes: int
    """Number of classes; 0 if the data are unlabelled."""
    class_names: tuple[str, ...] = ()
    """Name of each class, in order. Empty if the data are unlabelled or the classes have no names."""
    digest: str
    """SHA-256 over the shape, num_classes and the samples in order, lower-case hex. It excludes labels, because the public data
    needs none."""
    files: tuple[str, ...] = ()
    """The image file of each sample, in order. Empty for data sets that are not image files."""
    root: Path | None = None
    """The folder of the image files."""

    @property
    def is_labelled(self) -> bool:
        """Whether the samples have labels."""
        return self.num_classes > 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.inputs.shape[1:]

    def head(self, num_samples: int) -> "Dataset":
        """Return the first samples. The digest stays that of the whole data set."""
        return replace(
            self, inputs=head(self.inputs, num_samples), labels=self.labels[:num_samples], files=self.files[:num_samples]
        )
