"""Results of fitting f and g to measured times: parameters with standard errors, or the reason why they are not identified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scheduler.model.cost import CostModel

NO_COMM = {"b1": 1.0, "b2": 0.0, "b3": 1.0}
NO_COMP = {"a1": 1.0, "a2": 0.0}
"""Parameters of the other side, where only one side of a CostModel is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A parameter and its standard error. The error is None if there are only as many samples as parameters."""

    value: float
    stderr: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFit:
    """The fit of one side. If its parameters are not identified, each one is None and `note` has the reason."""

    parameters: dict[str, Estimate | None]
    r2: float | None
    """1 - (squared errors of the times) / (squared deviations of the times from their mean). None without a fit, or if all times
    are equal."""
    num_samples: int
    num_core_counts: int
    """Number of distinct core counts in the samples."""
    note: str
    """Notes on undetermined parameters; empty if all are determined."""

    @property
    def identified(self) -> bool:
        """Whether the samples determine the parameters."""
        return None not in self.parameters.values()

    def values(self) -> dict[str, float]:
        """Return the parameters by name. Raises ValueError, with the reason, if they are not identified."""
        found = {name: estimate.value for name, estimate in self.parameters.items() if estimate is not None}
        if not self.identified:
            raise ValueError(f"{', '.join(self.parameters)} are not identified: {self.note}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the parameters by name, each {"value", "stderr"} or None, then the other fields."""
        parameters = {name: e and {"value": e.value, "stderr": e.stderr} for name, e in self.parameters.items()}
        counts = {"num_samples": self.num_samples, "num_core_counts": self.num_core_counts}
        return {**parameters, "r2": self.r2, **counts, "identified": self.identified, "note": self.note}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The fits of f and g for a device with `cores` cores."""

    cores: int
    comp: SideFit
    comm: SideFit

    @property
    def cost(self) -> CostModel | None:
        """Both cost functions, with positive rates at every split of `cores`; None unless both sides are identified."""
        if not (self.comp.identified and self.comm.identified):
            return None
        return CostModel(**self.comp.values(), **self.comm.values())

    def comp_time(self, x: float, c: float) -> float:
        """Return f(x, c) in seconds. Raises ValueError if comp is not identified, or its rate at c is not positive."""
        return CostModel(**self.comp.values(), **NO_COMM).comp_time(x, c)

    def comm_time(self, y: float, c: float) -> float:
        """Return g(y, c) in seconds. Raises ValueError if comm is not identified, or its rate at c is not positive."""
        return CostModel(**self.comm.values(), **NO_COMP).comm_time(y, c)

    def to_json(self) -> dict[str, Any]:
        """Return both sides as JSON values; "cost" is the object that scenarios and profiles have, or None."""
        cost = self.cost
        pasted = cost and {name: getattr(cost, name) for name in (*self.comp.parameters, *self.comm.parameters)}
        return {"cores": self.cores, "comp": self.comp.to_json(), "comm": self.comm.to_json(), "cost": pasted}
