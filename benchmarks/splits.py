"""How cores are split where there are more than two: every policy and some fixed splits on 4, 8 and 12 cores, within a budget.

The edge has the machine's highest cores. A teacher of its own, all its logits computed before, has the lowest of those that no
edge uses, four at most and the same under every policy and every number of cores; where none is left, the machine's lowest. It is
on loopback, so that the kernel's part of receiving is paid partly on its cores. A turn is one `edge-student compare` with one run
of each policy; turns of a cell (cores, regime) are its repeats, every other one in reverse but for the baseline, which is always
first. A `calibrate` for each number of cores measures the rates of the splits and fits f and g (Eq. 3, 4) to them.

    python benchmarks/splits.py [--cores 4,8,12] [--regimes heavy,medium,light] [--budget-s 540] [--json FILE]

What is of most interest comes first (`plan`), and what no longer fits into the budget is left out, so whatever has been measured is
whole turns, but for one that took longer than planned and was cut short. The file is written anew after each of them. Every run
takes three to four seconds to start; keep the machine quiet meanwhile.
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from links import serving

from edge_student.host.provenance import describe_measurement
from edge_student.report.verdict import BASELINE, summarize
from edgekd.cli.command import parse
from edgekd.files import write_json
from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))
_MOST_TEACHER_CORES = 4
_STEPS = 50  # cycles of the run that learns how long a step takes
_LEAST_CYCLES = 30
_BUSIER = 1.2  # times the slower of both sides alone that a cycle takes, about
_PATIENCE = 1.5  # times what a job was expected to take, after which it is cut short
_RESERVE_S = 8.0  # of the budget, for ending what is cut short
_START_S = 6.0  # of a process, until one has been seen

_KEPT = ("repeat", "policy", "attempt", "wall_clock_s", "stall_s", "hold_s", "forward_s", "backward_s", "comm_cpu_s", "accuracy")
_KEPT = (*_KEPT, "valid", "disturbed", "notes")
_MEDIANS = ("stall_s", "hold_s", "forward_s", "backward_s", "comm_cpu_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Measure every policy where there are more than two cores to split."""

    cores: str = "4,8,12"
    """How many cores the edge has, with commas between; the last is compared when the others have all their turns."""
    regimes: str = "heavy,medium,light"
    """How heavy comm is for the edge's cores, the one of most interest first, with commas between."""
    turns: int = 3
    """Turns of each cell, as far as the budget goes."""
    seconds: float = 3.0
    """What a run is to take, about, without its start."""
    calibrate_s: float = 20.0
    """Seconds that each calibration measures, in the first regime."""
    budget_s: float = 540.0
    """Seconds for everything."""
    json: Path | None = None
    """File for the results."""

    def __post_init__(self) -> None:
        for count in self.counts:
            if not 2 <= count <= len(CORES):
                raise ValueError(f"--cores has {count}, must be in 2 .. {len(CORES)}, which is what this process may use")
        for name in self.regimes.split(","):
            if name not in REGIMES:
                raise ValueError(f"--regimes has {name!r}, must be of {', '.join(REGIMES)}")

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of cores, in the order of --cores."""
        return tuple(int(count) for count in self.cores.split(","))


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime:
    """A student and what it receives in a cycle: `public_batch` rows of so many float32."""

    model: str
    batch_size: int
    public_batch: int
    classes: int

    @property
    def dataset(self) -> str:
        return f"synthetic:classes={self.classes},size=32,samples=1024"

    def flags(self) -> list[str]:
        flags = ["--private", f"{self.dataset}:private", "--model", self.model, "--batch-size", str(self.batch_size)]
        return [*flags, "--public-batch", str(self.public_batch), "--prefetch", "16", "--log-level", "warning"]


# A narrow student makes comm heavy beside it; a wide one of few classes leaves next to nothing to split.
REGIMES = {
    "heavy": Regime(model="cnn:width=4", batch_size=8, public_batch=256, classes=12_000),
    "medium": Regime(model="cnn:width=8", batch_size=16, public_batch=128, classes=6_000),
    "light": Regime(model="cnn:width=24", batch_size=32, public_batch=64, classes=100),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One turn of a cell, or one calibration."""

    cores: int
    regime: str
    is_calibration: bool = False

    @property
    def name(self) -> str:
        return f"{self.cores}-{self.regime}" + ("-calibration" if self.is_calibration else "")


@dataclass(kw_only=True, slots=True)
class Cell:
    """What is known of one regime on so many cores. `alone` is one run, in which all was received first: seconds a cycle."""

    cores: tuple[int, ...]
    regime: Regime
    alone: dict[str, float] = field(default_factory=dict)
    cycles: int = 0
    turn_s: list[float] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


