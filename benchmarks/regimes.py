"""Compares the policies, a plain torch program and other checkouts in a grid of regimes.

A regime is a student, the bytes of logits per batch, the rate of the link, and the number of neighbours: processes that run
`while True: pass`. Its name ends with +1 for one neighbour. In each repeat every contestant trains once, as a process of its own
against the same teacher, in an order that rotates by one per repeat. The teacher has all logits computed, one thread, and the
lowest core under every policy. A "balanced" link delivers a batch in the time of a training step with one team of threads, which is
measured first on this machine. A "bottleneck" has half that rate. links.py limits the rate.

    python benchmarks/regimes.py [--repeats 5] [--students cnn,resnet18] [--comm light,1MB,5MB] [--links unlimited,balanced]
        [--neighbours 0,1] [--other before=../edgekd-old:dynamic] [--json FILE] [--figure FILE.png]

The contestant `plain` is plain_script.py. Its clock includes the connection and the first step, which `edge-student train` does
before its clock starts. The cycles of a regime are those that os-default trains in `--seconds` without neighbours. With neighbours
they are the same, so a run takes longer. Each run also takes 3 to 4 s to start. Run it on a quiet machine.
"""

import contextlib
import math
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from contestants import PLAIN, Contestant, contestants
from links import Link
from neighbours import neighbours
from regime_report import draw, print_tables, rows_of, summarize

from edge_student.host.disturbance import DISTURBED
from edge_student.measure.result_file import write_results
from edge_student.report.verdict import BASELINE
from edgekd.cli.command import parse
from scheduler.live.threads import allowed_cores
from scheduler.policies.registry import make_policy

CORES = tuple(sorted(allowed_cores()))
_BEST_OF, _STEPS_S = 3, 1.0  # runs that measure a step, and their least seconds
_FIRST_CYCLES, _PROBE = 10, 1 / 8  # the run that determines the cycles takes at least this part of --seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    repeats: int = 5
    """Runs of each contestant in each cell."""
    seconds: float = 8.0
    """Approximate seconds of a run of os-default without neighbours. They must be many compared with the learning of adaptive."""
    students: str = "cnn,mobilenet_v3_small,resnet18"
    """Students, comma-separated: these three, or any --model of edge-student."""
    comm: str = "light,1MB,5MB"
    """Bytes of logits per batch, comma-separated: light (100 classes), 1MB, 5MB."""
    links: str = "unlimited,balanced"
    """Rates of the link, comma-separated: unlimited, balanced, bottleneck."""
    neighbours: str = "0,1"
    """Numbers of busy processes beside the runs, comma-separated."""
    policies: str = "os-default,os-tuned,os-workers,static:1,compute-first,dynamic,adaptive"
    """Policies to compare, comma-separated."""
    other: str | None = None
    """Policies of other checkouts to compare, comma-separated: NAME=PATH:POLICY."""
    json: Path | None = None
    """Result file."""
    figure: Path | None = None
    """File of the heat map, .png or .svg."""

    def __post_init__(self) -> None:
        for flag, text, allowed in (("--comm", self.comm, BYTES), ("--links", self.links, RATES)):
            for name in text.split(","):
                if name not in allowed:
                    raise ValueError(f"{flag} has {name!r}, must be one of {', '.join(allowed)}")
        if not all(count.isdecimal() for count in self.neighbours.split(",")):
            raise ValueError(f"--neighbours is {self.neighbours}, must be numbers, comma-separated")
        for name in self.policies.split(","):
            make_policy(name, num_cores=len(CORES), seed=0)  # rejects an unknown or impossible policy


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A student model, its batch sizes and its input. The defaults are those of a --model that is not in STUDENTS."""

    model: str
    batch_size: int = 16
    public_batch: int = 32
    size: int = 32
    channels: int = 3


STUDENTS = {
    "cnn": Student(model="cnn", public_batch=64, size=28, channels=1),
    "mobilenet_v3_small": Student(model="torchvision:mobilenet_v3_small"),
    "resnet18": Student(model="torchvision:resnet18"),
}
BYTES = {"light": None, "1MB": 1_000_000, "5MB": 5_000_000}  # 1MB is the load of the paper's Raspberry Pi
_LIGHT_CLASSES = 100
RATES = {"unlimited": None, "balanced": 1.0, "bottleneck": 0.5}  # in batches per step


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One regime, with the rate of its link and its number of cycles."""

    student: str
    comm: str
    link: str = "unlimited"
    rate_mbit: float | None = None
    neighbours: int = 0
    cycles: int = 0

    @property
    def name(self) -> str:
        return f"{self.student}-{self.comm}-{self.link}" + (f"+{self.neighbours}" if self.neighbours else "")

    @property
    def spec(self) -> Student:
        return STUDENTS.get(self.student) or Student(model=self.student)

    @property
    def classes(self) -> int:
        """Number of classes, each a float32 in every row of a batch."""
        num_bytes = BYTES[self.comm]  # thousands of classes make the student's last layer large, which lengthens its step too
        return _LIGHT_CLASSES if num_bytes is None else round(num_bytes / (4 * self.spec.public_batch))

    @property
    def batch_bytes(self) -> int:
        return 4 * self.spec.public_batch * self.classes

    @property
    def dataset(self) -> str:
        return f"synthetic:classes={self.classes},size={self.spec.size},samples=1024,channels={self.spec.channels}"

    def flags(self) -> list[str]:
        """Return the flags that edge-student and plain_script.py share."""
        flags = ["--private", f"{self.dataset}:private", "--model", self.spec.model, "--cycles", str(self.cycles)]
        return [*flags, "--batch-size", str(self.spec.batch_size), "--public-batch", str(self.spec.public_batch)]


