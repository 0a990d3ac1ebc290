"""The hyperparameters of a training."""

from dataclasses import dataclass, field

from edge_student.training.augment import Augment
from edge_student.training.loss import OwnLoss
from edge_student.training.optimizers import OptimizerRule
from edgekd.data.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyperparameters of the loss (Eq. 1), of the optimizer (Eq. 2) and of the batches, and the student's preprocessing.

    `lrs` has a rate for each cycle; empty for the constant rate `lr`. `clip_grad` limits the norm of all gradients, `frozen` has
    patterns of parameters that are not trained. `loss` replaces Eq. 1 and its alpha and temperature. With `trains_while_starved`,
    steps on L_p alone fill the time without logits. Private and test data are resized before the training (`load_training_data`),
    public inputs from the wire in each step.
    """

    alpha: float
    temperature: float
    lr: float
    lrs: tuple[float, ...] = ()
    rule: OptimizerRule = field(default_factory=OptimizerRule)
    clip_grad: float | None = None
    augment: Augment | None = None
    loss: OwnLoss | None = None
    frozen: tuple[str, ...] = ()
    trains_while_starved: bool = False
    batch_size: int
    public_batch: int
    seed: int
    device: str
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def lr_of(self, cycle: int) -> float:
        """Return the learning rate of a cycle."""
        return self.lrs[cycle] if self.lrs else self.lr
