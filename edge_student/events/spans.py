"""Who held which core, and what each worker did, as spans of time; made from the records of a run's log and nothing else.

A decision says what is asked for; compute takes it up at its next boundary only. Logs that say when it did (`comp-bound`: from
then on compute really has these cores) are followed. In one that does not, what was asked for is taken for what was done.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WAITS = {"logits": "stall", "hold": "hold"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What lasted from `started` to `ended`, in seconds; of a task or a wait also the cycle, counted from 0."""

    what: str
    started: float
    ended: float
    index: int | None = None


def core_owners(records: Sequence[Mapping[str, Any]]) -> dict[int, list[Span]]:
    """For each core that anybody was given, in order: "comm", "comp" or "both". Between these spans nobody held it."""
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
    """The Comm tasks, as "comm"."""
    return [_span(record, "comm") for record in records if record["event"] == "task" and record["task"] == "comm"]


def comp_spans(records: Sequence[Mapping[str, Any]]) -> list[Span]:
    """What training did, in order: "forward", "backward", "stall" (it waited for logits) and "hold" (for cores)."""
    spans = []
    for record in records:
        if record["event"] == "wait":
            spans.append(_span(record, _WAITS.get(record["why"], record["why"])))
        elif record["event"] == "task" and record["task"] != "comm":
            spans.append(_span(record, record["task"]))
    return sorted(spans, key=lambda span: span.started)


def last_moment(records: Sequence[Mapping[str, Any]]) -> float:
    """When the last of it ended, in seconds; 0 for an empty log."""
    return max((float(record["ended"] if "ended" in record else record["time"]) for record in records), default=0.0)


def _span(record: Mapping[str, Any], what: str) -> Span:
    return Span(what=what, started=record["started"], ended=record["ended"], index=record["index"])


def _changes(records: Sequence[Mapping[str, Any]], follows_bounds: bool) -> Iterator[tuple[float, dict[int, str]]]:
    """(time, owner of each core from then on), in order of time."""
    marks: list[tuple[float, str, Mapping[str, Any]]] = []
    for record in records:
        if record["event"] in ("decision", "comp-bound"):
            marks.append((record["time"], record["event"], record))
        elif record["event"] == "wait" and follows_bounds:
            marks += [(record["started"], "wait", record), (record["ended"], "go", record)]
    requested: Mapping[str, Any] = {"comm": (), "comp": ()}
    bound: list[int] | None = None
    is_waiting = False
    for time, kind, record in sorted(marks, key=lambda mark: mark[0]):
        if kind == "decision":
            requested = record["requested"]
        elif kind == "comp-bound":
            bound = record["cores"]
        else:
            is_waiting = kind == "wait"
        comp = requested["comp"] if bound is None else bound
        yield time, _owners(requested, [] if is_waiting else comp)


def _owners(requested: Mapping[str, Any], comp: Sequence[int]) -> dict[int, str]:
    """Where comm was asked onto a core that compute has not left yet, it waits; unless the two were meant to share it."""
    is_shared = bool(set(requested["comm"]) & set(requested["comp"]))
    owners = dict.fromkeys(comp, "comp")
    for core in requested["comm"]:
        if core not in owners:
            owners[core] = "comm"
        elif is_shared:
            owners[core] = "both"
    return owners
