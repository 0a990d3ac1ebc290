"""Delay of decisions in steps of seconds: compute that moves between layers, compared with compute that moves between tasks only.

A student trains on two or more cores while a comm worker receives several batches per step over a slow link. The policy alternates
with every batch. The log of the run gives the delay of each decision that changed compute's cores during a task: the seconds until
compute was bound to them ("comp-bound"). If compute moves between tasks only, the next decision supersedes most of them before they
take effect, and the rest have short delays because they were made late in a task. So the second result is the fraction of time
that compute spent on other cores than decided.
Finally, two short runs with one thread check that the weights are equal bit for bit.

    python benchmarks/takeover.py [--cycles 8] [--rounds 2] [--json FILE]
"""

import json
import os
import statistics
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from links import configure

from edge_student.host.environment import settle
from edgekd.cli.command import parse

CORES = settle(os.environ, None)

import torch  # noqa: E402

from edge_student.events.buffer import EventBuffer, Record  # noqa: E402
from edge_student.ipc.ring import Ring, RingShape  # noqa: E402
from edge_student.measure.local_teacher import serve_local_teacher  # noqa: E402
from edge_student.measure.result_file import write_results  # noqa: E402
from edge_student.run.worker_process import CommWorkerProcess  # noqa: E402
from edge_student.settings.student import CompareConfig  # noqa: E402
from edge_student.training.recipe import Recipe  # noqa: E402
from edge_student.training.team_trainer import TeamTrainer  # noqa: E402
from edge_student.training.torch_team import TorchTeam  # noqa: E402
from edgekd.data.datasets import load_dataset  # noqa: E402
from edgekd.data.models import build_model, weights_digest  # noqa: E402
from scheduler.control.controller import Controller  # noqa: E402
from scheduler.live.binding import CommBinding, CompBinding  # noqa: E402
from scheduler.live.loop import SchedulerLoop  # noqa: E402
from scheduler.model.state import COMPUTE_FIRST, Allocation, Task  # noqa: E402
from scheduler.policies.view import View  # noqa: E402

NUM_CLASSES = 10
_NUM_BATCHES = 1000  # more than comm can receive, so it never ends and never fills the ring
_SMALL = {"batch": 8, "cycles": 2}  # enough to compare weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Measure the delay until a new allocation takes effect in a step of seconds."""

    model: str = "torchvision:resnet18"
    """Student model."""
    size: int = 128
    """Width and height of the images in pixels."""
    batch: int = 48
    """Private samples per step; the number of public samples is the same."""
    rate_limit: str = "24kbit"
    """Payload rate of the teacher, which determines the batches received per step."""
    cycles: int = 8
    """Training steps of each run."""
    rounds: int = 2
    """Pairs of runs, one of each kind."""
    json: Path | None = None
    """Result file."""


class Alternating:
    """Alternates with every batch: all cores but one for compute, then all cores, with comm at idle priority."""

    name = "alternating"
    is_work_conserving = True
    needs_rates = False

    def choose(self, view: View) -> Allocation:
        is_split = view.num_comm % 2 == 0
        return Allocation.split(1, view.num_cores) if is_split else Allocation.sharing(COMPUTE_FIRST, view.num_cores)


class TasksOnly:
    """A schedule that moves compute between tasks, never between layers."""

    def __init__(self, loop: SchedulerLoop) -> None:
        self._loop = loop

    def task(self, task: Task) -> AbstractContextManager[None]:
        return self._loop.task(task)

    def between_layers(self) -> None:
        pass


def dataset(settings: Settings, split: str) -> str:
    return f"synthetic:classes={NUM_CLASSES},size={settings.size},samples=512:{split}"


def make_trainer(settings: Settings) -> TeamTrainer:
    private, public = load_dataset(dataset(settings, "private")), load_dataset(dataset(settings, "public"))
    student = build_model(settings.model, num_classes=NUM_CLASSES, input_shape=private.images.shape[1:], seed=0)
    batch = settings.batch
    recipe = Recipe(alpha=0.1, temperature=4, lr=0.01, momentum=0.9, batch_size=batch, public_batch=batch, seed=0, device="cpu")
    trainer = TeamTrainer(student=student, private=private, public=public, recipe=recipe)
    trainer.warm_up(NUM_CLASSES)
    return trainer


