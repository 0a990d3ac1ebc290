"""The event log: order, times, totals, core owners in the trace, and the file on a full disk."""

import json
import resource
from pathlib import Path

import pytest
from processes import events

from edge_student.events.buffer import EventBuffer, since
from edge_student.events.log_file import EventFile, Totals
from edge_student.events.perfetto import to_trace

DECISION = {
    "event": "decision",
    "policy": "static:1",
    "reason": "policy",
    "state": [0, 0, 0],
    "allocation": {"comm": 1, "comp": 1, "pinned": True},
    "requested": {"comm": [0], "comp": [1]},
}


def totals_of(log: EventBuffer) -> Totals:
    totals = Totals()
    for record in log.records:
        totals.add(record)
    return totals


def buffer() -> EventBuffer:
    log = EventBuffer()
    log.record({"event": "task", "task": "forward", "index": 0, "started": 101.0, "ended": 103.0})
    log.record({"event": "wait", "why": "logits", "index": 0, "started": 103.0, "ended": 104.5})
    comm = {"event": "task", "task": "comm", "index": 0, "cpu_s": 0.5, "num_bytes": 640}
    log.record({**comm, "started": 100.0, "ended": 104.5})
    log.record({**DECISION, "sequence": 0, "time": 100.0})
    log.record({**DECISION, "sequence": 1, "time": 104.5, "requested": {"comm": [], "comp": [0, 1]}})
    log.record({"event": "task", "task": "backward", "index": 0, "started": 104.5, "ended": 106.0})
    return log


def test_the_log_is_in_order_and_counts_from_the_start() -> None:
    records = since(100.0, buffer().records)
    assert [record.get("started", record.get("time")) for record in records] == [0.0, 0.0, 1.0, 3.0, 4.5, 4.5]
    totals = totals_of(buffer())
    assert (totals.stall_s, totals.hold_s, totals.comm_s) == (1.5, 0.0, 4.5)
    assert (totals.forward_s, totals.backward_s, totals.num_decisions) == (2.0, 1.5, 2)
    assert (totals.comm_cpu_s, totals.comm_num_bytes, totals.num_cached_batches) == (0.5, 640, 0)


def test_the_trace_shows_the_owner_of_each_core() -> None:
    trace = to_trace(since(100.0, buffer().records), cores=(0, 1))
    json.dumps(trace, allow_nan=False)
    slices = [(e["tid"], e["name"], e["ts"], e["dur"]) for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == 2]
    assert (0, "comm", 0.0, 4.5e6) in slices
    assert (1, "comp", 0.0, 6e6) in slices
    assert (0, "comp", 4.5e6, 1.5e6) in slices
    tasks = {e["name"] for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == 1}
    assert tasks == {"forward 0", "comm 0", "wait for logits 0", "backward 0"}


SHARDS = {
    "event": "shards",
    "index": 0,
    "started": 101.0,
    "ended": 106.0,
    "forward": [[0.0, 1.5], [0.25, 2.0]],
    "backward": [[3.5, 4.0], [3.5, 4.5]],
    "step": [[4.5, 5.0], [4.5, 4.75]],
}


def test_the_trace_has_a_track_for_each_shard() -> None:
    log = buffer()
    log.record(dict(SHARDS))
    trace = to_trace(since(100.0, log.records), cores=(0, 1))
    tracks = {e["args"]["name"]: e["tid"] for e in trace["traceEvents"] if e["name"] == "thread_name" and e["pid"] == 1}
    assert list(tracks) == ["comm", "comp", "scheduler", "shard 0", "shard 1"]
    assert len(set(tracks.values())) == 5
    slices = [(e["name"], e["ts"], e["dur"]) for e in trace["traceEvents"] if e.get("tid") == tracks["shard 1"] and e["ph"] == "X"]
    assert slices == [("forward 0", 1.25e6, 1.75e6), ("backward 0", 4.5e6, 1e6), ("step 0", 5.5e6, 0.25e6)]
    assert totals_of(log) == totals_of(buffer()), "the work of shards is part of the tasks"


