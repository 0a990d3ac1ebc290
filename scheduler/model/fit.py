"""Fit the parameters of f and g (Eq. 3 and 4) to measured times, with standard errors.

Both formulas give a rate that is linear in its coefficients:
- comp: p - q c, with a1 = 1/p and a2 = q/p;
- comm: b1 c + b2 ln c + d, with b3 = exp(d / b2).

The fit minimises errors of the logarithm of the rates. Times span orders of magnitude, and their errors are proportional to
them. A logarithm gives all times the same weight. It prefers neither long nor short times, while the error relative to the measured
time prefers short ones. It does not depend on units, and it keeps the rate positive at every sample. With it the fit needs only the
mean logarithm at each core count.

A fit whose rate is not positive at every possible core count is outside the model. The best fit inside would be on the bound, and
its parameters would describe the bound rather than the device. So the parameters count as not identified, and no values are
returned. If b2 is not distinguishable from 0, b3 is arbitrary. Then g is fitted without its logarithm, and is not identified if
that fit is worse. If another parameter is not distinguishable from 0, a note names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from scheduler.model.cost import CostModel
from scheduler.model.fit_result import NO_COMM, NO_COMP, Estimate, Fit, SideFit
from scheduler.model.samples import Sample, Samples

Floats: TypeAlias = npt.NDArray[np.float64]

ROUNDING = 1e-12
"""Least relative error assumed for a time. Without it, exact times would show b2 = 1e-16 as different from 0."""

LIKELY_F = 4.0
"""Largest F statistic (2 and many degrees of freedom) at which the gain of two more parameters counts as chance."""

MAX_ERROR = 0.25
"""Relative error of the times, as a root mean square, above which a note is added."""

MAX_SPREAD = 1e9
"""Largest ratio of the rates at two core counts. A larger one cannot come from cores, and sums of such rates lose precision."""


def fit(samples: Samples) -> Fit:
    """Fit f to the samples of comp, and g to the samples of comm. Without enough samples, a side is not identified."""
    comp = _fit_side(_COMP, samples.comp, samples.cores)
    return Fit(cores=samples.cores, comp=comp, comm=_fit_side(_COMM, samples.comm, samples.cores))


class _NotIdentified(Exception):
    """The samples do not determine the parameters; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Formula:
    """The formula of one side: its rate is `basis(c)` [K, P] @ coefficients [P]; `convert` computes the parameters from them."""

    name: str
    parameters: tuple[str, ...]
    first: int
    """The lowest c at which this side has cores; the highest is `first` + cores - 1."""
    basis: Callable[[Floats], Floats]
    convert: Callable[[Floats], tuple[list[float], Floats]]
    """coefficients [P] -> (parameters [P], their Jacobian with respect to the coefficients [P, P])."""
    rate: Callable[[Mapping[str, float], int], float]
    """The rate at c as CostModel computes it."""


def _fit_side(formula: _Formula, samples: tuple[Sample, ...], cores: int) -> SideFit:
    # Sorted, so that the result does not depend on the order of the samples, not even in its last digit.
    samples = tuple(sorted(samples, key=lambda sample: (sample.comm_cores, sample.work, sample.seconds)))
    counts = {"num_samples": len(samples), "num_core_counts": len({sample.comm_cores for sample in samples})}
    try:
        _check_number(formula, cores, counts["num_core_counts"])
        with np.errstate(all="ignore"):  # an overflow is reported by name below
            found = _estimate(formula, samples, cores)
    except _NotIdentified as reason:
        return SideFit(parameters=dict.fromkeys(formula.parameters), r2=None, note=str(reason), **counts)
    values = {name: estimate.value for name, estimate in found.items()}
    errors = [math.log(s.seconds / s.work * formula.rate(values, s.comm_cores)) for s in samples]
    note = _note(found, len(samples), math.sqrt(sum(error**2 for error in errors) / len(errors)))
    return SideFit(parameters=dict(found), r2=_r2(formula, values, samples), note=note, **counts)


