"""What shards cost and change: the accuracy for each number of shards, the memory of the workers, the delay of new allocations.

    python benchmarks/shards.py [--seeds 5] [--shards 1,2,4,8] [--cycles 800] [--json FILE]

Accuracy: `cnn` on --private with a teacher that is trained first, for each seed and number of shards. Differences between seeds
show what is noise. Memory: pages that only one worker has, at most, in a short run of each student; parameters and gradients are
shared and not included. Delay: seconds from a decision until compute is bound to its cores, from events.jsonl of a run under
`static:1`, whose allocation changes with every full buffer.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from contestants import Contestant
from links import loopback_teacher, serving

from edge_student.measure.result_file import write_results
from edgekd.cli.command import parse
from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))
DATA = "synthetic:classes=100,size=32,samples=1024"
STUDENTS = ("cnn", "torchvision:mobilenet_v3_small", "torchvision:resnet18")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Measure accuracy, memory and delays with compute workers."""

    private: str = "fashion-mnist:private"
    """Data set for the accuracy; the teacher has its public split."""
    seeds: int = 5
    """Runs for each number of shards."""
    shards: str = "1,2,4,8"
    """Numbers of shards, comma-separated."""
    cycles: int = 800
    """Cycles of the runs for the accuracy."""
    teacher_epochs: int = 3
    """Epochs of the teacher."""
    json: Path | None = None
    """Result file."""


def train(address: str, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    """Start a run whose files stay in `out`."""
    command = [sys.executable, "-m", "edge_student", "train", "--teacher", address, "--out", str(out), "--log-level", "error"]
    return subprocess.Popen([*command, *flags], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def accuracies(settings: Settings, folder: Path) -> dict[str, dict[str, Any]]:
    """Return the accuracies for each number of shards, in the order of seeds, their median and range."""
    dataset, weights = settings.private.partition(":")[0], folder / "teacher.safetensors"
    teach = ["-m", "cloud_teacher", "train", "--dataset", dataset, "--out", str(weights), "--epochs", str(settings.teacher_epochs)]
    subprocess.run([sys.executable, *teach], check=True, stdout=subprocess.DEVNULL)
    serve = ["-m", "cloud_teacher", "serve", "--dataset", f"{dataset}:public", "--weights", str(weights), "--listen", "127.0.0.1:0"]
    found: dict[str, list[float]] = {number: [] for number in settings.shards.split(",")}
    workers = Contestant(name="a run for the accuracy", policy="os-workers")
    with serving([sys.executable, *serve, "--store", str(folder / "store"), "--precompute", "--log-level", "error"]) as address:
        for seed in range(settings.seeds):
            for number, values in found.items():
                flags = ("--private", settings.private, "--seed", str(seed), "--cycles", str(settings.cycles))
                values.append(workers.run(address, flags, ("--shards", number))["accuracy"])
                print(f"seed {seed}, {number} shards: accuracy {values[-1]:.4f}", file=sys.stderr, flush=True)
    return {
        number: {"accuracies": values, "median": statistics.median(values), "range": [min(values), max(values)]}
        for number, values in found.items()
    }


def private_mib(address: str, folder: Path, model: str) -> list[float]:
    """Return the largest private memory of each worker during a run, in MiB."""
    process = train(address, folder / "memory", "--private", f"{DATA}:private", "--model", model, "--shards", "2", "--cycles", "40")
    most: dict[int, float] = {}
    while process.poll() is None:
        with contextlib.suppress(psutil.Error, OSError):  # a process has just ended
            servers = [child for child in psutil.Process(process.pid).children() if "forkserver" in " ".join(child.cmdline())]
            for worker in [worker for server in servers for worker in server.children()]:
                lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
                private = sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))
                most[worker.pid] = max(most.get(worker.pid, 0.0), private / 1024)
        time.sleep(0.05)
    return list(most.values())


def delays(address: str, folder: Path, model: str) -> dict[str, float]:
    """Return the number, median and maximum of the seconds from decisions to new masks, and the mean seconds of a cycle."""
    out = folder / "delays"
    if train(address, out, "--private", f"{DATA}:private", "--model", model, "--policy", "static:1", "--cycles", "100").wait():
        raise SystemExit("a run has failed, see its message above")
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [record["time"] - record["decided"] for record in records if record["event"] == "comp-bound"]
    return {
        "number": len(seconds),
        "median_s": statistics.median(seconds),
        "max_s": max(seconds),
        "cycle_s": found["wall_clock_s"] / found["cycles"],
    }


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="shards.py", description="Measure accuracy, memory and delays with shards.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with loopback_teacher(CORES[0], DATA, folder / "synthetic") as address:
            memory = {model: private_mib(address, folder, model) for model in STUDENTS}
            print(f"private MiB of each worker: {memory}", file=sys.stderr, flush=True)
            moves = {model: delays(address, folder, model) for model in STUDENTS}
            print(f"delays: {moves}", file=sys.stderr, flush=True)
        accuracy = accuracies(settings, folder) if settings.seeds else {}
    report = {"private_mib": memory, "delays": moves, "accuracy": accuracy}
    write_results(settings.json, cores=CORES, settings=settings, results=report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
