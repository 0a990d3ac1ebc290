"""Compute the data of the figures as JSON values. Each study is a pure function of its parameters and names its assumptions.

The scenarios are those of the paper's figures 2 to 5. One more study compares every policy with the lower bound. The paper
publishes no parameter values, so every caption names the values chosen here. `figures` draws the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from scheduler.model.cost import CostModel
from scheduler.model.fit import fit
from scheduler.model.fit_result import Estimate, Fit
from scheduler.model.samples import Sample, Samples
from scheduler.model.scenario import Scenario
from scheduler.model.state import Task
from scheduler.policies.registry import kind_of
from scheduler.simulation.simulator import SimulatedRun, random_makespans, simulable_policies, simulate

Data: TypeAlias = dict[str, Any]
"""JSON values. The data of every study have "title" and "caption", which are drawn unchanged."""

CORES = (6, 8, 10, 12)
"""C in the paper's figures 4 and 5."""

GAP_CORES = (4, *CORES)
GAP_RATIOS = ((4.0, 1.0), (2.0, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 4.0))
"""(x, y), from the most work for comp to the most work for comm."""

_PANELS = ("random", "comm-priority", "worst static", "best static", "dynamic", "adaptive")

CYCLES = 100

NOISE = 0.03
"""Standard deviation of the example samples' relative error."""

_EXAMPLE_CORES, _EXAMPLE_REPEATS = 6, 10
_CHOSEN = "a1=6/C, a2=1/C, b1=0.12, b2=0.08, b3=e: chosen here, because Lin et al. (AIoTSys 2024) publish no values"
_WORKS = "x is the work of one Forward and of one Backward each, y that of one Comm"
_MODELLED = "Modelled, not measured"
_EXAMPLE = "example samples, not measured on a device"


def cost_model(num_cores: int) -> CostModel:
    """Return f and g of every study: the rates are (C - c) / 6 for comp and 0.12 c + 0.08 (1 + ln c) for comm."""
    return CostModel(a1=6 / num_cores, a2=1 / num_cores, b1=0.12, b2=0.08, b3=math.e)


def scenario_data(*, cores: int, x: float, y: float | Sequence[float], cycles: int = CYCLES) -> Data:
    """Return a scenario for `Scenario.from_json`: Forward and Backward have work `x` each, Comm has work `y` (or one per cycle)."""
    comm = y if isinstance(y, int | float) else list(y)
    return {"cores": cores, "cycles": cycles, "forward": x, "backward": x, "comm": comm, "cost": asdict(cost_model(cores))}


def example_samples(seed: int) -> Data:
    """Return invented samples, drawn from `cost_model` with NOISE. They only demonstrate the figure and describe no device."""
    generator = np.random.default_rng(seed)
    costs = cost_model(_EXAMPLE_CORES)

    def drawn(seconds: float, c: int) -> list[Data]:
        noise = generator.normal(scale=NOISE, size=_EXAMPLE_REPEATS)
        return [{"work": 1.0, "comm_cores": c, "seconds": seconds * math.exp(error)} for error in noise]

    comp = [sample for c in range(_EXAMPLE_CORES) for sample in drawn(costs.comp_time(1.0, c), c)]
    comm = [sample for c in range(1, _EXAMPLE_CORES + 1) for sample in drawn(costs.comm_time(1.0, c), c)]
    return {"cores": _EXAMPLE_CORES, "comp": comp, "comm": comm}


def fitted_costs(*, samples: Any | None = None, seed: int = 0) -> Data:
    """Compute figure 2: times of comp and comm against comm's cores, with the fitted f and g.

    `samples` is data for `Samples.from_json`. Without it, `example_samples` are used, and title and caption label them as
    examples. Raises ValueError for invalid samples.
    """
    is_example = samples is None
    given = example_samples(seed) if is_example else samples
    measured = Samples.from_json(given)
    fitted = fit(measured)
    sides = [
        _side("comp", "f", measured.comp, fitted, fitted.comp_time, range(measured.cores)),
        _side("comm", "g", measured.comm, fitted, fitted.comm_time, range(1, measured.cores + 1)),
    ]
    title, origin = "Time against the cores given to comm", f"Samples as given, of {measured.cores} cores."
    if is_example:
        title = f"{title} ({_EXAMPLE})"
        origin = f"{_EXAMPLE.capitalize()}: f and g at C={measured.cores} with {NOISE:.0%} noise (seed {seed}); {_CHOSEN}."
    found = " ".join(side["text"] for side in sides)
    is_fitted = any(side["curve"] for side in sides)
    return {
        "title": title,
        "caption": f"{origin} {found}"
        + (" Lower panels: sample / fit - 1; the band is the root mean square." if is_fitted else ""),
        "is_example": is_example,
        "seed": seed if is_example else None,
        "samples": given,
        "fit": fitted.to_json(),
        "sides": sides,
    }


