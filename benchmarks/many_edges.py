"""Throughput, fairness and memory of one teacher with many edges.

Each edge is a process with its own sample order. All of them receive batches from one teacher with a full store at the same time.

    python benchmarks/many_edges.py [--edges 32] [--seconds 20] [--json FILE]
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from links import configure, loopback_teacher

from edge_student.ipc.ring import RingShape, Slot
from edge_student.measure.result_file import write_results
from edge_student.receive.receiver import Receiver
from edge_student.run.worker_process import worker_environment
from edgekd.cli.command import parse
from scheduler.live.threads import allowed_cores

CORES = tuple(sorted(allowed_cores()))
BATCH, CLASSES, SAMPLES = 128, 100, 20_000
_READY = "ready"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Serve many edges at the same time from a full store."""

    edges: int = 32
    """Number of edges."""
    seconds: float = 20.0
    """Seconds for which they receive."""
    json: Path | None = None
    """Result file."""


def receive(address: str, seed: int, seconds: float) -> None:
    """Run one edge: print a ready line, wait for a line, receive for `seconds`, and print the counts."""
    config = configure(address, batch_size=BATCH, seed=seed, encoding="float16")
    receiver = Receiver(config, lambda cause, attempt: print(cause, file=sys.stderr))
    receiver.describe()
    slot = Slot.empty(RingShape(num_slots=1, batch_size=BATCH, num_classes=CLASSES, logit_bytes=2))
    print(_READY, flush=True)
    sys.stdin.readline()
    deadline, num_batches = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        receiver.receive(num_batches, 1 << 30, slot, lambda: None)
        num_batches += 1
    print(json.dumps({"num_batches": num_batches, "num_reconnects": receiver.num_reconnects}))


def teacher_process() -> psutil.Process:
    """Return the teacher process that this process has started."""
    return next(child for child in psutil.Process().children() if "cloud_teacher" in child.cmdline())


def main() -> None:
    if len(sys.argv) == 5 and sys.argv[1] == "_receive":
        receive(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
        return
    settings = parse(Settings, sys.argv[1:], prog="many_edges.py", description="One teacher with many edges.")
    dataset = f"synthetic:classes={CLASSES},size=8,samples={SAMPLES}"
    with tempfile.TemporaryDirectory() as name, loopback_teacher(CORES[0], dataset, Path(name) / "store") as address:
        teacher = teacher_process()
        edges = [
            subprocess.Popen(
                [sys.executable, __file__, "_receive", address, str(seed), str(settings.seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=worker_environment(os.environ),
            )
            for seed in range(settings.edges)
        ]
        for edge in edges:
            assert edge.stdout is not None
            assert edge.stdout.readline().strip() == _READY
        for edge in edges:
            assert edge.stdin is not None
            edge.stdin.write("\n")
            edge.stdin.flush()
        resident_mib = []
        for _ in range(8):
            time.sleep(settings.seconds / 10)
            resident_mib.append(teacher.memory_info().rss / 2**20)
        outputs = [json.loads(edge.communicate()[0]) for edge in edges]
    counts = [output["num_batches"] for output in outputs]
    results = {
        "batches_of_each_edge": counts,
        "batches_per_s": sum(counts) / settings.seconds,
        "least_of_median": min(counts) / statistics.median(counts),
        "most_of_median": max(counts) / statistics.median(counts),
        "num_reconnects": sum(output["num_reconnects"] for output in outputs),
        "teacher_resident_mib": resident_mib,
    }
    print(json.dumps(results, indent=2))
    write_results(settings.json, cores=CORES, settings=settings, results=results)


if __name__ == "__main__":
    main()