def long_enough(seconds_of: Callable[[int], float], least_s: float) -> tuple[int, float]:
    """Return a number of cycles that takes at least `least_s`, and its seconds. `seconds_of` runs a number of cycles."""
    cycles = _FIRST_CYCLES
    while (seconds := seconds_of(cycles)) < least_s:
        cycles = math.ceil(cycles * min(10, 1.5 * least_s / seconds))
    return cycles, seconds


def step_s(cell: Cell, link: Link, store: Path) -> float:
    """Measure the seconds of a training step with one team, without concurrent comm: the mean step of the best of several runs."""
    with link.teacher(CORES[0], cell.dataset, None, store) as address:

        def seconds_of(cycles: int) -> float:
            alone = ["--prefetch", str(cycles), "--ring-mib", "4096", "--shards", "1"]
            probe = Contestant(name="the run that measures a step", policy="comm-priority")
            result = probe.run(address, replace(cell, cycles=cycles).flags(), alone)
            return float(result["forward_s"] + result["backward_s"])

        cycles, seconds = long_enough(seconds_of, _STEPS_S)
        return min(seconds, *(seconds_of(cycles) for _ in range(_BEST_OF - 1))) / cycles


def cycles_for(cell: Cell, address: str, seconds: float) -> int:
    """Return the number of cycles that os-default trains in about `seconds`."""

    def seconds_of(cycles: int) -> float:
        result = Contestant(name=BASELINE, policy=BASELINE).run(address, replace(cell, cycles=cycles).flags())
        return float(result["wall_clock_s"])

    cycles, measured_s = long_enough(seconds_of, _PROBE * seconds)
    return max(round(seconds * cycles / measured_s), _FIRST_CYCLES)


