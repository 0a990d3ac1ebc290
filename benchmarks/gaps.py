"""The gap between policies and the exact optimum in modelled time: the tables of docs/model.md. The results need no clock.

    python benchmarks/gaps.py [--scenarios 2000] [--seed 0] [--json FILE]

Computes the mean and the worst cell of the grid C in {4, 6, 8, 10, 12} x works in {1:1, 2:1, 1:2, 1:4, 4:1}, then random scenarios.
`shards` is the largest gain in that grid if a shard needs only its rows (docs/decisions/032).
`tracker` is the reference for `adaptive` in docs/decisions/008: the higher of the two modes next to the line's slope.
"""

import json
import math
import os
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from edge_student.measure.result_file import write_results
from edgekd.cli.command import parse
from scheduler.model.optimum import Frontier
from scheduler.model.scenario import Scenario
from scheduler.model.state import Allocation
from scheduler.policies.view import View
from scheduler.simulation.simulator import simulate, simulate_policy
from scheduler.simulation.studies import GAP_CORES, GAP_RATIOS, scenario_data

COSTS: dict[str, Callable[[int], dict[str, float]]] = {
    "as in the figures": lambda cores: {"a1": 6 / cores, "a2": 1 / cores, "b1": 0.12, "b2": 0.08, "b3": math.e},
    "the same for every device": lambda cores: {"a1": 1.0, "a2": 0.07, "b1": 0.1, "b2": 0.2, "b3": 2.0},
    "linear": lambda cores: {"a1": 1.0, "a2": 0.08, "b1": 0.2, "b2": 0.0, "b3": 1.0},
    "logarithmic": lambda cores: {"a1": 1.0, "a2": 0.05, "b1": 0.02, "b2": 0.5, "b3": 3.0},
    "cores hardly matter": lambda cores: {"a1": 1.0, "a2": 0.02, "b1": 0.05, "b2": 0.1, "b3": 5.0},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Compute the gap between policies and the optimum, in modelled time."""

    scenarios: int = 2000
    """Number of random scenarios."""
    seed: int = 0
    """Seed of the random scenarios and works."""
    json: Path | None = None
    """Result file."""


class Tracker:
    """Chooses the higher of the two modes next to the least slope that the rest needs. For equal cycles and no prefetch limit."""

    name = "tracker"
    is_work_conserving = True

    def choose(self, view: View) -> Allocation:
        assert view.rates is not None
        comm, comp = view.works.tasks(0, view.cycles)
        waits = 2 * view.num_comm + 1, 2 * view.cycles - 1  # comp tasks before the next wait, and before the last wait
        done = view.num_forward + view.num_backward
        slopes = [math.inf]
        for end, tasks in zip(waits, (view.num_comm + 1, view.cycles), strict=True):
            ahead = view.comp_left + sum(comp[done + 1 : end])
            slopes.append((view.comm_left + sum(comm[view.num_comm + 1 : tasks])) / ahead if ahead else math.inf)
        _, higher = Frontier.of(view.rates.modes()).around(max(slopes[1:]))
        names = [mode.name for mode in view.rates.modes()]
        return Allocation.split(names.index(higher.name), view.num_cores)


def excess(run: Scenario, makespan: float) -> float:
    """Return the per cent by which a makespan exceeds the lower bound."""
    return 100 * (makespan / run.lower_bound() - 1)


def best_split(run: Scenario) -> float:
    return min(simulate(run, f"static:{c}").makespan for c in range(1, run.cores))


def grid(cycles: int, *, prefetch: int | None, spread: float, seed: int) -> dict[str, Any]:
    """Simulate the grid with the costs of the figures. Works are uniform in 1 - `spread` to 1 + `spread` of their mean."""
    generator = random.Random(seed)
    excesses: dict[str, list[float]] = {"adaptive": [], "best static": [], "dynamic": []}
    for cores, (x, y) in product(GAP_CORES, GAP_RATIOS):
        data = scenario_data(cores=cores, x=x, y=y, cycles=cycles) | {"prefetch": prefetch}
        for task in ("forward", "backward", "comm") if spread else ():
            data[task] = [data[task] * generator.uniform(1 - spread, 1 + spread) for _ in range(cycles)]
        run = Scenario.from_json(data)
        for name in ("adaptive", "dynamic"):
            excesses[name].append(excess(run, simulate(run, name).makespan))
        excesses["best static"].append(excess(run, best_split(run)))
    settings = {"cycles": cycles, "prefetch": prefetch, "spread": spread}
    return settings | {name: {"mean": statistics.mean(found), "worst": max(found)} for name, found in excesses.items()}


def trackers(cycles: int) -> dict[str, float]:
    """Return the worst cell of `tracker` and of `adaptive` over all cost families."""
    worst = {"tracker": 0.0, "adaptive": 0.0}
    for cost, cores, (x, y) in product(COSTS.values(), GAP_CORES, GAP_RATIOS):
        data = {"cores": cores, "cycles": cycles, "forward": x, "backward": x, "comm": y, "cost": cost(cores)}
        run = Scenario.from_json(data)
        worst["tracker"] = max(worst["tracker"], excess(run, simulate_policy(run, Tracker()).makespan))
        worst["adaptive"] = max(worst["adaptive"], excess(run, simulate(run, "adaptive").makespan))
    return {"cycles": cycles, **worst}


def random_scenario(generator: random.Random) -> Scenario:
    """Draw a random scenario: cores, cycles, prefetch limit, works, and costs whose rates never fall with more cores."""
    cores, cycles = generator.choice((2, 3, 4, 6, 8, 12)), generator.choice((2, 3, 5, 10, 20, 50, 100))
    costs = {
        "a1": generator.uniform(0.1, 3),
        "a2": generator.uniform(0, 1) / cores,
        "b1": generator.uniform(0, 0.3),
        "b2": generator.uniform(0.01, 0.6),
        "b3": generator.uniform(1.1, 5),
    }
    works: dict[str, Any] = {
        "forward": generator.uniform(0.2, 3),
        "backward": generator.uniform(0.2, 3),
        "comm": generator.uniform(0.2, 6),
    }
    if generator.random() < 0.5:
        works = {task: [work * generator.expovariate(1) for _ in range(cycles)] for task, work in works.items()}
    prefetch = generator.choice((None, None, 1, 2, 3, 5, 8, 16))
    return Scenario.from_json({"cores": cores, "cycles": cycles, **works, "prefetch": prefetch, "cost": costs})


def random_scenarios(num: int, seed: int) -> dict[str, float]:
    generator = random.Random(seed)
    above_bound, above_split = [], []
    for _ in range(num):
        run = random_scenario(generator)
        makespan = simulate(run, "adaptive").makespan
        above_bound.append(excess(run, makespan))
        above_split.append(100 * (makespan / best_split(run) - 1))
    return {
        "scenarios": num,
        "median_above_bound": statistics.median(above_bound),
        "p99_above_bound": sorted(above_bound)[int(0.99 * num)],
        "worst_above_bound": max(above_bound),
        "worst_above_best_static": max(above_split),
    }


def gain_of_shards(*, prefetch: int | None, inputs_travel: bool) -> dict[str, Any]:
    """Return the largest gain in the 25 scenarios of the figures if a shard needs only its rows, with as many shards as cores.

    With `inputs_travel` a Forward needs its rows too: it has work 0, and Backward the work of both.
    """
    gains: dict[str, list[float]] = {"lower bound": [], "adaptive": [], "static:1": []}
    for cores, (x, y) in product(GAP_CORES, GAP_RATIOS):
        data = scenario_data(cores=cores, x=x, y=y) | ({"forward": 0, "backward": 2 * x} if inputs_travel else {})
        whole = Scenario.from_json(data if prefetch is None else data | {"prefetch": prefetch})
        parts = whole.in_shards(cores)
        gains["lower bound"].append(100 * (1 - parts.lower_bound() / whole.lower_bound()))
        for policy in ("adaptive", "static:1"):
            gains[policy].append(100 * (1 - simulate(parts, policy).makespan / simulate(whole, policy).makespan))
    return {"prefetch": prefetch, "inputs_travel": inputs_travel, **{name: max(found) for name, found in gains.items()}}


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="gaps.py", description=__doc__ or "")
    cases = [
        (100, None, 0.0),
        (100, 2, 0.0),
        (100, 8, 0.0),
        (100, 1, 0.0),
        (100, None, 0.5),
        (100, 4, 0.5),
        (20, None, 0.0),
    ]
    results = {
        "unit": "per cent above the lower bound, or above the best static split; modelled, not measured",
        "grid": [grid(n, prefetch=limit, spread=spread, seed=settings.seed) for n, limit, spread in cases],
        "shards": [gain_of_shards(prefetch=limit, inputs_travel=travel) for travel in (False, True) for limit in (1, 2, None)],
        "tracker": [trackers(cycles) for cycles in (20, 200)],
        "random": random_scenarios(settings.scenarios, settings.seed),
    }
    print(json.dumps(results, indent=2))
    write_results(settings.json, cores=tuple(sorted(os.sched_getaffinity(0))), settings=settings, results=results)


if __name__ == "__main__":
    main()
