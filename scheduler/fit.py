"""The command `core-scheduler fit`: the fitted cost functions as text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable

from scheduler.model.fit import fit
from scheduler.model.fit_result import Fit, SideFit
from scheduler.model.samples import Samples
from scheduler.settings import FitConfig


def fit_samples(text: str, config: FitConfig) -> None:
    """Fit f and g to the samples in `text` (JSON) and print them. Raises ValueError if neither can be identified."""
    found = fit(Samples.from_text(text))
    if not (found.comp.identified or found.comm.identified):
        raise ValueError(f"these samples identify neither f nor g: {found.comp.note}; {found.comm.note}")
    print(json.dumps(found.to_json(), indent=2, allow_nan=False) if config.json else "\n".join(_lines(found)))


def _lines(found: Fit) -> Iterable[str]:
    yield from _side_lines("comp", "f(x, c) = a1 x / (1 - a2 c)", found.comp)
    yield from _side_lines("comm", "g(y, c) = y / (b1 c + b2 ln(b3 c))", found.comm)
    if found.cost is not None:
        yield f'for a scenario: "cost": {json.dumps(found.to_json()["cost"])}'


def _side_lines(name: str, formula: str, side: SideFit) -> Iterable[str]:
    r2 = "" if side.r2 is None else f", R^2 of times per work {side.r2:.6f}"
    yield f"{name}: {formula}, {side.num_samples} samples at {side.num_core_counts} core counts{r2}"
    for parameter, estimate in side.parameters.items():
        if estimate is not None:
            error = "" if estimate.stderr is None else f" +- {estimate.stderr:.2g}"
            yield f"  {parameter} = {estimate.value:.6g}{error}"
    if side.note:
        yield f"  {'note' if side.identified else 'not identified'}: {side.note}"
