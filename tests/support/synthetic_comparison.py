"""A synthetic comparison: report.json and logs of three policies with round numbers, on four cores."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from edge_student.report.verdict import summarize
from edge_student.settings.student import CompareConfig, jsonable

CORES = [0, 1, 2, 3]
FORWARD, BACKWARD, COMM = 0.005, 0.009, 0.012
FACTORS = {"os-default": 1.0, "static:1": 0.8, "comm-priority": 1.3}
NOISE = (1.0, 1.02, 0.99, 1.05, 0.98)
SPLITS: dict[str, tuple[list[int], list[int]]] = {
    "os-default": (CORES, CORES),
    "static:1": ([0], [1, 2, 3]),
    "comm-priority": (CORES, []),
}


class Log:
    """Records of one run in order of time, in the format of events.jsonl."""

    def __init__(self, policy: str) -> None:
        self.records: list[dict[str, Any]] = [{"event": "start", "time": 0.0}]
        self._policy = policy

    def decide(self, time: float, comm: list[int], comp: list[int], reason: str = "policy") -> None:
        pinned = self._policy != "os-default"
        allocation = {"comm": len(comm), "comp": len(comp), "pinned": pinned}
        requested = {"comm": comm, "comp": comp}
        shared = {"policy": self._policy, "reason": reason, "state": [0, 0, 0], "effective": {}, "comm_is_held": not comm}
        number = len(self.records)
        self.records.append(
            {"event": "decision", "sequence": number, "time": time, **shared, "allocation": allocation, "requested": requested}
        )

    def last(self, event: str, index: int, started: float, ended: float, **fields: str) -> None:
        self.records.append({"event": event, **fields, "index": index, "started": started, "ended": ended})


QUIET: dict[str, Any] = {
    "core_s": 10.0,
    "others_fraction": 0.0,
    "others_resolution": 0.01,
    "steal_fraction": 0.0,
    "steal_resolution": 0.01,
    "throttled": None,
    "busiest_others": [],
}


def log_of(policy: str, factor: float, cycles: int) -> list[dict[str, Any]]:
    """Return the records of a run. Comm never pauses. Training starts as soon as possible; while it waits, comm has every core."""
    log, now = Log(policy), 0.0
    forward, backward, comm = (seconds * factor for seconds in (FORWARD, BACKWARD, COMM))
    arrivals = [comm * (cycle + 1) for cycle in range(cycles)]
    log.decide(0.0, *SPLITS[policy])
    for cycle, arrival in enumerate(arrivals):
        log.last("task", cycle, arrival - comm, arrival - 0.1 * comm, task="comm")
    if policy == "comm-priority":
        now = arrivals[-1]
        log.last("wait", 0, 0.0, now, why="hold")
        log.decide(now, [], CORES, "comm-done")
    for cycle, arrival in enumerate(arrivals):
        log.last("task", cycle, now, now + forward, task="forward")
        now += forward
        if arrival > now:
            log.decide(now, CORES if policy != "os-default" else SPLITS[policy][0], [] if policy != "os-default" else CORES)
            log.last("wait", cycle, now, arrival, why="logits")
            now = arrival
            log.decide(now, *SPLITS[policy])
        log.last("task", cycle, now, now + backward, task="backward")
        now += backward
        if policy == "static:1" and cycle % 7 == 3:
            log.decide(now - 0.5 * backward, [0, 1], [2, 3])
        elif policy == "static:1":
            log.decide(now, *SPLITS[policy])
    log.decide(now, [] if policy != "os-default" else CORES, CORES, "finished")
    return sorted(log.records, key=lambda record: record.get("started", record.get("time")))


def spent(records: list[dict[str, Any]], **match: str) -> float:
    return sum(r["ended"] - r["started"] for r in records if all(r.get(key) == value for key, value in match.items()))


def run_of(policy: str, repeat: int, records: list[dict[str, Any]], cycles: int) -> dict[str, Any]:
    return {
        "policy": policy,
        "repeat": repeat,
        "attempt": 1,
        "disturbed": False,
        "disturbance": None,
        "wall_clock_s": records[-1]["time"] + 0.01,
        "cycles": cycles,
        "accuracy": 0.969,
        "stall_s": spent(records, why="logits"),
        "hold_s": spent(records, why="hold"),
        "forward_s": spent(records, task="forward"),
        "backward_s": spent(records, task="backward"),
        "comm_cpu_s": spent(records, task="comm"),
        "valid": True,
        "notes": [],
    }


def write_comparison(
    out: Path, *, cycles: int = 60, factors: dict[str, float] | None = None, repeats: int = 5, **settings: Any
) -> dict[str, Any]:
    """Write report.json and runs/ to `out`, and return the report. `factors` scale the baseline's times for each policy."""
    factors = factors or FACTORS
    runs = []
    for repeat in range(repeats):
        for policy, factor in factors.items():
            records = log_of(policy, factor * NOISE[repeat % len(NOISE)], cycles)
            folder = out / "runs" / f"{policy.replace(':', '-')}-{repeat}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            runs.append(run_of(policy, repeat, records, cycles))
    config = CompareConfig(private="digits:private", cycles=cycles, repeats=repeats, out=out, **settings)
    report = {
        "host": {"cpu": "Example CPU", "cores_used": CORES, "governor": None, "load_average": [0.1, 0.2, 0.3]},
        "software": {"python": "3.11.7", "edgekd": "0.1.0", "commit": "0123456789abcdef"},
        "config": jsonable(dataclasses.asdict(config)),
        "command": ["edge-student", "compare", "--private", "digits:private", "--out", "my runs"],
        "is_complete": True,
        "runs": runs,
        "summary": [dataclasses.asdict(row) for row in summarize(runs, list(factors))],
    }
    write_report(out, report)
    return report


def write_report(out: Path, report: dict[str, Any]) -> None:
    (out / "report.json").write_text(json.dumps(report))


def profile(*, fitted: bool = True) -> dict[str, Any]:
    """Return a device profile of four cores in the format of `calibrate`."""
    comp, comm = [10.0, 7.5, 5.0, 2.5, 0.0], [0.0, 8.0, 12.0, 14.0, 15.0]
    names = ["comp-only", "split:1", "split:2", "split:3", "comm-only"]
    modes: list[dict[str, Any]] = [
        {"name": name, "comm_rate": y, "comp_rate": x, "comm_interval": [0.9 * y, 1.1 * y], "comp_interval": [0.9 * x, 1.1 * x]}
        for name, x, y in zip(names, comp, comm, strict=True)
    ]
    modes.append({"name": "compute-first", "comm_rate": 6.0, "comp_rate": 9.0})
    data: dict[str, Any] = {"cores": 4, "forward": 1.0, "backward": 2.0, "comm": 1.0, "modes": modes}
    if fitted:
        data["samples"] = {
            "cores": 4,
            "comp": [{"work": 1.0, "comm_cores": c, "seconds": 1 / comp[c]} for c in range(4) for _ in range(3)],
            "comm": [{"work": 1.0, "comm_cores": c, "seconds": 1 / comm[c]} for c in range(1, 5) for _ in range(3)],
        }
        data["fingerprint"] = {"cpu": "Example CPU"}
    return data
