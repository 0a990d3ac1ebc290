"""How long a decision takes to reach compute when a step lasts seconds: moved between layers, against moved between tasks only.

A real student trains on two cores and more while a real comm worker receives over a slow link, several batches a step. The policy
changes its mind with every batch. What is told comes from the log of the run: for each decision that gave compute other cores in
the middle of a task, the seconds until compute was bound to them ("comp-bound"). Where compute moves between tasks only, most such
decisions are overtaken by the next one and never take effect, and those that do were lucky to come late. So the second figure is
the part of the time that compute spent on other cores than it was meant to have.
At the end two short runs with one thread tell whether the weights are the same, bit by bit.

    python benchmarks/takeover.py [--cycles 8] [--rounds 2] [--json FILE]
"""

import json
import os
import statistics
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from links import configure

from edge_student.host.environment import settle
from edgekd.cli.command import parse

CORES = settle(os.environ, None)

import torch  # noqa: E402

from edge_student.events.buffer import EventBuffer, Record  # noqa: E402
from edge_student.host.provenance import describe_measurement  # noqa: E402
from edge_student.ipc.ring import Ring, RingShape  # noqa: E402
from edge_student.measure.local_teacher import embedded_teacher  # noqa: E402
from edge_student.run.worker_process import CommWorkerProcess  # noqa: E402
from edge_student.settings.student import CompareConfig, jsonable  # noqa: E402
from edge_student.training.trainer import Recipe, TorchTeam, Trainer  # noqa: E402
from edgekd.data.datasets import load_dataset  # noqa: E402
from edgekd.data.models import build_model, weights_digest  # noqa: E402
from edgekd.files import write_json  # noqa: E402
from scheduler.control.controller import Controller  # noqa: E402
from scheduler.live.binding import CommBinding, CompBinding  # noqa: E402
from scheduler.live.loop import SchedulerLoop  # noqa: E402
from scheduler.model.state import COMPUTE_FIRST, Allocation, Task  # noqa: E402
from scheduler.policies.view import View  # noqa: E402

NUM_CLASSES = 10
_NUM_BATCHES = 1000  # more than comm can receive: it never ends, and never has a full buffer
_SMALL = {"batch": 8, "cycles": 2}  # enough to compare weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Measure how long a new allocation takes to reach compute in a step of seconds."""

    model: str = "torchvision:resnet18"
    """Student."""
    size: int = 128
    """Width and height of the images."""
    batch: int = 48
    """Private samples in a step, and as many public ones."""
    rate_limit: str = "24kbit"
    """Payload rate of the teacher, which sets how many batches arrive in a step."""
    cycles: int = 8
    """Steps in each run."""
    rounds: int = 2
    """Pairs of one run of either kind."""
    json: Path | None = None
    """File for the results."""


class Alternating:
    """Gives compute all but one core and every core in turn, from batch to batch; comm runs behind it in the second case."""

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


def make_trainer(settings: Settings) -> Trainer:
    private, public = load_dataset(dataset(settings, "private")), load_dataset(dataset(settings, "public"))
    student = build_model(settings.model, num_classes=NUM_CLASSES, input_shape=private.images.shape[1:], seed=0)
    batch = settings.batch
    recipe = Recipe(alpha=0.1, temperature=4, lr=0.01, momentum=0.9, batch_size=batch, public_batch=batch, seed=0, device="cpu")
    trainer = Trainer(student=student, private=private, public=public, recipe=recipe)
    trainer.warm_up(NUM_CLASSES)
    return trainer


def run(settings: Settings, address: str, *, between_layers: bool, threads: int) -> dict[str, Any]:
    """Train a few cycles of a long run; what its log and its weights say."""
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
    """Of the decisions that wanted other cores for compute in the middle of a task: how many, and the delays of those obeyed."""
    decisions = sorted((record for record in records if record["event"] == "decision"), key=lambda record: record["time"])
    tasks = [record for record in records if record.get("task") in ("forward", "backward")]

    def is_in_task(time_s: float) -> bool:
        return any(task["started"] < time_s < task["ended"] for task in tasks)

    num_wanted = sum(
        before["requested"]["comp"] != after["requested"]["comp"] and is_in_task(after["time"])
        for before, after in pairwise(decisions)
    )
    bound = [record for record in records if record["event"] == "comp-bound" and is_in_task(record["decided"])]
    return {
        "num_wanted": num_wanted,
        "part_on_other_cores": part_on_other_cores(records),
        "delays_s": sorted(record["time"] - record["decided"] for record in bound),
    }


def part_on_other_cores(records: list[Record]) -> float:
    """Of the time since compute was first bound, the part in which it was not where the last decision wanted it."""
    marks = sorted(
        (record for record in records if record["event"] in ("decision", "comp-bound")), key=lambda record: record["time"]
    )
    wanted: list[int] = []
    bound: list[int] | None = None
    apart = total = 0.0
    for mark, following in pairwise(marks):
        if mark["event"] == "decision":
            wanted = mark["requested"]["comp"]
        else:
            bound = mark["cores"]
        if bound is not None:
            total += following["time"] - mark["time"]
            apart += (following["time"] - mark["time"]) * (bound != wanted)
    return apart / total


def summarise(runs: list[dict[str, Any]], between_layers: bool) -> dict[str, Any]:
    """Delays of all runs of one kind together, in seconds."""
    mine = [run for run in runs if run["between_layers"] is between_layers]
    delays = sorted(delay for run in mine for delay in run["delays_s"])
    if not delays:
        raise SystemExit("no decision took effect in the middle of a step; are the steps too short for this --rate-limit?")
    return {
        "between_layers": between_layers,
        "num_wanted": sum(run["num_wanted"] for run in mine),
        "num_obeyed": len(delays),
        "median_delay_s": statistics.median(delays),
        "ninety_percent_delay_s": delays[min(len(delays) - 1, int(0.9 * len(delays)))],
        "worst_delay_s": delays[-1],
        "part_on_other_cores": statistics.median(run["part_on_other_cores"] for run in mine),
        "median_wall_clock_s": statistics.median(run["wall_clock_s"] for run in mine),
    }


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="takeover.py", description="How long a decision takes to reach compute.")
    config = CompareConfig(
        private=dataset(settings, "private"),
        out=Path(),
        log_level="error",
        teacher_model="cnn:width=4",
        rate_limit=settings.rate_limit,
    )
    with embedded_teacher(config, CORES[0]) as address:
        orders = [(True, False) if number % 2 == 0 else (False, True) for number in range(settings.rounds)]
        runs = [run(settings, address, between_layers=kind, threads=len(CORES)) for order in orders for kind in order]
        small = replace(settings, **_SMALL)
        alone = [run(small, address, between_layers=kind, threads=1) for kind in (True, False)]
    report = {
        **describe_measurement(sys.argv, CORES),
        "settings": jsonable(asdict(settings)),
        "summary": [summarise(runs, kind) for kind in (True, False)],
        "weights_are_equal_with_one_thread": alone[0]["weights"] == alone[1]["weights"],
        "runs": runs,
        "runs_with_one_thread": alone,
    }
    print(json.dumps({key: value for key, value in report.items() if not key.startswith("runs")}, indent=2))
    if settings.json is not None:
        write_json(settings.json, report)


if __name__ == "__main__":
    main()
