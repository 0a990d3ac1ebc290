"""The run time of the scheduler's computations: bound and plan of a million cycles, simulated events, and live decisions.

One run of the simulator is compared with the same run in SimPy, a general simulator. Both must have the same makespan.

    python benchmarks/simulator.py [--repeats 5] [--json FILE]
"""

import json
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from edge_student.measure.result_file import write_results
from edgekd.cli.command import parse
from scheduler.control.controller import Controller
from scheduler.model.cost import Workload
from scheduler.model.optimum import course, lower_bound
from scheduler.model.scenario import Profile, Scenario
from scheduler.model.state import Reason, Started, TaskDone
from scheduler.policies.dynamic import solve
from scheduler.policies.registry import make_policy
from scheduler.simulation.simulator import random_makespans, simulate

MILLION = 1_000_000
STATELESS = ("static:2", "random", "comm-priority", "comp-priority")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Measure the run time of the scheduler's computations."""

    repeats: int = 5
    """Repetitions of each measurement; the result is their median."""
    json: Path | None = None
    """Result file."""


def scenario(cycles: int, *, cores: int = 12, prefetch: int | None = None) -> Scenario:
    """Return the default scenario of the figures. Comp's rate is linear in its cores, comm's is not."""
    cost = {"a1": 6 / cores, "a2": 1 / cores, "b1": 0.12, "b2": 0.08, "b3": 2.718281828459045}
    works = {"forward": 1.0, "backward": 1.0, "comm": 1.3}
    return Scenario.from_json({"cores": cores, "cycles": cycles, **works, "prefetch": prefetch, "cost": cost})


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_bounds(repeats: int) -> dict[str, Any]:
    """Measure bound and course of a million cycles, for equal and random works: seconds and peak memory."""
    equal = scenario(MILLION)
    generator = np.random.default_rng(0)
    kinds = {
        "equal works": {"forward": equal.works.forward, "backward": equal.works.backward, "comm": equal.works.comm},
        "random works": {task: generator.uniform(0.5, 1.5, MILLION) for task in ("forward", "backward", "comm")},
    }
    results = {}
    for kind, works in kinds.items():
        for prefetch in (None, 1, 2, 8):

            def bound_and_plan(works: dict[str, Any] = works, prefetch: int | None = prefetch) -> None:
                lower_bound(modes=equal.modes, **works, prefetch=prefetch)
                course(**works, prefetch=prefetch)

            seconds = median_seconds(bound_and_plan, repeats)
            tracemalloc.start()
            bound_and_plan()
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            results[f"{kind}, prefetch {prefetch}"] = {"seconds": seconds, "peak_mib": peak / 2**20}
    return results


def measure_events(repeats: int) -> dict[str, float]:
    """Measure events per second on 12 cores: 50,000 cycles, and 2,000 for adaptive."""
    long, short = scenario(50_000), scenario(2_000)
    rates = {}
    for name in (*STATELESS, "adaptive"):
        run = short if name == "adaptive" else long
        num_events = simulate(run, name).num_events
        rates[name] = num_events / median_seconds(lambda run=run, name=name: simulate(run, name), repeats)
    return rates


def measure_live(name: str, *, is_profiled: bool, prefetch: int | None) -> dict[str, float]:
    """Measure the controller's decisions in ms. The events are those of a static:3 run of 200 cycles on 12 cores."""
    run = scenario(200, prefetch=prefetch)
    work = Workload(forward=1.0, backward=1.0, comm=1.3)
    profile = Profile(cores=12, workload=work, rates=run.rates) if is_profiled else None
    policy = make_policy(name, num_cores=12, seed=0, profile=profile)
    controller = Controller(policy=policy, cycles=200, num_cores=12, prefetch=prefetch, profile=profile)
    ends = sorted((span.end, span.task.value, span.task) for span in simulate(run, "static:3", record=True).spans)
    seconds = []
    for event in (Started(time=0.0), *(TaskDone(task=task, time=end) for end, _, task in ends)):
        started = time.perf_counter()
        decision = controller.handle(event)
        elapsed = time.perf_counter() - started
        if decision.reason is Reason.POLICY:
            seconds.append(1e3 * elapsed)
    first, *rest = seconds
    return {"median_ms": statistics.median(seconds), "first_ms": first, "worst_of_the_rest_ms": max(rest)}