def run(settings: Settings, address: str, *, between_layers: bool, threads: int) -> dict[str, Any]:
    """Train the first cycles of a long run. Returns results of its log, and the digest of its weights."""
    print(f"{settings.cycles} cycles, {threads} threads, between layers: {between_layers}", file=sys.stderr)
    torch.set_num_threads(threads)
    trainer, buffer, batch = make_trainer(settings), EventBuffer(), settings.batch
    with CommWorkerProcess(configure(address, batch_size=batch, niceness=19, is_idle=True)) as worker:
        worker.await_description()
        ring = Ring.create(RingShape(num_slots=_NUM_BATCHES, batch_size=batch, num_classes=NUM_CLASSES))
        worker.use_ring(ring, start=0, stop=_NUM_BATCHES)
        loop = SchedulerLoop(
            controller=Controller(policy=Alternating(), cycles=_NUM_BATCHES, num_cores=len(CORES), comp_moves_at_boundaries=True),
            cores=CORES,
            comm_port=worker,
            comm_binding=CommBinding(worker.pid),
            comp_binding=CompBinding(TorchTeam(), max_threads=threads),
            record=buffer.record,
        )
        try:
            started = time.monotonic()
            loop.start()
            trainer.train(settings.cycles, loop if between_layers else TasksOnly(loop), ring, lambda done: None)
            wall_clock_s = time.monotonic() - started
        finally:
            loop.finish()
            ring.close()
    return {
        "between_layers": between_layers,
        "wall_clock_s": wall_clock_s,
        "task_s": {task: median_task_s(buffer.records, task) for task in ("forward", "backward", "comm")},
        **takeovers(buffer.records),
        "binding_refusals": loop.binding_refusals,
        "weights": weights_digest(settings.model, trainer.student),
    }


def median_task_s(records: list[Record], task: str) -> float:
    return statistics.median(record["ended"] - record["started"] for record in records if record.get("task") == task)


def takeovers(records: list[Record]) -> dict[str, Any]:
    """Count the decisions that changed compute's cores during a task, and list the delays of those that took effect."""
    decisions = sorted((record for record in records if record["event"] == "decision"), key=lambda record: record["time"])
    tasks = [record for record in records if record.get("task") in ("forward", "backward")]

    def is_in_task(time_s: float) -> bool:
        return any(task["started"] < time_s < task["ended"] for task in tasks)

    num_decided = sum(
        before["requested"]["comp"] != after["requested"]["comp"] and is_in_task(after["time"])
        for before, after in pairwise(decisions)
    )
    bound = [record for record in records if record["event"] == "comp-bound" and is_in_task(record["decided"])]
    return {
        "num_wanted": num_decided,
        "part_on_other_cores": part_on_other_cores(records),
        "delays_s": sorted(record["time"] - record["decided"] for record in bound),
    }


def part_on_other_cores(records: list[Record]) -> float:
    """Return the fraction of time since compute was first bound in which it was not on the cores of the last decision."""
    changes = sorted(
        (record for record in records if record["event"] in ("decision", "comp-bound")), key=lambda record: record["time"]
    )
    decided: list[int] = []
    bound: list[int] | None = None
    differing_s = total_s = 0.0
    for change, following in pairwise(changes):
        if change["event"] == "decision":
            decided = change["requested"]["comp"]
        else:
            bound = change["cores"]
        if bound is not None:
            total_s += following["time"] - change["time"]
            differing_s += (following["time"] - change["time"]) * (bound != decided)
    return differing_s / total_s


def summarise(runs: list[dict[str, Any]], between_layers: bool) -> dict[str, Any]:
    """Summarize the delays of all runs of one kind, in seconds."""
    selected = [run for run in runs if run["between_layers"] is between_layers]
    delays = sorted(delay for run in selected for delay in run["delays_s"])
    if not delays:
        raise SystemExit("no decision took effect during a step: increase --rate-limit, or lengthen the steps with --size")
    return {
        "between_layers": between_layers,
        "num_wanted": sum(run["num_wanted"] for run in selected),
        "num_obeyed": len(delays),
        "median_delay_s": statistics.median(delays),
        "ninety_percent_delay_s": delays[min(len(delays) - 1, int(0.9 * len(delays)))],
        "worst_delay_s": delays[-1],
        "part_on_other_cores": statistics.median(run["part_on_other_cores"] for run in selected),
        "median_wall_clock_s": statistics.median(run["wall_clock_s"] for run in selected),
    }


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="takeover.py", description="Delay until a decision takes effect.")
    config = CompareConfig(
        private=dataset(settings, "private"),
        out=Path(),
        log_level="error",
        teacher_model="cnn:width=4",
        rate_limit=settings.rate_limit,
    )
    with serve_local_teacher(config, CORES[0]) as address:
        orders = [(True, False) if number % 2 == 0 else (False, True) for number in range(settings.rounds)]
        runs = [run(settings, address, between_layers=kind, threads=len(CORES)) for order in orders for kind in order]
        small = replace(settings, **_SMALL)
        alone = [run(small, address, between_layers=kind, threads=1) for kind in (True, False)]
    results = {
        "summary": [summarise(runs, kind) for kind in (True, False)],
        "weights_are_equal_with_one_thread": alone[0]["weights"] == alone[1]["weights"],
        "runs": runs,
        "runs_with_one_thread": alone,
    }
    print(json.dumps({key: value for key, value in results.items() if not key.startswith("runs")}, indent=2))
    write_results(settings.json, cores=CORES, settings=settings, results=results)


if __name__ == "__main__":
    main()