def _estimate(formula: _Formula, samples: tuple[Sample, ...], cores: int) -> dict[str, Estimate]:
    """Return the parameters by name. Raises _NotIdentified."""
    c, place, num = np.unique([float(sample.comm_cores) for sample in samples], return_inverse=True, return_counts=True)
    logs = np.array([math.log(sample.work) - math.log(sample.seconds) for sample in samples])
    level = float(np.mean(logs))
    logs -= level
    means = np.bincount(place, weights=logs) / num
    if np.ptp(means) > math.log(MAX_SPREAD):
        raise _NotIdentified(f"the rates at two core counts differ by more than a factor of {MAX_SPREAD:g}; check the samples")
    basis = formula.basis(c)
    coefficients, root = _solve(basis, means, num)
    errors = logs - np.log(basis @ coefficients)[place]
    num_free = len(logs) - len(coefficients)
    if num_free:
        root *= max(math.sqrt(float(errors @ errors) / num_free), ROUNDING)

    possible = range(formula.first, formula.first + cores)
    _check_positive(possible, formula.basis(np.array(possible, dtype=np.float64)) @ coefficients)
    unit = np.exp(level)  # of the fitted rates
    parameters, jacobian = formula.convert(coefficients * unit)
    stderrs = np.linalg.norm(jacobian @ (root * unit), axis=1).tolist()
    found = {
        name: Estimate(value=float(value), stderr=stderr if num_free else None)
        for name, value, stderr in zip(formula.parameters, parameters, stderrs, strict=True)
    }
    if formula.first == 1 and _is_noise(found["b2"], 2):
        return _without_logarithm(found, logs - np.log(c)[place], float(errors @ errors) / num_free, level)
    _check_estimates(found)
    values = {name: estimate.value for name, estimate in found.items()}
    _check_positive(possible, np.array([formula.rate(values, c) for c in possible]))
    return found


