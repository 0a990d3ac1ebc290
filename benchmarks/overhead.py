"""Overhead of the orchestration for a small training step: the trainer under the scheduler, compared with the bare training loop.

Both loops run the same step on the same cores and threads, in one process, interleaved (bare, orchestrated, orchestrated,
bare, ...). The orchestrated loop has all parts of a run: comm worker process, ring, controller, binding and log. It is timed after
comm has ended, so only the compute worker is compared. Its logits are in the ring, those of the bare loop in an array. A run's
result is its median step, which excludes steps that other virtual machines of the host interrupt.

    python benchmarks/overhead.py [--pairs 15] [--cycles 100] [--json FILE]
"""

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from links import configure
from scipy import stats

from edge_student.host.environment import settle
from edgekd.cli.command import parse

CORES = settle(os.environ, None)

from edge_student.events.buffer import EventBuffer  # noqa: E402
from edge_student.ipc.ring import Ring, RingShape  # noqa: E402
from edge_student.measure.local_teacher import serve_local_teacher  # noqa: E402
from edge_student.measure.result_file import write_results  # noqa: E402
from edge_student.run.worker_process import CommWorkerProcess  # noqa: E402
from edge_student.settings.student import CompareConfig  # noqa: E402
from edge_student.training.recipe import Recipe  # noqa: E402
from edge_student.training.team_trainer import TeamTrainer  # noqa: E402
from edge_student.training.torch_team import TorchTeam  # noqa: E402
from edge_student.training.trainer import BatchSource, Schedule, Trainer  # noqa: E402
from edgekd.data.datasets import load_dataset  # noqa: E402
from edgekd.models.build import build_model  # noqa: E402
from scheduler.control.controller import Controller  # noqa: E402
from scheduler.live.binding import CommBinding, TeamBinding  # noqa: E402
from scheduler.live.loop import SchedulerLoop  # noqa: E402
from scheduler.model.state import Task  # noqa: E402
from scheduler.policies.registry import make_policy  # noqa: E402

_COMM_LIMIT_S = 60.0
PUBLIC_BATCH, PRIVATE_BATCH, NUM_CLASSES = 128, 32, 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Measure the overhead of the orchestration for a small training step."""

    pairs: int = 15
    """Pairs of one bare and one orchestrated run."""
    cycles: int = 100
    """Steps in each run."""
    size: int = 20
    """Width and height of the images in pixels, which determine the duration of a step."""
    policy: str = "dynamic"
    """Policy of the orchestrated runs."""
    json: Path | None = None
    """Result file."""


class Bare:
    """A schedule that does nothing."""

    def task(self, task: Task) -> AbstractContextManager[None]:
        return nullcontext()


class InMemory:
    """A source of logits in an array."""

    def __init__(self) -> None:
        self._logits = np.zeros((PUBLIC_BATCH, NUM_CLASSES), np.float32)

    def logits(self, batch_index: int) -> npt.NDArray[np.float32]:
        return self._logits


def dataset(size: int) -> str:
    return f"synthetic:classes={NUM_CLASSES},size={size},samples=1024"


def make_trainer(size: int) -> Trainer:
    private, public = load_dataset(f"{dataset(size)}:private"), load_dataset(f"{dataset(size)}:public")
    student = build_model("cnn", num_classes=NUM_CLASSES, input_shape=private.inputs.shape[1:], seed=0)
    recipe = Recipe(alpha=0.1, temperature=4, lr=0.01, batch_size=PRIVATE_BATCH, public_batch=PUBLIC_BATCH, seed=0, device="cpu")
    trainer = TeamTrainer(student=student, private=private, public=public, recipe=recipe)
    trainer.warm_up(NUM_CLASSES)
    return trainer


def median_step_s(trainer: Trainer, cycles: int, schedule: Schedule, source: BatchSource) -> float:
    """Return the median seconds from the end of one cycle to the end of the next."""
    ends: list[float] = []
    trainer.train(cycles, schedule, source, lambda done: ends.append(time.perf_counter()))
    return statistics.median(later - earlier for earlier, later in pairwise(ends))


def time_bare(settings: Settings) -> float:
    """Return the seconds per step of the bare loop."""
    trainer, source = make_trainer(settings.size), InMemory()
    return median_step_s(trainer, settings.cycles, Bare(), source)


def time_orchestrated(settings: Settings, address: str) -> float:
    """Return the seconds per step of the orchestrated loop, after comm has ended."""
    trainer = make_trainer(settings.size)
    cycles = settings.cycles
    with CommWorkerProcess(configure(address, batch_size=PUBLIC_BATCH)) as worker:
        worker.await_description()
        ring = Ring.create(RingShape(num_slots=cycles, batch_size=PUBLIC_BATCH, num_classes=NUM_CLASSES))
        worker.use_ring(ring, start=0, stop=cycles)
        policy = make_policy(settings.policy, num_cores=len(CORES), seed=0)
        loop = SchedulerLoop(
            controller=Controller(policy=policy, cycles=cycles, num_cores=len(CORES)),
            cores=CORES,
            comm_port=worker,
            comm_binding=CommBinding(worker.pid),
            comp_binding=TeamBinding(TorchTeam(), max_threads=len(CORES)),
            record=EventBuffer().record,
        )
        try:
            loop.start()
            deadline = time.monotonic() + _COMM_LIMIT_S
            while not loop.comm_has_ended:
                if time.monotonic() > deadline:
                    raise SystemExit(f"comm did not end within {_COMM_LIMIT_S} s; does --policy {settings.policy} hold it?")
                time.sleep(0.01)
            return median_step_s(trainer, cycles, loop, ring)
        finally:
            loop.finish()
            ring.close()


def bootstrap_ci95(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % percentile-bootstrap interval of the median, or None for fewer than two values.

    It is too narrow for few values (docs/decisions/012), so comparisons use `median_interval`.
    """
    if len(values) < 2:
        return None
    if min(values) == max(values):
        return (values[0], values[0])
    result = stats.bootstrap(
        (np.asarray(values),),
        np.median,
        n_resamples=9999,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    return (float(result.confidence_interval.low), float(result.confidence_interval.high))


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="overhead.py", description="Overhead of the orchestration for a small step.")
    bare, orchestrated = [], []
    gc.freeze()  # as in a run
    config = CompareConfig(private=f"{dataset(settings.size)}:private", out=Path(), log_level="error", teacher_model="cnn:width=4")
    with serve_local_teacher(config, CORES[0]) as address:
        for pair in range(settings.pairs):
            runs = [lambda: bare.append(time_bare(settings)), lambda: orchestrated.append(time_orchestrated(settings, address))]
            for run in runs if pair % 2 == 0 else reversed(runs):
                run()
    ratios = [with_all / alone for with_all, alone in zip(orchestrated, bare, strict=True)]
    results = {
        "bare_step_s": bare,
        "orchestrated_step_s": orchestrated,
        "median_bare_step_s": statistics.median(bare),
        "median_orchestrated_step_s": statistics.median(orchestrated),
        "median_ratio": statistics.median(ratios),
        "ratio_ci95": bootstrap_ci95(ratios),
    }
    print(json.dumps(results, indent=2))
    write_results(settings.json, cores=CORES, settings=settings, results=results)


if __name__ == "__main__":
    main()