def _side(
    name: str, formula: str, samples: Sequence[Sample], fitted: Fit, time: Callable[[float, float], float], splits: range
) -> Data:
    """Return one side of figure 2, with times per unit of work. Without a fit, "curve" is empty and errors are None."""
    points = [
        {"comm_cores": sample.comm_cores, "seconds": sample.seconds / sample.work, "relative_error": None} for sample in samples
    ]
    side: Data = {"side": name, "formula": formula, "points": points, "curve": [], "spread": None}
    found = fitted.comp if name == "comp" else fitted.comm
    if not found.identified:
        return {**side, "text": f"{formula} has no fit: {found.note}."}
    errors = [sample.seconds / time(sample.work, sample.comm_cores) - 1 for sample in samples]
    spread = math.sqrt(sum(error**2 for error in errors) / len(errors))
    estimates = {key: estimate for key, estimate in found.parameters.items() if estimate is not None}
    parameters = ", ".join(f"{key}={_with_error(estimate)}" for key, estimate in estimates.items())
    has_errors = any(estimate.stderr is not None for estimate in estimates.values())
    errors_are = "; ".join(filter(None, ["\u00b1 standard error" if has_errors else "", found.note]))
    grid = np.linspace(splits[0], splits[-1], 101).tolist()
    return {
        **side,
        "points": [{**point, "relative_error": error} for point, error in zip(points, errors, strict=True)],
        "curve": [{"comm_cores": c, "seconds": time(1.0, c)} for c in grid],
        "spread": spread,
        "text": f"{formula}: {parameters} ({errors_are}) from {len(points)} samples.",
    }


def _with_error(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}" + (f"\u00b1{estimate.stderr:.1g}" if estimate.stderr is not None else "")


def cost_curves(*, cores: Sequence[int] = CORES) -> Data:
    """Compute figure 4: f(1, c) and g(1, c) in seconds against comp's cores C - c, wherever the side has cores."""
    curves = []
    for num_cores in cores:
        costs = cost_model(num_cores)
        comp = [{"comp_cores": num_cores - c, "seconds": costs.comp_time(1.0, c)} for c in range(num_cores)]
        comm = [{"comp_cores": num_cores - c, "seconds": costs.comm_time(1.0, c)} for c in range(1, num_cores + 1)]
        curves.append({"cores": num_cores, "cost": asdict(costs), "comp": comp, "comm": comm})
    caption = (
        f"{_MODELLED}: f(x, c) = a1 x / (1 - a2 c) is the time of comp work x, and g(y, c) = y / (b1 c + b2 ln(b3 c)) the time of"
        f" comm work y, when comm has c of the C cores and comp the other C - c; here x = y = 1. {_CHOSEN}."
    )
    return {"title": "Time of one unit of work against the cores given to comp", "caption": caption, "curves": curves}


def timeline(*, policy: str = "dynamic") -> Data:
    """Compute figure 3: a small run, task by task, and the paper's scenario (1, 2 or 3) of each segment.

    Segment i ends where Backward_i starts, and the last segment ends with the run (the paper's t_1 .. t_{N+1}). Scenario 1: comp
    waits for logits in the segment. Scenario 3: all comm was done before it. Scenario 2: otherwise.
    """
    x, y = 0.75, (1.2, 0.9, 0.6, 0.5, 0.5, 0.4)
    data = scenario_data(cores=4, x=x, y=y, cycles=len(y))
    run = simulate(Scenario.from_json(data), policy, record=True)
    caption = (
        f"{_MODELLED}: policy {policy}, C={data['cores']} cores, N={len(y)} cycles, x={x:g}, y={', '.join(map(str, y))}; {_WORKS}."
        f" {_CHOSEN}. Segment i ends where Backward i starts, the last segment with the run. Scenario 1: comp waits for logits,"
        " and comm has all cores meanwhile; 2: both run; 3: comm was done before, and comp has all cores."
    )
    return {
        "title": f"One run of {len(y)} cycles under '{policy}'",
        "caption": caption,
        "scenario": data,
        "policy": policy,
        "makespan": run.makespan,
        "spans": [{"task": span.task.value, "cycle": span.index + 1, "start": span.start, "end": span.end} for span in run.spans],
        "waits": _waits(run),
        "segments": _segments(run),
        "intervals": [
            {
                "start": interval.start,
                "end": interval.end,
                "comm_cores": interval.allocation.comm,
                "comp_cores": interval.allocation.comp,
                "reason": interval.reason.value,
            }
            for interval in run.intervals
        ],
    }


def _waits(run: SimulatedRun) -> list[Data]:
    """Return the waits of each side: from the end of one of its tasks to the start of its next task."""
    waits = []
    for side, tasks in (("comm", {Task.COMM}), ("comp", {Task.FORWARD, Task.BACKWARD})):
        spans = [span for span in run.spans if span.task in tasks]
        starts, ends = [span.start for span in spans], [0.0, *(span.end for span in spans)]
        waits += [{"side": side, "start": end, "end": start} for end, start in zip(ends, starts, strict=False) if start > end]
    return waits