def _solve(basis: Floats, means: Floats, num: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return the coefficients [P] that minimise the distance of log(basis @ coefficients) to `means` [K], with weights `num` [K].

    Also returns a root [P, P] of their covariance for errors of variance 1: covariance = root @ root.T.
    """
    weights = np.sqrt(num)
    # The rates relative to the measured rates are `directions` @ z / weights. The columns are orthonormal, so the problem is well
    # conditioned near the solution for all core counts.
    directions, triangle = np.linalg.qr(basis * (weights / np.exp(means))[:, np.newaxis])

    def residuals(z: Floats) -> Floats:
        errors: Floats = weights * np.log(directions @ z / weights)  # NaN for a negative rate: the solver rejects the step
        return errors

    def jacobian(z: Floats) -> Floats:
        slopes: Floats = directions * (weights / (directions @ z))[:, np.newaxis]
        return slopes

    start = directions.T @ weights  # linear least squares of the rates' relative errors
    if not np.all(directions @ start > 0):
        start = directions.T @ (weights / np.exp(means))  # the same rate at every core count
    solution = least_squares(residuals, start, jac=jacobian, method="trf", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    if not solution.success:
        raise _NotIdentified("the fit does not converge; check the samples")
    inverse = np.linalg.inv(triangle)
    return inverse @ solution.x, inverse @ np.linalg.inv(np.linalg.qr(solution.jac).R)


def _check_number(formula: _Formula, cores: int, num_core_counts: int) -> None:
    name, needed = formula.name, len(formula.parameters)
    if needed > cores:
        raise _NotIdentified(
            f"{name} needs {needed} distinct core counts and {cores} cores have only {cores}; give a scenario the measured 'modes'"
        )
    if num_core_counts < needed:
        raise _NotIdentified(f"{name} needs samples at {needed} distinct core counts, and these have {num_core_counts}")


def _check_positive(possible: range, rates: Floats) -> None:
    worst = int(np.argmin(rates))
    if not rates[worst] > np.max(rates) / MAX_SPREAD:
        raise _NotIdentified(
            f"a parameter is at its bound: the samples put the rate at c={possible[worst]} at 0 or below; measure more core counts"
        )


def _without_logarithm(found: Mapping[str, Estimate], logs: Floats, variance: float, level: float) -> dict[str, Estimate]:
    """Fit g with the rate b1 c alone. `logs` are the logarithms of the rates per core, minus `level`.

    Raises _NotIdentified if this fit is worse than the fit with a logarithm.
    """
    mean = float(np.mean(logs))
    squares = float(np.sum((logs - mean) ** 2))
    num_free = len(logs) - 1
    worse = (squares - variance * (num_free - 2)) / 2
    if worse > LIKELY_F * max(variance, ROUNDING**2):
        reason = "cannot be distinguished from 0, and b3 is then arbitrary"
        raise _NotIdentified(f"{_shown(found, ['b2'])} {reason}; measure more core counts, or more often")
    b1 = math.exp(mean + level)
    stderr = b1 * math.sqrt(max(squares / num_free, ROUNDING**2) / len(logs))
    return {
        "b1": Estimate(value=b1, stderr=stderr),
        "b2": Estimate(value=0.0, stderr=found["b2"].stderr),
        "b3": Estimate(value=1.0, stderr=None),
    }


def _check_estimates(estimates: Mapping[str, Estimate]) -> None:
    if "a1" in estimates and _is_noise(estimates["a1"], 1):
        raise _NotIdentified(f"{_shown(estimates, ['a1'])} cannot be distinguished from 0; measure more often")
    for name, estimate in estimates.items():
        if not (abs(estimate.value) < math.inf and math.isfinite(estimate.stderr or 0)) or (name == "b3" and not estimate.value):
            raise _NotIdentified(f"the fit gives {name} = {estimate.value:g}, which is not valid; check units and core counts")


def _is_noise(estimate: Estimate, errors: float) -> bool:
    return estimate.stderr is not None and abs(estimate.value) < errors * estimate.stderr


def _shown(estimates: Mapping[str, Estimate], names: Sequence[str]) -> str:
    return " and ".join(f"{name} = {estimates[name].value:.2g} +- {estimates[name].stderr:.2g}" for name in names)


def _note(estimates: Mapping[str, Estimate], num_samples: int, rms_error: float) -> str:
    """Return notes on parameters that the samples do not determine; empty if all are determined."""
    if "b2" in estimates and estimates["b2"].value == 0:
        error = f"{estimates['b2'].stderr:.2g}"
        return f"b2 (+- {error}) cannot be distinguished from 0 and is set to 0, so comm's rate is b1 c and b3 has no effect"
    if num_samples == len(estimates):
        return f"{num_samples} samples for {num_samples} parameters give no standard errors"
    notes = []
    if noise := [name for name, estimate in estimates.items() if _is_noise(estimate, 1)]:
        notes.append(f"{_shown(estimates, noise)} cannot be distinguished from 0")
    if rms_error > MAX_ERROR:
        notes.append(f"the times differ from the formula by {rms_error:.0%}; look for outliers")
    return "; ".join(notes)


def _r2(formula: _Formula, values: Mapping[str, float], samples: tuple[Sample, ...]) -> float | None:
    """Return R^2 of the times per unit of work, so that different works have no influence on it."""
    costs = np.array([sample.seconds / sample.work for sample in samples])
    longest = float(np.max(costs))
    times = costs / longest
    model = np.array([1 / longest / formula.rate(values, sample.comm_cores) for sample in samples])
    total = float(np.sum((times - np.mean(times)) ** 2))
    if total <= len(times) * ROUNDING**2:
        return None
    return 1 - float(np.sum((times - model) ** 2)) / total


def _convert_comp(coefficients: Floats) -> tuple[list[float], Floats]:
    p, q = coefficients
    return [1 / p, q / p], np.array([[-1 / p / p, 0.0], [-q / p / p, 1 / p]])


def _convert_comm(coefficients: Floats) -> tuple[list[float], Floats]:
    b1, b2, d = coefficients
    b3 = np.exp(d / b2)
    return [b1, b2, b3], np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -b3 * d / b2 / b2, b3 / b2]])


_COMP = _Formula(
    name="f",
    parameters=("a1", "a2"),
    first=0,
    basis=lambda c: np.stack([np.ones_like(c), -c], axis=1),
    convert=_convert_comp,
    rate=lambda values, c: CostModel(**values, **NO_COMM).comp_rate(c),
)
_COMM = _Formula(
    name="g",
    parameters=("b1", "b2", "b3"),
    first=1,
    basis=lambda c: np.stack([c, np.log(c), np.ones_like(c)], axis=1),
    convert=_convert_comm,
    rate=lambda values, c: CostModel(**values, **NO_COMP).comm_rate(c),
)
