"""Compares all policies and some fixed splits on 4, 8 and 12 cores, within a time budget.

The edge uses the machine's highest cores. The teacher, with all logits computed, uses the lowest cores that no edge uses: four at
most, and the same for every policy and number of cores. If no core is left, it uses the lowest. It listens on loopback, so part of
the kernel's work of receiving runs on its cores. A turn is one `edge-student compare` with one run of each policy. The turns of a
cell (cores, regime) are its repeats. The baseline always runs first, and every second turn reverses the other policies. One
`calibrate` per number of cores measures the rates of the splits and fits f and g (Eq. 3, 4).

    python benchmarks/splits.py [--cores 4,8,12] [--regimes heavy,medium,light] [--budget-s 540] [--json FILE]

Jobs run in order of interest (`plan`), and a job that no longer fits into the budget is skipped. So the results are complete turns,
except for a turn that exceeds its limit and is stopped. The result file is rewritten after each job. Every run takes 3 to 4 s to
start. Run it on a quiet machine.
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

from edge_student.measure.result_file import write_results
from edge_student.report.verdict import BASELINE, summarize
from edgekd.cli.command import parse
from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))
_MOST_TEACHER_CORES = 4
_STEPS = 50  # cycles of the run that measures the duration of a step
_MIN_CYCLES = 30
_BUSIER = 1.2  # approximate duration of a cycle, relative to the slower side alone
_LIMIT = 1.5  # time limit of a job, relative to its expected duration
_RESERVE_S = 8.0  # seconds of the budget for stopping a job at its limit
_START_S = 6.0  # startup of a process, until one was measured

_KEPT = ("repeat", "policy", "attempt", "wall_clock_s", "stall_s", "hold_s", "forward_s", "backward_s", "comm_cpu_s", "accuracy")
_KEPT = (*_KEPT, "valid", "disturbed", "notes")
_MEDIANS = ("stall_s", "hold_s", "forward_s", "backward_s", "comm_cpu_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Compare policies and fixed splits on more than two cores."""

    cores: str = "4,8,12"
    """Numbers of cores of the edge, comma-separated; the last one runs after all turns of the others."""
    regimes: str = "heavy,medium,light"
    """CPU costs of comm, comma-separated, in order of interest."""
    turns: int = 3
    """Turns of each cell, if the budget allows them."""
    seconds: float = 3.0
    """Approximate duration of a run in seconds, without its startup."""
    calibrate_s: float = 20.0
    """Seconds of each calibration, which uses the first regime; 0 skips them."""
    budget_s: float = 540.0
    """Seconds for all jobs together."""
    json: Path | None = None
    """Result file."""

    def __post_init__(self) -> None:
        for count in self.counts:
            if not 2 <= count <= len(CORES):
                raise ValueError(f"--cores has {count}, must be in 2 .. {len(CORES)}, the cores that this process may use")
        for name in self.regimes.split(","):
            if name not in REGIMES:
                raise ValueError(f"--regimes has {name!r}, must be one of {', '.join(REGIMES)}")

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of cores, in the order of --cores."""
        return tuple(int(count) for count in self.cores.split(","))


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime:
    """A student and its batches. It receives `public_batch` rows of `classes` float32 per cycle."""

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


# With a narrow student, comm is a large part of the work; with a wide one and few classes it is almost nothing.
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
    """The runs of one regime on a number of cores. `alone` has the seconds per cycle of a run that receives all batches first."""

    cores: tuple[int, ...]
    regime: Regime
    alone: dict[str, float] = field(default_factory=dict)
    cycles: int = 0
    turn_s: list[float] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


def policies_of(num_cores: int) -> tuple[str, ...]:
    """Return the policies to compare. The fixed splits give comm one core, a quarter, and half."""
    splits = sorted({1, max(num_cores // 4, 1), num_cores // 2})
    fixed = (f"static:{comm}" for comm in splits)
    return (BASELINE, "os-tuned", "os-workers", *fixed, "comp-priority", "compute-first", "dynamic", "adaptive")


def plan(settings: Settings) -> list[Job]:
    """Return all jobs in order of interest."""
    counts, (first, *others) = settings.counts, settings.regimes.split(",")
    some, last = (counts[:-1], counts[-1:]) if len(counts) > 1 else (counts, ())
    calibrations = [Job(cores=count, regime=first, is_calibration=True) for count in counts if settings.calibrate_s]
    jobs = [Job(cores=count, regime=first) for count in some] + calibrations
    jobs += [Job(cores=count, regime=first) for _ in range(settings.turns - 1) for count in some]
    jobs += [Job(cores=count, regime=first) for _ in range(settings.turns) for count in last]
    return jobs + [Job(cores=count, regime=regime) for regime in others for _ in range(settings.turns) for count in counts]


class Splits:
    """Runs the jobs that fit into the budget, and collects their results."""

    def __init__(self, settings: Settings, folder: Path, stack: contextlib.ExitStack) -> None:
        self._settings, self._folder, self._stack = settings, folder, stack
        self._deadline = time.monotonic() + settings.budget_s - _RESERVE_S
        self._start_s = _START_S
        self._teachers: dict[str, str] = {}
        self._cells: dict[str, Cell] = {}
        self._calibrations: dict[str, Any] = {}
        self._skipped: list[str] = []
        self._failed: list[str] = []
        spare = CORES[: len(CORES) - max(settings.counts)][:_MOST_TEACHER_CORES]
        self._teacher_cores = spare or CORES[:1]

    def run(self) -> None:
        """Run every job that fits into the remaining time, and write the result file after each."""
        jobs = plan(self._settings)
        for number, job in enumerate(jobs, start=1):
            expected_s, started = self._expected_s(job), time.monotonic()
            if started + expected_s > self._deadline:
                self._skipped.append(job.name)
                continue
            limit_s = min(_LIMIT * expected_s, self._deadline - started)
            outcome = self._calibrate(job, limit_s) if job.is_calibration else self._turn(job, started + limit_s)
            if outcome != "done":
                self._failed.append(f"{job.name}: {outcome}")
            elapsed_s, left_s = time.monotonic() - started, self._deadline - time.monotonic()
            times = f"{elapsed_s:.0f} s, expected {expected_s:.0f} s, {left_s:.0f} s left"
            print(f"{number} of {len(jobs)}, {job.name}: {outcome}: {times}", file=sys.stderr, flush=True)
            self.save()
        self.save()

    def _expected_s(self, job: Job) -> float:
        """Estimate the duration of a job: that of its cell's last turn, or the startup and run times of its processes."""
        if job.is_calibration:
            return self._start_s + 1.2 * self._settings.calibrate_s
        cell = self._cells.get(f"{job.cores}-{job.regime}")
        if cell is not None and cell.turn_s:
            return cell.turn_s[-1]
        teacher_s = 0.0 if job.regime in self._teachers else self._start_s
        num_runs = len(policies_of(job.cores)) + 1  # plus the run of both sides alone
        return teacher_s + self._start_s + num_runs * (self._start_s + self._settings.seconds)

    def _teacher(self, name: str) -> str:
        """Return the address of this regime's teacher, and start it at the first call. It runs until the end."""
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
        """Run each policy once, and before the first turn of a cell both sides alone. Returns "done" or the failure."""
        cell = self._cells.setdefault(job.name, Cell(cores=CORES[-job.cores :], regime=REGIMES[job.regime]))
        if not cell.cycles and (outcome := self._measure_alone(job, cell, deadline - time.monotonic())) != "done":
            return outcome
        turn, out, (base, *others) = len(cell.turn_s), self._folder / "compare", policies_of(job.cores)
        names = (base, *(others if turn % 2 == 0 else reversed(others)))
        started = time.monotonic()
        command = [*self._command("compare", job), "--cycles", str(cell.cycles), "--policies", ",".join(names), "--repeats", "1"]
        (out / "report.json").unlink(missing_ok=True)
        outcome = run_until([*command, "--out", str(out)], deadline - started, (0, 1))
        if not (out / "report.json").exists():
            return f"no report; {outcome}"
        for run in json.loads((out / "report.json").read_text())["runs"]:
            kept = {name: run[name] for name in _KEPT} | {"repeat": turn}
            share = run["disturbance"] or {}
            kept |= {name: share.get(name) for name in ("others_fraction", "steal_fraction")}
            cell.runs.append({**kept, "modes": shares_of_modes(out / run["folder"] / "events.jsonl", run["wall_clock_s"])})
        cell.turn_s.append(time.monotonic() - started)
        return outcome

    def _measure_alone(self, job: Job, cell: Cell, limit_s: float) -> str:
        """Measure each side alone, which determines the cycles of the cell's runs. Returns "done" or the failure."""
        out = self._folder / "alone"
        command = [*self._command("train", job), "--cycles", str(_STEPS), "--policy", "comm-priority", "--out", str(out)]
        command += ["--prefetch", str(_STEPS), "--ring-mib", "4096"]
        started = time.monotonic()
        outcome = run_until(command, limit_s, (0,))
        if outcome != "done":
            return f"run alone: {outcome}"
        result = json.loads((out / "result.json").read_text())
        self._start_s = time.monotonic() - started - result["wall_clock_s"]
        cell.alone = {
            "step_s": (result["forward_s"] + result["backward_s"]) / _STEPS,
            "receiving_s": (result["hold_s"] + result["stall_s"]) / _STEPS,
            "comm_cpu_s": result["comm_cpu_s"] / _STEPS,
            "start_s": self._start_s,
        }
        cycle_s = _BUSIER * max(cell.alone["step_s"], cell.alone["receiving_s"])
        cell.cycles = max(round(self._settings.seconds / cycle_s), _MIN_CYCLES)
        return outcome

    def _calibrate(self, job: Job, limit_s: float) -> str:
        """Calibrate on the job's cores, and keep the whole device profile. Returns "done" or the failure."""
        out = self._folder / f"{job.name}.json"
        command = [*self._command("calibrate", job), "--seconds", str(self._settings.calibrate_s), "--out", str(out)]
        outcome = run_until(command, limit_s, (0,))
        if outcome == "done":
            self._calibrations[job.name] = json.loads(out.read_text())
        return outcome

    def save(self) -> None:
        """Write the results so far."""
        cells = {name: describe(cell) for name, cell in self._cells.items() if cell.runs}
        results = {
            "topology": topology(),
            "teacher_cores": list(self._teacher_cores),
            "left_out": self._skipped,
            "failed": self._failed,
            "cells": cells,
            "calibrations": self._calibrations,
        }
        cores = CORES[-max(self._settings.counts) :]
        write_results(self._settings.json, cores=cores, settings=self._settings, results=results)

    def print_tables(self) -> int:
        """Print Markdown tables. Returns the exit status, 1 if a job failed."""
        for name, cell in self._cells.items():
            print_cell(name, cell)
        for name, profile in self._calibrations.items():
            print_calibration(name, profile)
        print(f"\nskipped: {', '.join(self._skipped) or 'nothing'}; failed: {'; '.join(self._failed) or 'nothing'}")
        return 1 if self._failed else 0