class SimpyRun:
    """`static:<c>` in SimPy: one process per side, interrupted when its rate changes."""

    def __init__(self, run: Scenario, comm_cores: int) -> None:
        self.rates, self.split, self.cycles = run.rates, comm_cores, run.cycles
        self.comm, self.comp = run.works.tasks(0, run.cycles)
        self.env = simpy.Environment()
        self.done = {"comm": 0, "comp": 0}
        self.workers: dict[str, simpy.Process] = {}

    def rate(self, side: str) -> float:
        """Return the rate of a side under Eq. 13, and under the split where Eq. 13 leaves a choice."""
        split = self.split
        if self.done["comm"] < (self.done["comp"] + 1) // 2:
            split = self.rates.num_cores
        elif self.done["comm"] == self.cycles:
            split = 0
        return (self.rates.comm if side == "comm" else self.rates.comp)[split]

    def work(self, side: str, works: list[float]) -> Generator[simpy.Event, None, None]:
        for left in works:
            while left > 0:
                rate, started = self.rate(side), self.env.now
                try:
                    yield self.env.timeout(left / rate) if rate else self.env.event()
                    left = 0.0
                except simpy.Interrupt:
                    left -= rate * (self.env.now - started)
            before = [self.rate(name) for name in self.workers]
            self.done[side] += 1
            for name, was in zip(self.workers, before, strict=True):
                if name != side and self.rate(name) != was and self.workers[name].is_alive:
                    self.workers[name].interrupt()

    def makespan(self) -> float:
        self.workers = {
            "comm": self.env.process(self.work("comm", self.comm)),
            "comp": self.env.process(self.work("comp", self.comp)),
        }
        self.env.run(self.workers["comp"])
        return float(self.env.now)


def measure_simpy(repeats: int) -> dict[str, float]:
    """Measure one run of 5,000 cycles on 12 cores under static:2, in this simulator and in SimPy. The makespans must agree."""
    run = scenario(5_000)
    simulated, reference = simulate(run, "static:2"), SimpyRun(run, 2).makespan()
    assert abs(simulated.makespan - reference) < 1e-9 * reference, (simulated.makespan, reference)
    seconds = {
        "edgekd_s": median_seconds(lambda: simulate(run, "static:2"), repeats),
        "simpy_s": median_seconds(lambda: SimpyRun(run, 2).makespan(), repeats),
    }
    return {**seconds, "makespan": simulated.makespan, "simpy_events_per_s": simulated.num_events / seconds["simpy_s"]}


def measure(settings: Settings) -> dict[str, Any]:
    repeats = settings.repeats
    hundred, random_runs = scenario(100), scenario(200)
    comm, comp = hundred.works.tasks(0, 100)
    return {
        "bound_and_plan_of_a_million_cycles": measure_bounds(repeats),
        "events_per_s": measure_events(repeats),
        "thousand_random_runs_s": median_seconds(lambda: random_makespans(random_runs, runs=1000, seed=0), repeats),
        "dynamic_of_100_cycles_s": median_seconds(lambda: solve(comm=comm, comp=comp, rates=hundred.rates), repeats),
        "live_decisions": {
            f"{name}, {'profile' if is_profiled else 'learnt rates'}, prefetch {prefetch}": measure_live(
                name, is_profiled=is_profiled, prefetch=prefetch
            )
            for name in ("dynamic", "adaptive")
            for is_profiled in (True, False)
            for prefetch in (None, 8)
        },
        "single_run_beside_simpy": measure_simpy(repeats),
    }


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="simulator.py", description=__doc__ or "")
    results = {"simpy": simpy.__version__, "results": measure(settings)}
    print(json.dumps(results, indent=2))
    write_results(settings.json, cores=tuple(sorted(os.sched_getaffinity(0))), settings=settings, results=results)


if __name__ == "__main__":
    main()
