"""The distillation loss (Eq. 1), and losses of the user in its place."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from edge_student.training.own_code import OwnCodeError

OwnLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""A function of (private logits, private labels, public logits, teacher logits) that returns a scalar, a mean over the rows."""


_TOLERANCE = 1e-3


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


def own_loss(loss: OwnLoss, *parts: torch.Tensor) -> torch.Tensor:
    """Return the loss of the user's function for (private logits, labels, public logits, teacher logits); a scalar.

    Raises OwnCodeError if it fails, or returns anything but a scalar with a gradient.
    """
    try:
        value = loss(*parts)
    except Exception as error:  # the user's code may raise anything
        raise OwnCodeError(f"--loss failed: {type(error).__name__}: {error}") from error
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        found = f"a tensor of {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise OwnCodeError(f"--loss returned {found}, must be a scalar tensor that is computed from the student's logits")
    return value.reshape(())


def is_mean_over_rows(loss: OwnLoss, *, num_shards: int, num_private: int, num_public: int, num_classes: int) -> bool:
    """Return whether the mean of the losses of all shards has the gradients of the whole batch, measured with random logits."""
    random = torch.Generator().manual_seed(0)
    private, public, teacher = (
        torch.randn((rows, num_classes), generator=random) for rows in (num_private, num_public, num_public)
    )
    labels = torch.randint(num_classes, (num_private,), generator=random)
    leaves = [private.requires_grad_(), public.requires_grad_()]
    parts = (private, labels, public, teacher)
    whole = torch.autograd.grad(own_loss(loss, *parts), leaves, allow_unused=True)
    shards = [own_loss(loss, *(part[number::num_shards] for part in parts)) for number in range(num_shards)]
    total = torch.autograd.grad(torch.stack(shards).mean(), leaves, allow_unused=True)
    pairs = [(one, other) for one, other in zip(whole, total, strict=True) if one is not None and other is not None]
    return all(float((one - other).abs().max()) <= _TOLERANCE * float(one.abs().max()) for one, other in pairs)
