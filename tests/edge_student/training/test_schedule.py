"""Learning rates by cycle, compared with torch's schedulers."""

import math

import pytest
import torch

from edge_student.training.schedule import SCHEDULES, cosine, learning_rates, step


def test_a_constant_rate_needs_no_table() -> None:
    assert learning_rates(SCHEDULES["constant"], lr=0.1, warmup=0, cycles=5) == ()


def test_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert learning_rates(cosine, lr=0.4, warmup=0, cycles=20) == pytest.approx(expected)


def test_step_falls_after_a_half_and_three_quarters() -> None:
    rates = learning_rates(step, lr=1.0, warmup=0, cycles=8)
    assert rates == pytest.approx((1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01))


def test_warm_up_rises_to_the_full_rate_and_delays_the_schedule() -> None:
    rates = learning_rates(None, lr=1.0, warmup=4, cycles=8)
    assert rates == pytest.approx((0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1))
    assert learning_rates(step, lr=1.0, warmup=4, cycles=12)[4:] == pytest.approx((1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01))
    assert len(learning_rates(cosine, lr=1.0, warmup=20, cycles=4)) == 4  # a warm-up that is longer than the training


@pytest.mark.parametrize("factor", [math.nan, -1.0, math.inf])
def test_an_impossible_factor_is_named(factor: float) -> None:
    with pytest.raises(ValueError, match=f"--schedule returned {factor} for cycle 2 of 4, must be finite and at least 0"):
        learning_rates(lambda cycle, cycles: factor if cycle == 2 else 1.0, lr=0.1, warmup=0, cycles=4)


def test_a_schedule_that_fails_is_named() -> None:
    with pytest.raises(ValueError, match="--schedule failed for cycle 0 of 4: ZeroDivisionError"):
        learning_rates(lambda cycle, cycles: 1 / cycle, lr=0.1, warmup=0, cycles=4)
