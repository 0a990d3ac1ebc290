"""Reaction of policies to a link whose rate changes during a run, for example 20 -> 2 -> 20 Mbit/s.

Every policy trains against a teacher behind a token bucket. Its rate changes twice, at fixed times after the first batch arrived.
The wall-clocks are paired with those of the best single policy. "followed after" is the number of training cycles between a change
and the first allocation that the policy did not use in the cycles before.

    python benchmarks/link_change.py [--policies os-default,compute-first,dynamic,adaptive] [--repeats 5] [--json FILE]

Requires root for the network namespace. Run it on a quiet machine.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from links import Link

from edge_student.measure.interleaving import schedule_of_runs
from edge_student.measure.intervals import median_interval
from edge_student.measure.result_file import write_results
from edgekd.cli.command import parse
from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))
DATASET = "synthetic:classes=100,size=32,samples=1024"
PUBLIC_BATCH = 16  # a batch takes 2.6 ms at 20 Mbit/s, a step about 3 ms: the link is the bottleneck at 2 Mbit/s only
BATCH_BYTES = 4 * 100 * PUBLIC_BATCH
BEFORE = 20  # cycles before a change whose allocations count as used before


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Change the rate of the link during a run, under several policies."""

    rates: str = "20,2,20"
    """Successive rates of the link in Mbit/s, comma-separated."""
    seconds: float = 4.0
    """Seconds for which each rate but the last lasts."""
    cycles: int = 3000
    """Training cycles of each run."""
    policies: str = "os-default,compute-first,dynamic,adaptive"
    """Policies to compare, comma-separated."""
    repeats: int = 5
    """Runs of each policy."""
    json: Path | None = None
    """Result file."""


def run_once(policy: str, address: str, settings: Settings, link: Link, out: Path) -> dict[str, Any]:
    """Train once while the link changes."""
    rates = [float(rate) for rate in settings.rates.split(",")]
    link.set_rate(rates[0])
    command = [sys.executable, "-m", "edge_student", "train", "--teacher", address, "--policy", policy, "--out", str(out)]
    command += ["--private", f"{DATASET}:private", "--model", "cnn:width=8", "--batch-size", "8", "--prefetch", "16"]
    command += ["--public-batch", str(PUBLIC_BATCH), "--cycles", str(settings.cycles), "--log-level", "warning"]
    before = link.received_bytes()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        while link.received_bytes() - before < BATCH_BYTES and process.poll() is None:
            time.sleep(0.01)
        changes = []
        for rate in rates[1:]:
            time.sleep(settings.seconds)
            if process.poll() is not None:
                raise SystemExit(f"{policy}: the run ended before the link had every rate; increase --cycles")
            link.set_rate(rate)
            changes.append(time.monotonic())
    if process.returncode != 0:
        raise SystemExit(f"{policy}: train ended with exit status {process.returncode}")
    return {"policy": policy, **read(out, changes)}


def read(out: Path, changes: list[float]) -> dict[str, Any]:
    """Read a run: its wall-clock, the time of each change, and the cycles after which each was followed (None: never)."""
    records = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    start = next(record["clock_monotonic_s"] for record in records if record["event"] == "start")
    at = [change - start for change in changes]
    cycle_ends = np.array([r["ended"] for r in records if r["event"] == "task" and r["task"] == "backward"])
    decisions = [(r["time"], json.dumps([r["allocation"], r["reason"]])) for r in records if r["event"] == "decision"]
    followed = []
    for change, following in pairwise([*at, float("inf")]):
        num_before = int(np.searchsorted(cycle_ends, change))
        since = cycle_ends[max(num_before - BEFORE, 0)]
        usual = {choice for when, choice in decisions if since <= when < change}
        first = next((when for when, choice in decisions if change <= when < following and choice not in usual), None)
        followed.append(None if first is None else int(np.searchsorted(cycle_ends, first)) - num_before)
    result = json.loads((out / "result.json").read_text())
    if not result["valid"]:
        raise SystemExit(f"{result['policy']}: the run is invalid: {'; '.join(result['notes'])}")
    return {"wall_clock_s": result["wall_clock_s"], "changed_at_s": at, "followed_after_cycles": followed}


def summarize(runs: list[dict[str, Any]], policies: list[str]) -> dict[str, Any]:
    """Return each policy's median, and its paired ratio to the best single policy, which has the least median but `adaptive`'s."""
    clocks = {name: np.array([run["wall_clock_s"] for run in runs if run["policy"] == name]) for name in policies}
    best = min((name for name in policies if name != "adaptive"), key=lambda name: float(np.median(clocks[name])))
    summary: dict[str, Any] = {"best": best}
    for name, seconds in clocks.items():
        ratios = (seconds / clocks[best]).tolist()
        interval = median_interval(ratios)
        median_s, vs_best = float(np.median(seconds)), float(np.median(ratios))
        summary[name] = {"median_s": median_s, "vs_best": vs_best, "vs_best_interval": interval and asdict(interval)}
    return summary


def main() -> None:
    settings = parse(Settings, sys.argv[1:], prog="link_change.py", description="How policies react to a changing link.")
    policies = settings.policies.split(",")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that SIGTERM removes the namespace too
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, Link() as link:
        if not link.is_namespace:
            raise SystemExit("cannot create a network namespace, which this benchmark requires: run it as root")
        folder = Path(name)
        with link.teacher(CORES[0], DATASET, None, folder / "store") as address:
            for repeat, policy in schedule_of_runs(policies, settings.repeats):
                runs.append(run_once(policy, address, settings, link, folder / "run"))
                print(f"{repeat + 1} of {settings.repeats}, {runs[-1]}", file=sys.stderr, flush=True)
    results = {"batch_bytes": BATCH_BYTES, "runs": runs, "summary": summarize(runs, policies)}
    print(json.dumps(results["summary"], indent=2))
    write_results(settings.json, cores=CORES, settings=settings, results=results)


if __name__ == "__main__":
    main()
