"""The hyperparameters of a training."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyperparameters of the loss (Eq. 1), of SGD (Eq. 2) and of the batches."""

    alpha: float
    temperature: float
    lr: float
    momentum: float
    batch_size: int
    public_batch: int
    seed: int
    device: str