def _segments(run: SimulatedRun) -> list[Data]:
    comm_end = max(span.end for span in run.spans if span.task is Task.COMM)
    borders = [0.0, *(span.start for span in run.spans if span.task is Task.BACKWARD), run.makespan]
    waits = [wait for wait in _waits(run) if wait["side"] == "comp"]
    segments = []
    for start, end in pairwise(borders):
        is_waiting = any(start <= wait["start"] < end for wait in waits)
        segments.append({"start": start, "end": end, "scenario": 1 if is_waiting else 3 if comm_end <= start else 2})
    return segments


def outcome(*, cores: int, x: float, y: float, cycles: int, runs: int, seed: int) -> Data:
    """Return every policy's makespan in one scenario, in seconds: {"lower_bound", "policies": {name: {"makespan", ...}}, ...}.

    For `random`, "makespan" is the mean of `runs` runs, and their spread is added. "best_static" and "worst_static" are the names
    of the fastest and the slowest split.
    """
    data = scenario_data(cores=cores, x=x, y=y, cycles=cycles)
    scenario = Scenario.from_json(data)
    bound = scenario.lower_bound()
    names = simulable_policies(scenario)
    policies: dict[str, Data] = {
        name: _spread(scenario, runs, seed) if kind_of(name).is_random else {"makespan": simulate(scenario, name).makespan}
        for name in names
    }
    splits = [f"static:{c}" for c in range(1, cores)]
    return {
        "scenario": data,
        "lower_bound": bound,
        "best_static": min(splits, key=lambda name: policies[name]["makespan"]),
        "worst_static": max(splits, key=lambda name: policies[name]["makespan"]),
        "policies": policies,
    }


def _spread(scenario: Scenario, runs: int, seed: int) -> Data:
    makespans = random_makespans(scenario, runs=runs, seed=seed)
    p5, p95 = np.percentile(makespans, [5, 95]).tolist()
    least, most = float(makespans.min()), float(makespans.max())
    return {"makespan": float(makespans.mean()), "min": least, "p5": p5, "p95": p95, "max": most, "runs": runs}


def comparison(*, x: float, y: float, cores: Sequence[int] = CORES, cycles: int = CYCLES, runs: int = 1000, seed: int = 0) -> Data:
    """Compute figure 5: every policy's makespan for each number of cores."""
    groups = [outcome(cores=num_cores, x=x, y=y, cycles=cycles, runs=runs, seed=seed) for num_cores in cores]
    caption = (
        f"{_MODELLED}: N={cycles} cycles, x={x:g}, y={y:g}, no prefetch limit; {_WORKS}. {_CHOSEN}. Random: mean of {runs} runs"
        f" (seed {seed}); in the lower panel, the thick line spans the 5th to 95th percentile and the thin line all runs. Best"
        " static: the fastest of the C - 1 fixed splits; the number in its bar is its comm cores. No policy beats the bound."
    )
    return {"title": f"Time of a run, x : y = {x:g} : {y:g}", "caption": caption, "runs": runs, "seed": seed, "groups": groups}


def gaps(
    *,
    cores: Sequence[int] = GAP_CORES,
    ratios: Sequence[tuple[float, float]] = GAP_RATIOS,
    cycles: int = CYCLES,
    runs: int = 1000,
    seed: int = 0,
) -> Data:
    """Compute each policy's excess over the lower bound in per cent, for each ratio x:y (row) and number of cores (column)."""
    table = [[outcome(cores=c, x=x, y=y, cycles=cycles, runs=runs, seed=seed) for c in cores] for x, y in ratios]
    caption = (
        f"{_MODELLED}: 100 (T / lower bound - 1), N={cycles} cycles, no prefetch limit; {_WORKS}. {_CHOSEN}. Random: mean of {runs}"
        f" runs (seed {seed}). comp-priority takes as long as comm-priority. Best and worst static: the fastest and the slowest of"
        " the C - 1 fixed splits. A darker cell is further from the bound; all tables have the same scale."
    )
    return {
        "title": "Time above the lower bound, in per cent",
        "caption": caption,
        "runs": runs,
        "seed": seed,
        "cores": list(cores),
        "ratios": [f"{x:g} : {y:g}" for x, y in ratios],
        "panels": [{"title": name, "percent": [[_gap(cell, name) for cell in row] for row in table]} for name in _PANELS],
        "outcomes": [cell for row in table for cell in row],
    }


def _gap(cell: Data, panel: str) -> float:
    name = cell[panel.replace(" ", "_")] if panel.endswith(" static") else panel
    return 100 * float(cell["policies"][name]["makespan"] / cell["lower_bound"] - 1)
