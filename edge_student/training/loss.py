"""The distillation loss (Eq. 1)."""

import torch
import torch.nn.functional as F


def prediction_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return L_p, the mean cross-entropy of logits [batch, classes] against labels int64 [batch]; a scalar in nats."""
    return F.cross_entropy(logits, labels)


def distillation_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return L_d = T^2 * KL(softmax(teacher/T) || softmax(student/T)), the mean over the batch; a scalar in nats.

    Both logits are [batch, classes]. The reduction `batchmean` gives the mathematical KL divergence. The factor T^2 keeps the size
    of the gradient independent of the temperature (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
    section 2).
    """
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def combined_loss(
    private_logits: torch.Tensor,
    labels: torch.Tensor,
    public_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
    private_share: float = 1.0,
    public_share: float = 1.0,
) -> torch.Tensor:
    """Return L = alpha * L_p + (1 - alpha) * L_d (Eq. 1): L_p on the private batch, L_d on the public batch; a scalar.

    Of a shard, the rows' shares of the two batches are its weights: the losses of all shards then add up to that of the batch.

    Raises ValueError unless 0 <= alpha <= 1 and temperature > 0.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}, must be in 0 .. 1")
    if not temperature > 0.0:
        raise ValueError(f"temperature is {temperature}, must be above 0")
    private = prediction_loss(private_logits, labels)
    public = distillation_loss(public_logits, teacher_logits, temperature)
    return (alpha * private_share) * private + ((1.0 - alpha) * public_share) * public
