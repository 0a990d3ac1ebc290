"""The run's log: every task, wait and decision as a line of events.jsonl, and the same as a timeline for Perfetto.

Records are plain dicts with times of the monotonic clock. They are kept in memory during the run, because a write in the middle of
a training step would be work that nobody scheduled, and saved when the run ends, in whatever way.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgekd.files import replace_atomically

Record = dict[str, Any]
_TIMES = ("time", "started", "ended", "decided")
_TRACKS = {"comm": 1, "comp": 2, "scheduler": 3}


class Journal:
    """Collects records; safe to call from several threads (appending to a list is atomic)."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def record(self, record: Record) -> None:
        """Take in one record."""
        self.records.append(record)

    def relative_to(self, start: float) -> list[Record]:
        """The records in order of time, with times in seconds since `start`."""
        moved = [{**record, **{key: record[key] - start for key in _TIMES if key in record}} for record in self.records]
        return sorted(moved, key=moment)

    def total_s(self, **match: str) -> float:
        """Seconds that all records with these fields lasted together, for example total_s(event="wait", why="logits").

        What a task spent held in its middle is not its own: that is a wait, with a record of its own.
        """
        return sum(
            float(record["ended"] - record["started"] - record.get("held_s", 0.0))
            for record in self.records
            if all(record.get(key) == value for key, value in match.items())
        )


def moment(record: Record) -> float:
    """When a record happened or began, in seconds."""
    return float(record["started"] if "started" in record else record["time"])


def to_trace(records: Iterable[Record], cores: Sequence[int]) -> dict[str, Any]:
    """Chrome's trace-event format (times in us): one track per worker and one per core, as Perfetto shows them."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}} for name, track in _TRACKS.items()
    ]
    events += [{"ph": "M", "name": "thread_name", "pid": 2, "tid": core, "args": {"name": f"core {core}"}} for core in cores]
    events += [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "workers"}}]
    events += [{"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "who may use which core"}}]
    ordered = list(records)
    for record in ordered:
        if record["event"] in ("task", "wait"):
            name = record.get("task") or f"wait for {record['why']}"
            track = _TRACKS["comm" if record.get("task") == "comm" else "comp"]
            events.append(_slice(f"{name} {record['index']}", record["started"], record["ended"], 1, track))
        elif record["event"] == "decision":
            name = f"{record['reason']}: comm {record['allocation']['comm']} | comp {record['allocation']['comp']}"
            instant = {"ph": "i", "s": "t", "name": name, "ts": record["time"] * 1e6, "pid": 1, "tid": _TRACKS["scheduler"]}
            events.append({**instant, "args": {key: record[key] for key in ("policy", "state", "requested")}})
    events += _core_slices(ordered)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _core_slices(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Who had each core, from one change to the next: comm what the decisions gave it, compute what it was bound to."""
    changes = [record for record in records if record["event"] in ("decision", "comp-bound")]
    end = max((float(record["ended"] if "ended" in record else record["time"]) for record in records), default=0.0)
    slices = []
    requested: dict[str, list[int]] = {"comm": [], "comp": []}
    bound: list[int] | None = None  # until compute is bound for the first time, and where nothing is pinned, decisions tell
    for change, following in zip(changes, [*changes[1:], {"time": end}], strict=True):
        if change["event"] == "decision":
            requested = change["requested"]
        else:
            bound = change["cores"]
        owners = _owners(requested["comm"], requested["comp"], requested["comp"] if bound is None else bound)
        slices += [_slice(owner, change["time"], following["time"], 2, core) for core, owner in owners.items()]
    return slices


def _owners(comm: Sequence[int], wanted: Sequence[int], bound: Sequence[int]) -> dict[int, str]:
    """Which side has each core, while comm and compute are to have `comm` and `wanted`, and compute is on `bound`."""
    if set(comm) & set(wanted):
        return {core: "both" if core in comm and core in bound else "comm" if core in comm else "comp" for core in {*comm, *bound}}
    return dict.fromkeys(comm, "comm") | dict.fromkeys(bound, "comp")  # comm waits for a core that compute has yet to leave


def _slice(name: str, started: float, ended: float, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": started * 1e6, "dur": max(ended - started, 0.0) * 1e6, "pid": pid, "tid": tid}


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it. OSError names the file."""
    replace_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does. ValueError for NaN, which is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON object a line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
