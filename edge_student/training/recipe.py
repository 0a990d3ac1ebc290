"""The hyperparameters of a training."""

from dataclasses import dataclass, field

from edgekd.data.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyperparameters of the loss (Eq. 1), of SGD (Eq. 2) and of the batches, and the student's preprocessing.

    Private and test data are resized before the training (`load_training_data`), public inputs from the wire in each step.
    """

    alpha: float
    temperature: float
    lr: float
    momentum: float
    batch_size: int
    public_batch: int
    seed: int
    device: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