def test_a_core_is_computes_from_when_it_was_bound_until_it_left() -> None:
    """A decision at 2 s moves core 1 from compute to comm; compute leaves it at 3 s and waits from 5 s to 6 s."""
    log = EventBuffer()
    for sequence, time, comm, comp in (
        (0, 0.0, [0], [1, 2]),
        (1, 2.0, [0, 1], [2]),
        (2, 5.0, [0, 1, 2], []),
        (3, 6.0, [0], [1, 2]),
    ):
        log.record({**DECISION, "sequence": sequence, "time": time, "requested": {"comm": comm, "comp": comp}})
    for time, cores in ((1.0, [1, 2]), (3.0, [2]), (5.0, []), (6.5, [1, 2])):
        log.record({"event": "comp-bound", "time": time, "decision": 0, "decided": 0.0, "cores": cores, "where": "layer"})
    log.record({"event": "task", "task": "backward", "index": 0, "started": 0.5, "ended": 8.0, "held_s": 1.0})
    assert owners_of(log, cores=(0, 1, 2)) == {
        0: [("comm", 0.0, 8.0)],
        1: [("comp", 0.0, 3.0), ("comm", 3.0, 6.0), ("comp", 6.5, 8.0)],
        2: [("comp", 0.0, 5.0), ("comm", 5.0, 6.0), ("comp", 6.5, 8.0)],
    }
    assert totals_of(log).backward_s == 6.5, "what it was held is a wait of its own"
    assert [record["decided"] for record in since(-1.0, log.records) if record["event"] == "comp-bound"] == [1.0] * 4


def test_a_core_that_both_may_use_is_drawn_as_both_once_compute_has_it() -> None:
    log = EventBuffer()
    for sequence, time, comm, comp in ((0, 0.0, [0], [1]), (1, 2.0, [0, 1], [0, 1])):
        log.record({**DECISION, "sequence": sequence, "time": time, "requested": {"comm": comm, "comp": comp}})
    for time, cores in ((0.0, [1]), (3.0, [0, 1])):
        log.record({"event": "comp-bound", "time": time, "decision": 0, "decided": 0.0, "cores": cores, "where": "layer"})
    log.record({"event": "task", "task": "forward", "index": 0, "started": 0.0, "ended": 4.0})
    assert owners_of(log, cores=(0, 1)) == {
        0: [("comm", 0.0, 3.0), ("both", 3.0, 4.0)],
        1: [("comp", 0.0, 2.0), ("both", 2.0, 4.0)],
    }


def owners_of(log: EventBuffer, cores: tuple[int, ...]) -> dict[int, list[tuple[str, float, float]]]:
    """Return the owner spans of each core in the trace, with adjacent equal spans merged."""
    owners: dict[int, list[tuple[str, float, float]]] = {core: [] for core in cores}
    for event in to_trace(since(0.0, log.records), cores)["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == 2:
            name, start, end = event["name"], event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6
            track = owners[event["tid"]]
            assert not track or track[-1][2] <= start, "one track holds one thing at a time"
            if track and track[-1][0] == name and track[-1][2] == start:
                start = track.pop()[1]
            if end > start:
                track.append((name, start, end))
    return owners


def test_a_log_that_cannot_be_written_keeps_its_records_in_order(tmp_path: Path) -> None:
    buffer, log = EventBuffer(), EventFile(tmp_path / "events.jsonl")
    for started in (1.0, 2.0):
        buffer.record({"event": "checkpoint", "index": 1, "started": started, "ended": started + 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            log.append(buffer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    buffer.record({"event": "checkpoint", "index": 2, "started": 3.0, "ended": 3.5})
    log.append(buffer)
    assert [record["started"] for record in events(tmp_path)] == [1.0, 2.0, 3.0]
    assert (log.totals.num_checkpoints, log.totals.checkpoint_s, buffer.records) == (3, 1.5, [])
    assert log.num_bytes == (tmp_path / "events.jsonl").stat().st_size


def test_a_full_disk_leaves_no_half_written_log(tmp_path: Path) -> None:
    buffer, log = EventBuffer(), EventFile(tmp_path / "events.jsonl")
    buffer.record({"event": "decision", "time": 1.0})
    log.append(buffer)
    whole = (tmp_path / "events.jsonl").read_bytes()
    buffer.record({"event": "decision", "time": 2.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            log.append(buffer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "events.jsonl").read_bytes() == whole
