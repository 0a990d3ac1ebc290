"""Learning rates by cycle: constant, cosine or step, with a linear warm-up, or a function of the user."""

import math
from collections.abc import Callable

from edge_student.training.own_code import OwnCodeError

LearningRateSchedule = Callable[[int, int], float]
"""A function of (cycle, cycles) that returns the factor of the learning rate in that cycle."""

_STEP_FACTOR = 0.1
_STEPS_AT = (0.5, 0.75)


def cosine(cycle: int, cycles: int) -> float:
    """Fall from 1 towards 0 along half a cosine (Loshchilov and Hutter, "SGDR", 2017, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * cycle / cycles))


def step(cycle: int, cycles: int) -> float:
    """Fall to a tenth after half of the cycles and after three quarters (He et al., "Deep Residual Learning", section 4.2)."""
    return float(_STEP_FACTOR ** sum(cycle >= share * cycles for share in _STEPS_AT))


SCHEDULES: dict[str, LearningRateSchedule | None] = {"constant": None, "cosine": cosine, "step": step}


def learning_rates(schedule: LearningRateSchedule | None, *, lr: float, warmup: int, cycles: int) -> tuple[float, ...]:
    """Return the learning rate of each cycle; empty for a constant rate without warm-up.

    In the first `warmup` cycles the rate rises linearly to the scheduled one. The schedule counts from the end of the warm-up.
    Raises OwnCodeError if a schedule of the user fails, or returns a factor that is not finite and at least 0.
    """
    if schedule is None and not warmup:
        return ()
    rates = []
    for cycle in range(cycles):
        rising = min(1.0, (cycle + 1) / (warmup + 1))
        factor = 1.0 if schedule is None else _factor(schedule, max(0, cycle - warmup), max(1, cycles - warmup))
        rates.append(lr * rising * factor)
    return tuple(rates)


def _factor(schedule: LearningRateSchedule, cycle: int, cycles: int) -> float:
    try:
        factor = float(schedule(cycle, cycles))
    except Exception as error:  # the user's code may raise anything
        raise OwnCodeError(f"--schedule failed for cycle {cycle} of {cycles}: {type(error).__name__}: {error}") from error
    if not 0 <= factor < math.inf:
        raise OwnCodeError(f"--schedule returned {factor} for cycle {cycle} of {cycles}, must be finite and at least 0")
    return factor