def run_until(command: Sequence[str], limit_s: float, good: Sequence[int]) -> str:
    """Run a command, and stop it with SIGTERM after `limit_s`, so that it saves its results. Returns "done" or the failure."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        try:
            status = process.wait(max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_RESERVE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            return f"stopped after {limit_s:.0f} s"
        except BaseException:
            process.send_signal(signal.SIGTERM)
            raise
    return "done" if status in good else f"exit status {status}"


def shares_of_modes(path: Path, wall_clock_s: float | None) -> dict[str, float] | None:
    """Return the fraction of a run's time in each mode, by its last decision; None for a run without a result.

    "c+d" is c cores for comm and d for training. On 4 cores "4+4" is compute-first. "kernel" is unpinned, as os-default.
    """
    if wall_clock_s is None or not path.exists():
        return None
    seconds: Counter[str] = Counter()
    decisions = [record for line in path.read_text().splitlines() if (record := json.loads(line))["event"] == "decision"]
    moments = [*(record["time"] for record in decisions), wall_clock_s]
    for record, (started, ended) in zip(decisions, pairwise(moments), strict=True):
        given = record["allocation"]
        mode = f"{given['comm']}+{given['comp']}" if given["pinned"] else "kernel"
        seconds[mode] += max(ended - started, 0.0)
    return {mode: spent / wall_clock_s for mode, spent in seconds.most_common()}


def describe(cell: Cell) -> dict[str, Any]:
    """Return a cell as JSON values: its settings, all runs, and each policy's medians, paired ratios and regret."""
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
    """Return for each policy the summary of its valid runs, its regret, median times, and the fractions of modes."""
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
    """Return the mean fraction of each mode over the runs, in descending order."""
    found, total = list(shares), Counter[str]()
    for share in found:
        total.update(share)
    return {mode: part / len(found) for mode, part in total.most_common()}


def topology() -> dict[str, str]:
    """Return the hardware threads that share each core's physical core, as the kernel lists them; without cores it omits."""
    found = {}
    for core in CORES:
        with contextlib.suppress(OSError):
            path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
            found[str(core)] = path.read_text().strip()
    return found


def print_cell(name: str, cell: Cell) -> None:
    """Print a table with a row for each policy."""
    alone = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in cell.alone.items())
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
    """Print a table with a row for each mode, with rates in work per second, and the fit."""
    print(
        f"\n{name}: forward {profile['forward']:.4f} s, backward {profile['backward']:.4f} s, comm {profile['comm']:.4f} s alone\n"
    )
    print("| mode | comm rate | comp rate | batches | cycles |\n|---|---|---|---|---|")
    for mode in profile["modes"]:
        rates = f"{mode['comm_rate']:.3f} | {mode['comp_rate']:.3f}"
        print(f"| {mode['name']} | {rates} | {mode['num_comm']} | {mode['num_comp']} |")
    print(f"\nfit: {json.dumps(profile['fit'])}")


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="splits.py", description="Compare policies on more than two cores.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that SIGTERM stops the teachers too
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
