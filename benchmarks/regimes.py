"""Compares the policies in a grid of regimes: the CPU cost of comm, the rate of the link, and the size of the student.

A cell is one `edge-student compare` against a running teacher with all logits computed, one thread, and the lowest core under every
policy. A "balanced" link delivers a batch in the time of a training step, which is measured first on this machine. A "bottleneck"
has half that rate. links.py limits the rate.

    python benchmarks/regimes.py [--repeats 5] [--sizes small,large] [--comm light,medium,heavy] [--json FILE] [--figure FILE.png]

Each run takes `--seconds`, plus 3 to 4 s to start. Run it on a quiet machine.
"""

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from links import Link

from edge_student.measure.intervals import median_interval
from edge_student.measure.result_file import write_results
from edge_student.report.verdict import BASELINE
from edgekd.cli.command import parse
from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))
_BEST_OF, _STEPS = 3, 100  # runs that measure the time of a step, and their cycles
_BUSIER = 1.5  # approximate duration of a cycle with comm, in steps without comm

# On two cores `static:1` and `random` make the same decisions as `dynamic`, so they are not measured.
POLICIES = "os-default,os-tuned,os-workers,comm-priority,comp-priority,compute-first,dynamic,adaptive"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Compare policies in a grid of regimes: CPU cost of comm, rate of the link, size of the student."""

    repeats: int = 5
    """Runs of each policy in each cell."""
    seconds: float = 8.0
    """Approximate duration of a run in seconds. It must be long compared with the learning phase of adaptive."""
    sizes: str = "small,large"
    """Students, comma-separated: small (a step takes a few ms), large (some tens of ms)."""
    comm: str = "light,medium,heavy"
    """CPU costs of comm, comma-separated."""
    links: str = "unlimited,balanced,bottleneck"
    """Rates of the link, comma-separated."""
    policies: str = POLICIES
    """Policies to compare, comma-separated."""
    keep: Path | None = None
    """Folder for the comparison of every cell, including report.html; without it, only the results are kept."""
    json: Path | None = None
    """Result file."""
    figure: Path | None = None
    """File of the heat map, .png or .svg."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A student model and its batch sizes."""

    model: str
    batch_size: int
    public_batch: int


