"""Computes time spans from the records of a run: the owner of each core, and the tasks of each worker.

A decision contains the requested allocation. Compute applies it later, at its next boundary, and logs `comp-bound` with the cores
that it holds from then on. In a log without `comp-bound` records, every requested allocation counts as applied at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARD_PARTS = ("forward", "backward", "step")
"""The parts of a shard's cycle, in order."""

_WAITS = {"logits": "stall", "hold": "hold"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An activity or owner (`what`) from `started` to `ended`, in seconds. `index` is the cycle of a task or wait, from 0."""

    what: str
    started: float
    ended: float
    index: int | None = None


def core_owners(records: Sequence[Mapping[str, Any]]) -> dict[int, list[Span]]:
    """Return, by core, the spans of its owners in order: "comm", "comp" or "both". Between these spans the core had no owner."""
    follows_bounds = any(record["event"] == "comp-bound" for record in records)
    spans: dict[int, list[Span]] = {}
    held: dict[int, tuple[str, float]] = {}
    for time, owners in [*_changes(records, follows_bounds), (last_moment(records), {})]:
        for core in sorted(held.keys() | owners.keys()):
            owner, since = held.get(core, (None, time))
            if owner == owners.get(core):
                continue
            if owner is not None and time > since:
                spans.setdefault(core, []).append(Span(what=owner, started=since, ended=time))
            if core in owners:
                held[core] = (owners[core], time)
            else:
                del held[core]
    return dict(sorted(spans.items()))


def comm_spans(records: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Return the Comm tasks as spans named "comm"."""
    return [_span(record, "comm") for record in records if record["event"] == "task" and record["task"] == "comm"]


def comp_spans(records: Sequence[Mapping[str, Any]]) -> list[Span]:
    """Return the spans of training in order: "forward", "backward", "stall" (wait for logits) and "hold" (wait for cores)."""
    spans = []
    for record in records:
        if record["event"] == "wait":
            spans.append(_span(record, _WAITS.get(record["why"], record["why"])))
        elif record["event"] == "task" and record["task"] != "comm":
            spans.append(_span(record, record["task"]))
    return sorted(spans, key=lambda span: span.started)


def shard_spans(records: Sequence[Mapping[str, Any]]) -> list[list[Span]]:
    """Return the spans of each shard in order: "forward", "backward" and "step". Between these spans its worker waited."""
    found: list[list[Span]] = []
    for record in records:
        if record["event"] != "shards":
            continue
        for part in SHARD_PARTS:
            for shard, (started, ended) in enumerate(record[part]):
                if shard == len(found):
                    found.append([])
                zero = record["started"]
                found[shard].append(Span(what=part, started=zero + started, ended=zero + ended, index=record["index"]))
    return found


def last_moment(records: Sequence[Mapping[str, Any]]) -> float:
    """Return the time of the last record's end, in seconds; 0 for an empty log."""
    return max((float(record["ended"] if "ended" in record else record["time"]) for record in records), default=0.0)


def _span(record: Mapping[str, Any], what: str) -> Span:
    return Span(what=what, started=record["started"], ended=record["ended"], index=record["index"])


def _changes(records: Sequence[Mapping[str, Any]], follows_bounds: bool) -> Iterator[tuple[float, dict[int, str]]]:
    """Yield (time, owner by core from that time on), in order of time."""
    changes: list[tuple[float, str, Mapping[str, Any]]] = []
    for record in records:
        if record["event"] in ("decision", "comp-bound"):
            changes.append((record["time"], record["event"], record))
        elif record["event"] == "wait" and follows_bounds:
            changes += [(record["started"], "wait", record), (record["ended"], "go", record)]
    requested: Mapping[str, Any] = {"comm": (), "comp": ()}
    bound: list[int] | None = None
    is_waiting = False
    for time, kind, record in sorted(changes, key=lambda change: change[0]):
        if kind == "decision":
            requested = record["requested"]
        elif kind == "comp-bound":
            bound = record["cores"]
        else:
            is_waiting = kind == "wait"
        comp = requested["comp"] if bound is None else bound
        yield time, _owners(requested, [] if is_waiting else comp)


def _owners(requested: Mapping[str, Any], comp: Sequence[int]) -> dict[int, str]:
    """Return the owner by core. A core requested for comm stays with compute until compute leaves it, unless both may share it."""
    is_shared = bool(set(requested["comm"]) & set(requested["comp"]))
    owners = dict.fromkeys(comp, "comp")
    for core in requested["comm"]:
        if core not in owners:
            owners[core] = "comm"
        elif is_shared:
            owners[core] = "both"
    return owners