def policies_of(num_cores: int) -> tuple[str, ...]:
    """The policies to compare: of the fixed splits one core, a quarter, and half."""
    splits = sorted({1, max(num_cores // 4, 1), num_cores // 2})
    fixed = (f"static:{comm}" for comm in splits)
    return (BASELINE, "os-tuned", *fixed, "comp-priority", "compute-first", "dynamic", "adaptive")


def plan(settings: Settings) -> list[Job]:
    """Everything that there is to do, what is of most interest first."""
    counts, (first, *others) = settings.counts, settings.regimes.split(",")
    some, last = (counts[:-1], counts[-1:]) if len(counts) > 1 else (counts, ())
    calibrations = [Job(cores=count, regime=first, is_calibration=True) for count in counts if settings.calibrate_s]
    jobs = [Job(cores=count, regime=first) for count in some] + calibrations
    jobs += [Job(cores=count, regime=first) for _ in range(settings.turns - 1) for count in some]
    jobs += [Job(cores=count, regime=first) for _ in range(settings.turns) for count in last]
    return jobs + [Job(cores=count, regime=regime) for regime in others for _ in range(settings.turns) for count in counts]


class Splits:
    """Does the jobs that fit into the budget, and keeps what they found."""

    def __init__(self, settings: Settings, folder: Path, stack: contextlib.ExitStack) -> None:
        self._settings, self._folder, self._stack = settings, folder, stack
        self._deadline = time.monotonic() + settings.budget_s - _RESERVE_S
        self._start_s = _START_S
        self._teachers: dict[str, str] = {}
        self._cells: dict[str, Cell] = {}
        self._calibrations: dict[str, Any] = {}
        self._left_out: list[str] = []
        self._failed: list[str] = []
        spare = CORES[: len(CORES) - max(settings.counts)][:_MOST_TEACHER_CORES]
        self._teacher_cores = spare or CORES[:1]

    def run(self) -> None:
        """Every job in turn, if there is time for it; the file is written after each."""
        jobs = plan(self._settings)
        for number, job in enumerate(jobs, start=1):
            expected_s, began = self._expected_s(job), time.monotonic()
            if began + expected_s > self._deadline:
                self._left_out.append(job.name)
                continue
            limit_s = min(_PATIENCE * expected_s, self._deadline - began)
            how = self._calibrate(job, limit_s) if job.is_calibration else self._turn(job, began + limit_s)
            if how != "done":
                self._failed.append(f"{job.name}: {how}")
            took, left = time.monotonic() - began, self._deadline - time.monotonic()
            said = f"{number} of {len(jobs)}, {job.name}: {how} in {took:.0f} s ({expected_s:.0f} were expected), {left:.0f} s left"
            print(said, file=sys.stderr, flush=True)
            self.save()
        self.save()

    def _expected_s(self, job: Job) -> float:
        """What the job will take: what it took the last time, or one start after another and what they are told to take."""
        if job.is_calibration:
            return self._start_s + 1.2 * self._settings.calibrate_s
        cell = self._cells.get(f"{job.cores}-{job.regime}")
        if cell is not None and cell.turn_s:
            return cell.turn_s[-1]
        teacher_s = 0.0 if job.regime in self._teachers else self._start_s
        num_runs = len(policies_of(job.cores)) + 1  # and the one in which both sides are alone
        return teacher_s + self._start_s + num_runs * (self._start_s + self._settings.seconds)

    def _teacher(self, name: str) -> str:
        """The address of this regime's teacher, which stays up."""
        if name not in self._teachers:
            cores, dataset = ",".join(map(str, self._teacher_cores)), REGIMES[name].dataset
            command = [sys.executable, "-m", "cloud_teacher", "serve", "--dataset", f"{dataset}:public", "--model", "cnn:width=4"]
            command += ["--store", str(self._folder / name), "--precompute", "--cores", cores, "--listen", "127.0.0.1:0"]
            command += ["--log-level", "error"]
            self._teachers[name] = self._stack.enter_context(serving(command))
        return self._teachers[name]

    def _command(self, verb: str, job: Job) -> list[str]:
        cores, regime = CORES[-job.cores :], REGIMES[job.regime]
        command = [sys.executable, "-m", "edge_student", verb, "--teacher", self._teacher(job.regime), *regime.flags()]
        return [*command, "--cores", ",".join(map(str, cores))]

    def _turn(self, job: Job, deadline: float) -> str:
        """One run of each policy, and before the first turn of a cell what each side takes alone; what came of it."""
        cell = self._cells.setdefault(job.name, Cell(cores=CORES[-job.cores :], regime=REGIMES[job.regime]))
        if not cell.cycles and (said := self._learn(job, cell, deadline - time.monotonic())) != "done":
            return said
        turn, out, (base, *others) = len(cell.turn_s), self._folder / "compare", policies_of(job.cores)
        names = (base, *(others if turn % 2 == 0 else reversed(others)))
        began = time.monotonic()
        command = [*self._command("compare", job), "--cycles", str(cell.cycles), "--policies", ",".join(names), "--repeats", "1"]
        (out / "report.json").unlink(missing_ok=True)
        said = run_until([*command, "--out", str(out)], deadline - began, (0, 1))
        if not (out / "report.json").exists():
            return f"no report; {said}"
        for run in json.loads((out / "report.json").read_text())["runs"]:
            kept = {name: run[name] for name in _KEPT} | {"repeat": turn}
            share = run["disturbance"] or {}
            kept |= {name: share.get(name) for name in ("others_fraction", "steal_fraction")}
            cell.runs.append({**kept, "modes": shares_of_modes(out / run["folder"] / "events.jsonl", run["wall_clock_s"])})
        cell.turn_s.append(time.monotonic() - began)
        return said

    def _learn(self, job: Job, cell: Cell, limit_s: float) -> str:
        """What each side takes alone, and so how many cycles a run gets."""
        out = self._folder / "alone"
        command = [*self._command("train", job), "--cycles", str(_STEPS), "--policy", "comm-priority", "--out", str(out)]
        command += ["--prefetch", str(_STEPS), "--ring-mib", "4096"]
        began = time.monotonic()
        said = run_until(command, limit_s, (0,))
        if said != "done":
            return f"a run alone: {said}"
        result = json.loads((out / "result.json").read_text())
        self._start_s = time.monotonic() - began - result["wall_clock_s"]
        cell.alone = {
            "step_s": (result["forward_s"] + result["backward_s"]) / _STEPS,
            "receiving_s": (result["hold_s"] + result["stall_s"]) / _STEPS,
            "comm_cpu_s": result["comm_cpu_s"] / _STEPS,
            "start_s": self._start_s,
        }
        cycle_s = _BUSIER * max(cell.alone["step_s"], cell.alone["receiving_s"])
        cell.cycles = max(round(self._settings.seconds / cycle_s), _LEAST_CYCLES)
        return said

    def _calibrate(self, job: Job, limit_s: float) -> str:
        """The device profile on so many cores, whole."""
        out = self._folder / f"{job.name}.json"
        command = [*self._command("calibrate", job), "--seconds", str(self._settings.calibrate_s), "--out", str(out)]
        said = run_until(command, limit_s, (0,))
        if said == "done":
            self._calibrations[job.name] = json.loads(out.read_text())
        return said

    def save(self) -> None:
        """Write what has been measured so far."""
        cells = {name: describe(cell) for name, cell in self._cells.items() if cell.runs}
        report = {
            **describe_measurement(sys.argv, CORES[-max(self._settings.counts) :]),
            "topology": topology(),
            "settings": {**asdict(self._settings), "json": str(self._settings.json)},
            "teacher_cores": list(self._teacher_cores),
            "left_out": self._left_out,
            "failed": self._failed,
            "cells": cells,
            "calibrations": self._calibrations,
        }
        if self._settings.json is not None:
            write_json(self._settings.json, report)

    def print_tables(self) -> int:
        """Markdown; the exit status, 1 if something failed."""
        for name, cell in self._cells.items():
            print_cell(name, cell)
        for name, profile in self._calibrations.items():
            print_calibration(name, profile)
        print(f"\nleft out: {', '.join(self._left_out) or 'nothing'}; failed: {'; '.join(self._failed) or 'nothing'}")
        return 1 if self._failed else 0


def run_until(command: Sequence[str], limit_s: float, good: Sequence[int]) -> str:
    """Run it for `limit_s` seconds at most, then ask it to end, which keeps what it has; what came of it, "done" if all is well."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        try:
            status = process.wait(max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_RESERVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            return f"cut short after {limit_s:.0f} s"
        except BaseException:
            process.send_signal(signal.SIGTERM)
            raise
    return "done" if status in good else f"exit status {status}"


def shares_of_modes(path: Path, wall_clock_s: float | None) -> dict[str, float] | None:
    """The parts of a run's time for which the last decision was this or that; None of a run without a result.

    "c+d" is c cores for comm and d for training, of 4 cores "4+4" is compute-first, and "kernel" what os-default does.
    """
    if wall_clock_s is None or not path.exists():
        return None
    seconds: Counter[str] = Counter()
    decisions = [record for line in path.read_text().splitlines() if (record := json.loads(line))["event"] == "decision"]
    moments = [*(record["time"] for record in decisions), wall_clock_s]
    for record, (began, ended) in zip(decisions, pairwise(moments), strict=True):
        given = record["allocation"]
        mode = f"{given['comm']}+{given['comp']}" if given["pinned"] else "kernel"
        seconds[mode] += max(ended - began, 0.0)
    return {mode: spent / wall_clock_s for mode, spent in seconds.most_common()}


def describe(cell: Cell) -> dict[str, Any]:
    """A cell as JSON values: its settings, every run, and per policy medians, paired ratios and the regret."""
    return {
        "cores": list(cell.cores),
        "regime": asdict(cell.regime),
        "batch_bytes": 4 * cell.regime.public_batch * cell.regime.classes,
        "flags": cell.regime.flags(),
        "cycles": cell.cycles,
        "alone": cell.alone,
        "turn_s": cell.turn_s,
        "policies": rows_of(cell.runs),
        "runs": cell.runs,
    }


def rows_of(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per policy: the summary of its valid runs, its median against the least one of the cell, and where its time went."""
    names = list(dict.fromkeys(run["policy"] for run in runs))
    rows = {row.policy: asdict(row) for row in summarize(runs, names)}
    least = min((row["median_s"] for row in rows.values() if row["median_s"] is not None), default=None)
    for name, row in rows.items():
        valid = [run for run in runs if run["policy"] == name and run["valid"]]
        row["regret"] = row["median_s"] / least if row["median_s"] is not None else None
        row |= {key: float(np.median([run[key] for run in valid])) for key in _MEDIANS if valid}
        row["modes"] = mean_shares(run["modes"] for run in valid if run["modes"])
    return rows


def mean_shares(shares: Iterator[dict[str, float]]) -> dict[str, float]:
    """The mean of each mode's parts over the runs, the largest first."""
    found, total = list(shares), Counter[str]()
    for share in found:
        total.update(share)
    return {mode: part / len(found) for mode, part in total.most_common()}


def topology() -> dict[str, str]:
    """For each core those that are threads of the same physical one, as the kernel lists them; empty where it does not say."""
    found = {}
    for core in CORES:
        with contextlib.suppress(OSError):
            path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
            found[str(core)] = path.read_text().strip()
    return found


def print_cell(name: str, cell: Cell) -> None:
    """One table: a row for each policy."""
    alone = ", ".join(f"{what} {seconds * 1e3:.1f} ms" for what, seconds in cell.alone.items())
    print(f"\n{name}: {cell.cycles} cycles; alone: {alone}\n")
    print("| policy | runs | wall-clock, s | vs os-default | regret | stall, s | hold, s | comm CPU, s | most of the time |")
    print("|---|---|---|---|---|---|---|---|---|")
    for policy, row in rows_of(cell.runs).items():
        if row["median_s"] is None:
            print(f"| {policy} | 0 | | | | | | | |")
            continue
        ratio, between = row["ratio_vs_os_default"], row["ratio_ci95"]
        shown = "" if ratio is None else f"{ratio:.2f}" + (f" ({between[0]:.2f} .. {between[1]:.2f})" if between else "")
        modes = ", ".join(f"{mode} {part:.0%}" for mode, part in list(row["modes"].items())[:3])
        times = f"{row['stall_s']:.2f} | {row['hold_s']:.2f} | {row['comm_cpu_s']:.2f}"
        print(f"| {policy} | {row['num_runs']} | {row['median_s']:.2f} | {shown} | {row['regret']:.2f} | {times} | {modes} |")


def print_calibration(name: str, profile: dict[str, Any]) -> None:
    """One table: a row for each mode, in work per second; the fit is below it."""
    print(
        f"\n{name}: forward {profile['forward']:.4f} s, backward {profile['backward']:.4f} s, comm {profile['comm']:.4f} s alone\n"
    )
    print("| mode | comm rate | comp rate | batches | cycles |\n|---|---|---|---|---|")
    for mode in profile["modes"]:
        rates = f"{mode['comm_rate']:.3f} | {mode['comp_rate']:.3f}"
        print(f"| {mode['name']} | {rates} | {mode['num_comm']} | {mode['num_comp']} |")
    print(f"\nfit: {json.dumps(profile['fit'])}")


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="splits.py", description="How cores are split where there are more than two.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the teacher goes whatever ends us
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        splits = Splits(settings, folder, stack)
        try:
            splits.run()
        finally:
            status = splits.print_tables()
    sys.exit(status)


if __name__ == "__main__":
    main()
