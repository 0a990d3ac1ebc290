"""The command `core-scheduler simulate`: makespans of one scenario under several policies, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Timer
from typing import Any, TypeAlias

import numpy as np

from scheduler.model.scenario import Scenario
from scheduler.policies.registry import kind_of, make_policy
from scheduler.settings import SimulateConfig
from scheduler.simulation.simulator import not_modelled, random_makespans, simulable_policies, simulate

Result: TypeAlias = dict[str, float]
"""Result of one policy: "makespan". For `random` that is the mean over the runs, and "min", "max", "std" and "runs" are added."""

MAX_PLANNED_MOVES = 12_000_000
"""A policy that plans the whole run evaluates about cycles x cycles x cores moves. Above this number, name it with --policies."""

SLOW_S = 2.0
"""Seconds after which a terminal shows the name of the policy that is being simulated."""


def simulate_policies(text: str, config: SimulateConfig) -> None:
    """Simulate the scenario in `text` (JSON) and print the results. Raises ValueError for a wrong scenario or policy."""
    given = Scenario.from_text(text)
    scenario = given.in_shards(config.shards)
    names = _policies(config.policies, scenario)
    bound = scenario.lower_bound()
    if not scenario.rates.is_monotone:
        print("some rates fall where a side gets more cores: adaptive may then lose to a fixed split", file=sys.stderr)
    results: dict[str, Result] = {}
    for name in names:
        with _reported_if_slow(f"simulating {name}, {len(results) + 1} of {len(names)}"):
            results[name] = _result(scenario, name, config)
    if config.json:
        print(json.dumps({"lower_bound": bound, "policies": results}, indent=2, allow_nan=False))
    else:
        print("\n".join(_table(given, config.shards, bound, results)))


@contextmanager
def _reported_if_slow(message: str) -> Iterator[None]:
    """Print `message` to a terminal if the block takes more than SLOW_S seconds."""
    timer = Timer(SLOW_S, print, [message], {"file": sys.stderr})
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _policies(requested: str | None, scenario: Scenario) -> list[str]:
    """Return the names of the policies to simulate, in canonical spelling. Raises ValueError for a wrong name."""
    if requested is None:
        possible = list(simulable_policies(scenario))
        num_moves = scenario.cycles**2 * scenario.cores
        if num_moves <= MAX_PLANNED_MOVES:
            return possible
        slow = [name for name in possible if kind_of(name).plans_whole_run]
        for name in slow:
            print(
                f"{name} is left out: its plan evaluates about cycles x cycles x cores moves, here {num_moves:,};"
                " name it with --policies to simulate it",
                file=sys.stderr,
            )
        return [name for name in possible if name not in slow]
    words = [word.strip() for word in requested.split(",")]
    if not all(words):
        raise ValueError(f"--policies is {requested!r}, must be names separated by commas")
    policies = [make_policy(word, num_cores=scenario.cores, seed=0) for word in words]
    names = [policy.name for policy in policies]
    for policy, name in zip(policies, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"--policies is {requested!r}, names {name} twice")
        if not policy.is_work_conserving:
            raise ValueError(not_modelled(name))
    return names


def _result(scenario: Scenario, name: str, config: SimulateConfig) -> Result:
    if not kind_of(name).is_random:
        return {"makespan": simulate(scenario, name, seed=config.seed).makespan}
    makespans = random_makespans(scenario, runs=config.random_runs, seed=config.seed)
    least, most = float(makespans.min()), float(makespans.max())
    # Rounding can move the mean of equal numbers out of their range.
    mean = min(max(float(makespans.mean()), least), most)
    return {"makespan": mean, "min": least, "max": most, "std": float(makespans.std()), "runs": len(makespans)}


def _table(scenario: Scenario, num_shards: int, bound: float, results: Mapping[str, Result]) -> Iterable[str]:
    """Yield lines for the scenario, the lower bound, each policy, and the best static split."""
    works = scenario.works
    ahead = "without a limit" if scenario.prefetch is None else f"by up to {scenario.prefetch} batches"
    parts = f", in {num_shards} shards" if num_shards > 1 else ""
    rates = "from the cost functions" if scenario.cost is not None else f"of {len(scenario.modes)} measured modes"
    yield (
        f"{scenario.cores} cores, {scenario.cycles} cycles of forward {_range(works.forward)}, backward {_range(works.backward)}"
        f" and comm {_range(works.comm)}{parts}; comm may run ahead {ahead}; rates {rates}"
    )
    yield f"lower bound {bound:.6g} s; every makespan is modelled, not measured"
    yield ""
    width = max(len(name) for name in ["policy", *results])
    yield f"{'policy':<{width}}  {'makespan':>12}  {'/ bound':>8}"
    for name, result in results.items():
        ratio = f"{result['makespan'] / bound:.4f}" if bound > 0 else "-"
        of_runs = "  mean of {runs}, +- {std:.3g}, {min:.6g} .. {max:.6g}".format(**result) if "runs" in result else ""
        yield f"{name:<{width}}  {result['makespan']:>10.6g} s  {ratio:>8}{of_runs}"
    splits = {name: result["makespan"] for name, result in results.items() if name.startswith("static:")}
    if splits:
        best = min(splits, key=lambda name: splits[name])
        yield f"\nbest static split: {best}, {splits[best]:.6g} s"


def _range(works: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    least, most = works.min(), works.max()
    return f"{least:g}" if least == most else f"{least:g} .. {most:g}"
