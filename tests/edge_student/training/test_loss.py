"""The loss (Eq. 1) compared with independently computed values and gradients."""

import pytest
import torch
from torch.nn.functional import cross_entropy, softmax

from edge_student.training.loss import combined_loss, distillation_loss

GENERATOR = torch.Generator().manual_seed(7)
PRIVATE = torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
PUBLIC = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
TEACHER = torch.randn(5, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_gradients_are_those_of_equation_1(alpha: float, temperature: float) -> None:
    private, public = PRIVATE.clone().requires_grad_(), PUBLIC.clone().requires_grad_()
    loss = combined_loss(private, LABELS, public, TEACHER, alpha=alpha, temperature=temperature)
    loss.backward()
    one_hot = torch.eye(4, dtype=torch.float64)[LABELS]
    expected_private = alpha * (softmax(PRIVATE, 1) - one_hot) / len(PRIVATE)
    # d/dz T^2 KL(p || softmax(z/T)) = T (softmax(z/T) - p), averaged over the batch
    difference = softmax(PUBLIC / temperature, 1) - softmax(TEACHER / temperature, 1)
    expected_public = (1 - alpha) * temperature * difference / len(PUBLIC)
    torch.testing.assert_close(private.grad, expected_private)
    torch.testing.assert_close(public.grad, expected_public)


def test_the_value_is_the_weighted_sum() -> None:
    p = softmax(TEACHER / 2, 1)
    kl = (p * (p.log() - softmax(PUBLIC / 2, 1).log())).sum() / len(PUBLIC)
    expected = 0.25 * cross_entropy(PRIVATE, LABELS) + 0.75 * 4 * kl
    torch.testing.assert_close(combined_loss(PRIVATE, LABELS, PUBLIC, TEACHER, alpha=0.25, temperature=2.0), expected)


def test_a_student_that_agrees_with_its_teacher_has_no_distillation_loss() -> None:
    assert distillation_loss(TEACHER, TEACHER + 3.0, 4.0).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("alpha", "temperature", "named"), [(-0.1, 1.0, "alpha"), (1.1, 1.0, "alpha"), (0.5, 0.0, "temperature")])
def test_senseless_weights_are_refused(alpha: float, temperature: float, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        combined_loss(PRIVATE, LABELS, PUBLIC, TEACHER, alpha=alpha, temperature=temperature)