def measure_grid(settings: Settings, link: Link, folder: Path) -> Generator[dict[str, Any], None, None]:
    """Measure and yield each cell. The quiet cell of a regime comes first."""
    counts = sorted({int(count) for count in settings.neighbours.split(",")})
    for number, (student, comm) in enumerate(product(settings.students.split(","), settings.comm.split(","))):
        free, balanced, store = Cell(student=student, comm=comm), math.nan, folder / str(number)
        if settings.links != "unlimited":
            seconds = step_s(free, link, store)
            balanced = 8e-6 * free.batch_bytes / seconds
            print(f"{free.name}: a step takes {seconds * 1e3:.1f} ms, balanced is {balanced:.2f} Mbit/s", file=sys.stderr)
        for name in settings.links.split(","):
            part, quiet = RATES[name], None
            cell = replace(free, link=name, rate_mbit=None if part is None else part * balanced)
            with link.teacher(CORES[0], cell.dataset, cell.rate_mbit, store) as address:
                cell = replace(cell, cycles=cycles_for(cell, address, settings.seconds))
                for count in counts:
                    result = measure(replace(cell, neighbours=count), settings, address)
                    quiet = result if count == 0 else quiet
                    yield {**result, "rows": rows_of(result, quiet)}


def measure(cell: Cell, settings: Settings, address: str) -> dict[str, Any]:
    """Run every contestant in every repeat. Returns the cell's settings, and the wall-clocks in the order of repeats."""
    order = contestants(settings.policies, settings.other)
    runs: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in order}
    with neighbours(cell.neighbours):
        for repeat in range(settings.repeats):
            first = repeat % len(order)
            for contestant in (*order[first:], *order[:first]):
                runs[contestant.name].append(contestant.run(address, cell.flags()))
    clocks = {name: [run["wall_clock_s"] for run in found] for name, found in runs.items()}
    policies = settings.policies.split(",")
    notes = [run.get("notes", ()) for found in runs.values() for run in found]
    return {
        "name": cell.name,
        "settings": {**asdict(cell), "batch_bytes": cell.batch_bytes, "dataset": cell.dataset, "flags": cell.flags()},
        "policies": {name: clocks[name] for name in policies},
        "others": {name: seconds for name, seconds in clocks.items() if name not in policies},
        "commits": {name: found[0]["software"]["commit"] for name, found in runs.items() if name not in (PLAIN, *policies)},
        "comm_cpu_share": comm_cpu_share(runs.get(BASELINE, ())),
        "num_disturbed": sum(any(note.startswith(DISTURBED) for note in found) for found in notes),
        "num_runs": len(notes),
    }


def comm_cpu_share(runs: Sequence[dict[str, Any]]) -> float | None:
    """Return comm's CPU seconds per second of training tasks, the median of the runs, or None without a run."""
    shares = [run["comm_cpu_s"] / (run["forward_s"] + run["backward_s"]) for run in runs]
    return float(np.median(shares)) if shares else None


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="regimes.py", description="Compare policies in a grid of regimes.")
    contestants(settings.policies, settings.other)  # rejects mistakes before the first measurement
    results: list[dict[str, Any]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that SIGTERM ends the neighbours and the namespace too
    with (
        tempfile.TemporaryDirectory() as name,
        Link() as link,
        contextlib.closing(measure_grid(settings, link, Path(name))) as grid,
    ):
        for result in grid:
            results.append(result)
            base = f"vs {PLAIN}"
            shown = ", ".join(f"{contestant} {row[base]:.2f}" for contestant, row in result["rows"].items())
            print(f"{result['name']}, {base}: {shown}", file=sys.stderr, flush=True)
            save(settings, results, link)
    print_tables(results)
    if settings.figure is not None:
        draw(results, settings.figure)


def save(settings: Settings, results: list[dict[str, Any]], link: Link) -> None:
    """Write the results so far, so that an interrupted grid keeps its cells."""
    report = {
        "link": "veth and tc tbf between network namespaces" if link.is_namespace else "the teacher's --rate-limit",
        "teacher": f"logits precomputed, one thread on core {CORES[0]} under every policy",
        "cells": results,
        "summary": summarize(results),
    }
    write_results(settings.json, cores=CORES, settings=settings, results=report)


if __name__ == "__main__":
    main()