STUDENTS = {
    "small": Student(model="cnn:width=8", batch_size=8, public_batch=32),
    "large": Student(model="cnn:width=24", batch_size=32, public_batch=64),
}
# The classes determine the bytes of a batch: 32 or 64 rows with one float32 per class.
CLASSES = {
    ("small", "light"): 100,
    ("small", "medium"): 3000,
    ("small", "heavy"): 12000,
    ("large", "light"): 100,
    ("large", "medium"): 1500,
    ("large", "heavy"): 6000,  # more classes would also make the step longer, so the relative cost of comm would not rise
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One regime, with the rate of its link and its number of cycles."""

    size: str
    comm: str
    link: str
    rate_mbit: float | None
    cycles: int

    @property
    def name(self) -> str:
        return f"{self.size}-{self.comm}-{self.link}"

    @property
    def student(self) -> Student:
        return STUDENTS[self.size]

    @property
    def dataset(self) -> str:
        return f"synthetic:classes={CLASSES[self.size, self.comm]},size=32,samples=1024"

    @property
    def batch_bytes(self) -> int:
        return 4 * self.student.public_batch * CLASSES[self.size, self.comm]

    def flags(self) -> list[str]:
        student = self.student
        flags = ["--private", f"{self.dataset}:private", "--model", student.model, "--cycles", str(self.cycles)]
        flags += ["--batch-size", str(student.batch_size), "--public-batch", str(student.public_batch)]
        return [*flags, "--prefetch", "16", "--log-level", "warning"]


def step_s(cell: Cell, link: Link, folder: Path) -> float:
    """Measure the seconds of a training step without concurrent comm: the mean step of the best of several runs."""
    seconds = []
    with link.teacher(CORES[0], cell.dataset, None, folder / "store") as address:
        for _ in range(_BEST_OF):
            out = folder / "step"
            command = [sys.executable, "-m", "edge_student", "train", "--teacher", address, "--out", str(out), *cell.flags()]
            command = [*command, "--policy", "comm-priority", "--prefetch", str(cell.cycles), "--ring-mib", "4096"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            result = json.loads((out / "result.json").read_text())
            seconds.append((result["forward_s"] + result["backward_s"]) / result["cycles"])
    return float(min(seconds))


def cells(settings: Settings, link: Link, folder: Path) -> list[Cell]:
    """Return the grid, with link rates that are balanced or a bottleneck on this machine."""
    found = []
    for size, comm in product(settings.sizes.split(","), settings.comm.split(",")):
        free = Cell(size=size, comm=comm, link="unlimited", rate_mbit=None, cycles=_STEPS)
        seconds = step_s(free, link, folder / f"{size}-{comm}")
        balanced = 8e-6 * free.batch_bytes / seconds
        print(f"{size}, comm {comm}: a step takes {seconds * 1e3:.1f} ms, balanced is {balanced:.2f} Mbit/s", file=sys.stderr)
        rates = {"unlimited": None, "balanced": balanced, "bottleneck": balanced / 2}
        for name in settings.links.split(","):
            cycle_s = _BUSIER * seconds * (2 if name == "bottleneck" else 1)
            cycles = max(round(settings.seconds / cycle_s), _STEPS)
            found.append(Cell(size=size, comm=comm, link=name, rate_mbit=rates[name], cycles=cycles))
    return found


def measure(cell: Cell, settings: Settings, link: Link, folder: Path) -> dict[str, Any]:
    """Run one comparison. Returns the cell's settings, and each policy's wall-clocks in the order of repeats."""
    out = (settings.keep or folder) / cell.name
    with link.teacher(CORES[0], cell.dataset, cell.rate_mbit, folder / f"{cell.size}-{cell.comm}" / "store") as address:
        command = [sys.executable, "-m", "edge_student", "compare", "--teacher", address, *cell.flags(), "--out", str(out)]
        command += ["--policies", settings.policies, "--repeats", str(settings.repeats)]
        status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL).returncode
    if status not in (0, 1):
        raise SystemExit(f"{cell.name}: compare ended with exit status {status}")
    report = json.loads((out / "report.json").read_text())
    names = list(dict.fromkeys(run["policy"] for run in report["runs"]))
    valid = [run for run in report["runs"] if run["valid"]]
    wall = {name: {run["repeat"]: run["wall_clock_s"] for run in valid if run["policy"] == name} for name in names}
    repeats = sorted(set.intersection(*(set(clocks) for clocks in wall.values())))
    if not repeats:
        raise SystemExit(f"{cell.name}: no repeat has a valid run of every policy; see the notes of the runs with --keep")
    settings_of_cell = {**asdict(cell), "batch_bytes": cell.batch_bytes, "dataset": cell.dataset, "flags": cell.flags()}
    return {
        "name": cell.name,
        "settings": settings_of_cell,
        "policies": {name: [wall[name][repeat] for repeat in repeats] for name in names},
        "comm_cpu_share": comm_cpu_share(report["runs"]),
        "num_disturbed": sum(bool(run.get("disturbed")) for run in report["runs"]),
    }


def comm_cpu_share(runs: list[dict[str, Any]]) -> float | None:
    """Return comm's CPU seconds per second of training tasks under the baseline, or None without a valid run."""
    valid = [run for run in runs if run["policy"] == BASELINE and run["valid"]]
    shares = [run["comm_cpu_s"] / (run["forward_s"] + run["backward_s"]) for run in valid]
    return float(np.median(shares)) if shares else None


def regrets(cell: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Compare each policy with the best policy in hindsight, which has the least median, and paired with the baselines."""
    clocks = {name: np.array(seconds) for name, seconds in cell["policies"].items()}
    best = min((name for name in clocks), key=lambda name: float(np.median(clocks[name])))
    found: dict[str, dict[str, Any]] = {}
    for name, seconds in clocks.items():
        found[name] = {"median_s": float(np.median(seconds)), "regret": float(np.median(seconds) / np.median(clocks[best]))}
        if len(seconds) > 1:
            found[name]["regret held out"] = held_out_regret(clocks, name)
        for base in (BASELINE, "os-tuned"):
            if base in clocks:
                ratios = seconds / clocks[base]
                found[name][f"vs {base}"] = float(np.median(ratios))
                interval = median_interval(ratios.tolist())
                found[name][f"vs {base} interval"] = interval and asdict(interval)
    return found


def held_out_regret(clocks: dict[str, np.ndarray], name: str) -> float:
    """Return the median over repeats of the ratio of `name` to the policy that is best in the other repeats.

    The least of several noisy medians is biased below the true one, so even equal policies show a regret. Choosing the best policy
    without the repeat in which it is compared removes this bias.
    """
    ratios = []
    for repeat in range(len(clocks[name])):
        best = min(clocks, key=lambda other: float(np.median(np.delete(clocks[other], repeat))))
        ratios.append(clocks[name][repeat] / clocks[best][repeat])
    return float(np.median(ratios))


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the geometric mean and the worst value over all cells, for each policy."""
    names = list(results[0]["policies"])
    summary = {}
    for name in names:
        row: dict[str, Any] = {}
        for figure in ("regret", "regret held out", f"vs {BASELINE}", "vs os-tuned"):
            values = [cell["regrets"][name][figure] for cell in results if figure in cell["regrets"][name]]
            if values:
                row[figure] = {"geometric_mean": float(np.exp(np.mean(np.log(values)))), "worst": max(values)}
        summary[name] = row
    return summary


def print_tables(results: list[dict[str, Any]]) -> None:
    """Print two Markdown tables: each policy's ratio to the baseline with its interval, and its regret."""
    names = list(results[0]["policies"])
    titles = {
        f"wall-clock / {BASELINE}": _shown_ratio,
        "wall-clock / best policy of the cell, medians (best chosen in the other repeats)": _shown_regret,
    }
    for title, show in titles.items():
        print(f"\n{title}\n\n| cell | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        for cell in results:
            print(f"| {cell['name']} | {' | '.join(show(cell['regrets'][name]) for name in names)} |")


def _shown_ratio(row: dict[str, Any]) -> str:
    interval = row[f"vs {BASELINE} interval"]
    return f"{row[f'vs {BASELINE}']:.2f}" + (f" ({interval['low']:.2f} .. {interval['high']:.2f})" if interval else "")


def _shown_regret(row: dict[str, Any]) -> str:
    held_out = f" ({row['regret held out']:.2f})" if "regret held out" in row else ""
    return f"{row['regret']:.2f}{held_out}"


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw two heat maps with a row per cell and a column per policy: the ratio to the baseline, and the regret."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names, rows = list(results[0]["policies"]), [cell["name"] for cell in results]
    size = 4 + 1.6 * len(names), 1.2 + 0.36 * len(rows)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    colours = {f"vs {BASELINE}": ("PuOr_r", 0.6), "regret": ("Oranges", 1.0)}
    titles = {f"vs {BASELINE}": f"wall-clock / {BASELINE}", "regret": "wall-clock / best policy of the cell"}
    for axis, (quantity, (colour, least)) in zip(axes, colours.items(), strict=True):
        values = np.array([[cell["regrets"][name][quantity] for name in names] for cell in results])
        image = axis.imshow(values, cmap=colour, vmin=least, vmax=1.4, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            is_on_dark = image.norm(value) > 0.8 or (image.norm(value) < 0.2 and least < 1)
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if is_on_dark else "black")
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.set_yticks(range(len(rows)), rows)
        axis.set_title(titles[quantity])
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.savefig(path, dpi=150)


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="regimes.py", description="Compare policies in a grid of regimes.")
    results: list[dict[str, Any]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that SIGTERM removes the namespace too
    with tempfile.TemporaryDirectory() as name, Link() as link:
        folder = Path(name)
        grid = cells(settings, link, folder)
        for number, cell in enumerate(grid, start=1):
            result = measure(cell, settings, link, folder)
            result["regrets"] = regrets(result)
            results.append(result)
            shown = ", ".join(f"{policy} {row[f'vs {BASELINE}']:.2f}" for policy, row in result["regrets"].items())
            print(f"{number} of {len(grid)}, {cell.name}: {shown}", file=sys.stderr, flush=True)
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
    if settings.json is None and sys.stdout.isatty():
        print(json.dumps(report["summary"], indent=2))


if __name__ == "__main__":
    main()
