"""The parameters of f and g (Eq. 3 and 4) from measured times, with their standard errors; or why the times do not tell them.

Both formulas give a rate that is linear in what stands beside the core counts: (p, q) of p - q c for comp, with a1 = 1/p and
a2 = q/p, and (b1, b2, d) of b1 c + b2 ln c + d for comm, with b3 = exp(d / b2). Fitted is the logarithm of the rates. Times span
orders of magnitude and err in proportion; a logarithm weighs them alike, favours neither long nor short (the error relative to
the measured time favours short), does not care about units, and keeps the rate positive wherever there is a sample. It also
makes the mean logarithm at each core count all that the fit needs of the times.

A fit whose rate is not positive at every core count that can occur lies outside of the model. The best one inside would lie on
the bound, where the parameters say more about the bound than about the device. So it is not identified, and no numbers are given.
Where b2 cannot be told from 0, b3 may be anything: then g is fitted without its logarithm, and is not identified if that is
worse. Where another parameter cannot be told from 0, a note says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from scheduler.model.cost import CostModel
from scheduler.model.samples import Sample, Samples

Floats: TypeAlias = npt.NDArray[np.float64]

ROUNDING = 1e-12
"""The least relative error that a time is believed to have, or exact ones would prove that b2 is 1e-16 and not 0."""

LIKELY_F = 4.0
"""What two further parameters may explain of the variance, in units of what is left, and still be chance (an F of 2 and many)."""

MAX_ERROR = 0.25
"""Times that differ from the formula by more than this part of theirs, as a root mean square, call for a note."""

MAX_SPREAD = 1e9
"""Beyond this ratio of rates at two core counts, the times are not those of cores, and sums of such rates lose their digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A parameter and its standard error; None where as many samples as parameters leave no errors to judge by."""

    value: float
    stderr: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFit:
    """What the samples of one side tell. Every parameter is None if `note` says why they cannot be identified."""

    parameters: dict[str, Estimate | None]
    r2: float | None
    """1 - (squares of the times' errors) / (squares of the times around their mean); None if there is no fit, or one time only."""
    num_samples: int
    num_core_counts: int
    """Distinct core counts among the samples."""
    note: str
    """What the samples do not tell; empty if they tell everything."""

    @property
    def identified(self) -> bool:
        """Whether there are parameters."""
        return None not in self.parameters.values()

    def values(self) -> dict[str, float]:
        """The parameters by name. ValueError, with the reason, if they are not identified."""
        found = {name: estimate.value for name, estimate in self.parameters.items() if estimate is not None}
        if not self.identified:
            raise ValueError(f"{', '.join(self.parameters)} are not identified: {self.note}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The parameters by name, each {"value", "stderr"} or None, then the rest."""
        parameters = {name: e and {"value": e.value, "stderr": e.stderr} for name, e in self.parameters.items()}
        counts = {"num_samples": self.num_samples, "num_core_counts": self.num_core_counts}
        return {**parameters, "r2": self.r2, **counts, "identified": self.identified, "note": self.note}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """f and g of a device of `cores` cores, each as far as its samples tell."""

    cores: int
    comp: SideFit
    comm: SideFit

    @property
    def cost(self) -> CostModel | None:
        """Both formulas, with positive rates at every split of `cores`; None unless both sides are identified."""
        if not (self.comp.identified and self.comm.identified):
            return None
        return CostModel(**self.comp.values(), **self.comm.values())

    def comp_time(self, x: float, c: float) -> float:
        """f(x, c) in seconds. ValueError if comp is not identified, or its rate at c is not positive."""
        return CostModel(**self.comp.values(), **_NO_COMM).comp_time(x, c)

    def comm_time(self, y: float, c: float) -> float:
        """g(y, c) in seconds. ValueError if comm is not identified, or its rate at c is not positive."""
        return CostModel(**self.comm.values(), **_NO_COMP).comm_time(y, c)

    def to_json(self) -> dict[str, Any]:
        """Both sides, and under "cost" what a scenario or a profile calls so, or None."""
        cost = self.cost
        pasted = cost and {name: getattr(cost, name) for name in (*self.comp.parameters, *self.comm.parameters)}
        return {"cores": self.cores, "comp": self.comp.to_json(), "comm": self.comm.to_json(), "cost": pasted}


def fit(samples: Samples) -> Fit:
    """Fit f to the samples of comp and g to those of comm."""
    comp = _fit_side(_COMP, samples.comp, samples.cores)
    return Fit(cores=samples.cores, comp=comp, comm=_fit_side(_COMM, samples.comm, samples.cores))


class _NotIdentified(Exception):
    """The samples do not tell the parameters; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Formula:
    """One side's formula: its rate is `basis(c)` [K, P] times P coefficients, which `convert` turns into the parameters."""

    name: str
    parameters: tuple[str, ...]
    first: int
    """The least c at which this side has cores; the highest is `first` + cores - 1."""
    basis: Callable[[Floats], Floats]
    convert: Callable[[Floats], tuple[list[float], Floats]]
    """coefficients [P] -> (parameters [P], their Jacobian with respect to the coefficients [P, P])."""
    rate: Callable[[Mapping[str, float], int], float]
    """The rate at c as CostModel computes it."""


def _fit_side(formula: _Formula, samples: tuple[Sample, ...], cores: int) -> SideFit:
    # Sorted, so that the order of the samples does not even reach the rounding.
    samples = tuple(sorted(samples, key=lambda sample: (sample.comm_cores, sample.work, sample.seconds)))
    counts = {"num_samples": len(samples), "num_core_counts": len({sample.comm_cores for sample in samples})}
    try:
        _check_number(formula, cores, counts["num_core_counts"])
        with np.errstate(all="ignore"):  # what overflows is refused by name
            found = _estimate(formula, samples, cores)
    except _NotIdentified as reason:
        return SideFit(parameters=dict.fromkeys(formula.parameters), r2=None, note=str(reason), **counts)
    values = {name: estimate.value for name, estimate in found.items()}
    errors = [math.log(s.seconds / s.work * formula.rate(values, s.comm_cores)) for s in samples]
    note = _note(found, len(samples), math.sqrt(sum(error**2 for error in errors) / len(errors)))
    return SideFit(parameters=dict(found), r2=_r2(formula, values, samples), note=note, **counts)


def _estimate(formula: _Formula, samples: tuple[Sample, ...], cores: int) -> dict[str, Estimate]:
    """The parameters, or _NotIdentified."""
    c, place, num = np.unique([float(sample.comm_cores) for sample in samples], return_inverse=True, return_counts=True)
    logs = np.array([math.log(sample.work) - math.log(sample.seconds) for sample in samples])
    level = float(np.mean(logs))
    logs -= level
    means = np.bincount(place, weights=logs) / num
    if np.ptp(means) > math.log(MAX_SPREAD):
        raise _NotIdentified(f"rates at two core counts differ by more than a factor of {MAX_SPREAD:g}; check the samples")
    basis = formula.basis(c)
    coefficients, root = _solve(basis, means, num)
    errors = logs - np.log(basis @ coefficients)[place]
    num_free = len(logs) - len(coefficients)
    if num_free:
        root *= max(math.sqrt(float(errors @ errors) / num_free), ROUNDING)

    possible = range(formula.first, formula.first + cores)
    _check_positive(possible, formula.basis(np.array(possible, dtype=np.float64)) @ coefficients)
    unit = np.exp(level)  # the rates were fitted in this one
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
    """The coefficients [P] that bring log(basis @ coefficients) nearest to `means` [K], which count `num` times each [K].

    Also a root [P, P] of their covariance for errors of variance 1: root @ root.T.
    """
    weights = np.sqrt(num)
    # The rates relative to the measured ones are `directions` @ z / weights. The columns are orthonormal, so near the solution
    # the problem is as well conditioned as can be, whatever the core counts are.
    directions, triangle = np.linalg.qr(basis * (weights / np.exp(means))[:, np.newaxis])

    def residuals(z: Floats) -> Floats:
        errors: Floats = weights * np.log(directions @ z / weights)  # NaN where a rate is negative: such a step is taken back
        return errors

    def jacobian(z: Floats) -> Floats:
        slopes: Floats = directions * (weights / (directions @ z))[:, np.newaxis]
        return slopes

    start = directions.T @ weights  # linear least squares of the rates' relative errors
    if not np.all(directions @ start > 0):
        start = directions.T @ (weights / np.exp(means))  # the same rate at every core count
    solution = least_squares(residuals, start, jac=jacobian, method="trf", xtol=1e-15, ftol=1e-15, gtol=1e-15)
    if not solution.success:
        raise _NotIdentified("the fit does not settle; check the samples")
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
    """g with a rate of b1 c alone, if that fits the samples as well; `logs` are those of the rates per core, less `level`."""
    mean = float(np.mean(logs))
    squares = float(np.sum((logs - mean) ** 2))
    num_free = len(logs) - 1
    worse = (squares - variance * (num_free - 2)) / 2
    if worse > LIKELY_F * max(variance, ROUNDING**2):
        beside = ", and b3, inside of its logarithm, can then be anything"
        raise _NotIdentified(f"{_shown(found, ['b2'])} cannot be told from 0{beside}; measure more core counts, or more often")
    b1 = math.exp(mean + level)
    stderr = b1 * math.sqrt(max(squares / num_free, ROUNDING**2) / len(logs))
    return {
        "b1": Estimate(value=b1, stderr=stderr),
        "b2": Estimate(value=0.0, stderr=found["b2"].stderr),
        "b3": Estimate(value=1.0, stderr=None),
    }


def _check_estimates(estimates: Mapping[str, Estimate]) -> None:
    if "a1" in estimates and _is_noise(estimates["a1"], 1):
        raise _NotIdentified(f"{_shown(estimates, ['a1'])} cannot be told from 0; measure more often")
    for name, estimate in estimates.items():
        if not (abs(estimate.value) < math.inf and math.isfinite(estimate.stderr or 0)) or (name == "b3" and not estimate.value):
            raise _NotIdentified(f"{name} comes out as {estimate.value:g}, which is no parameter; check units and core counts")


def _is_noise(estimate: Estimate, errors: float) -> bool:
    return estimate.stderr is not None and abs(estimate.value) < errors * estimate.stderr


def _shown(estimates: Mapping[str, Estimate], names: Sequence[str]) -> str:
    return " and ".join(f"{name} = {estimates[name].value:.2g} +- {estimates[name].stderr:.2g}" for name in names)


def _note(estimates: Mapping[str, Estimate], num_samples: int, error: float) -> str:
    """What a fit that was found still leaves open."""
    if "b2" in estimates and estimates["b2"].value == 0:
        doubt = f"{estimates['b2'].stderr:.2g}"
        return f"b2 (+- {doubt}) cannot be told from 0 and is taken as 0, so comm's rate is b1 c and b3 means nothing"
    if num_samples == len(estimates):
        return f"{num_samples} samples for {num_samples} parameters say nothing of their errors"
    notes = []
    if noise := [name for name, estimate in estimates.items() if _is_noise(estimate, 1)]:
        notes.append(f"{_shown(estimates, noise)} cannot be told from 0")
    if error > MAX_ERROR:
        notes.append(f"the times differ from the formula by {error:.0%} of theirs; look for outliers")
    return "; ".join(notes)


def _r2(formula: _Formula, values: Mapping[str, float], samples: tuple[Sample, ...]) -> float | None:
    """R^2 of the times per unit of work: works that differ explain nothing of the cores, nor may works that are alike hide them."""
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


_NO_COMM = {"b1": 1.0, "b2": 0.0, "b3": 1.0}
_NO_COMP = {"a1": 1.0, "a2": 0.0}

_COMP = _Formula(
    name="f",
    parameters=("a1", "a2"),
    first=0,
    basis=lambda c: np.stack([np.ones_like(c), -c], axis=1),
    convert=_convert_comp,
    rate=lambda values, c: CostModel(**values, **_NO_COMM).comp_rate(c),
)
_COMM = _Formula(
    name="g",
    parameters=("b1", "b2", "b3"),
    first=1,
    basis=lambda c: np.stack([c, np.log(c), np.ones_like(c)], axis=1),
    convert=_convert_comm,
    rate=lambda values, c: CostModel(**values, **_NO_COMP).comm_rate(c),
)
