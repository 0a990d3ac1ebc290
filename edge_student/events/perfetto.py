"""Converts the event log into a Perfetto trace: the tasks of each worker, and the owner of each core."""

from collections.abc import Sequence
from typing import Any

from edge_student.events.buffer import Record
from edge_student.events.spans import core_owners, shard_spans

_TRACKS = {"comm": 1, "comp": 2, "scheduler": 3}
_FIRST_SHARD = 4


def to_trace(records: Sequence[Record], cores: Sequence[int]) -> dict[str, Any]:
    """Return a trace in Chrome's trace-event format (times in us), with one track per worker, per shard and per core.

    `records` are those of events.jsonl, in order of time. The core owners are the same as in report.html.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": name}} for name, track in _TRACKS.items()
    ]
    events += [{"ph": "M", "name": "thread_name", "pid": 2, "tid": core, "args": {"name": f"core {core}"}} for core in cores]
    events += [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "workers"}}]
    events += [{"ph": "M", "name": "process_name", "pid": 2, "args": {"name": "core owners"}}]
    for record in records:
        if record["event"] in ("task", "wait"):
            name = record.get("task") or f"wait for {record['why']}"
            track = _TRACKS["comm" if record.get("task") == "comm" else "comp"]
            events.append(_slice(f"{name} {record['index']}", record["started"], record["ended"], 1, track))
        elif record["event"] == "decision":
            name = f"{record['reason']}: comm {record['allocation']['comm']} | comp {record['allocation']['comp']}"
            instant = {"ph": "i", "s": "t", "name": name, "ts": record["time"] * 1e6, "pid": 1, "tid": _TRACKS["scheduler"]}
            events.append({**instant, "args": {key: record[key] for key in ("policy", "state", "requested")}})
    for shard, spans in enumerate(shard_spans(records)):
        track = _FIRST_SHARD + shard
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": track, "args": {"name": f"shard {shard}"}})
        events += [_slice(f"{span.what} {span.index}", span.started, span.ended, 1, track) for span in spans]
    for core, spans in core_owners(records).items():
        events += [_slice(span.what, span.started, span.ended, 2, core) for span in spans]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _slice(name: str, started: float, ended: float, pid: int, tid: int) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": started * 1e6, "dur": max(ended - started, 0.0) * 1e6, "pid": pid, "tid": tid}
