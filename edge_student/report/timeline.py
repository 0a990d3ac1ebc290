"""Draw the timeline of one run: an excerpt that shows every task, and below it the whole run as a strip."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_student.events.spans import SHARD_PARTS, Span, comm_spans, comp_spans, core_owners, last_moment, shard_spans
from edge_student.report.shapes import LEFT, WIDTH, Figure, Scale, Shape, axis, blocks, rect, row_label, text

RunRecord = dict[str, Any]

EXCERPT_CYCLES = 12
_RIGHT = WIDTH - 16
_NUM_SLICES = 260
_MOST_DRAWN = 360  # the strip draws up to this many training tasks one by one; above, it draws shares of time
_STRIP = 34.0
_LANE = 24.0
_GAP = 6.0


def representative_run(policy: str, median_s: float | None, runs: Sequence[RunRecord]) -> RunRecord | None:
    """Return the valid run that is nearest to the median. None without a valid run."""
    valid = [run for run in runs if run["policy"] == policy and run["valid"]]
    if median_s is None or not valid:
        return None
    return min(valid, key=lambda run: (abs(run["wall_clock_s"] - median_s), run["repeat"]))


def timeline_section(policy: str, run: RunRecord | None, out: Path, number: int) -> RunRecord:
    """Return {"policy", "caption", "figure"} of one policy. Without a readable log, figure is None and caption names the cause."""
    if run is None:
        return {"policy": policy, "figure": None, "caption": "No run of this policy counts, so no timeline is shown."}
    folder = run.get("folder", f"runs/{policy.replace(':', '-')}-{run['repeat']}")  # a repeated attempt has its own folder
    try:
        lines = (out / folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        figure, shown = _draw([json.loads(line) for line in lines], policy, number)
    except FileNotFoundError:
        return {
            "policy": policy,
            "figure": None,
            "caption": f"The log {folder}/events.jsonl is missing, so no timeline is shown.",
        }
    except (OSError, ValueError, KeyError, TypeError, ArithmeticError) as error:
        cause = f"{type(error).__name__}: {error}"
        return {"policy": policy, "figure": None, "caption": f"The log {folder}/events.jsonl cannot be read ({cause})."}
    return {"policy": policy, "figure": figure, "caption": f"Repeat {run['repeat']}, {run['wall_clock_s']:.3f} s. {shown}"}


def _draw(records: Sequence[RunRecord], policy: str, number: int) -> tuple[Figure, str]:
    owners, comm, comp = core_owners(records), comm_spans(records), comp_spans(records)
    if not comp:
        raise ValueError("it has no training task")
    first, last, start, end = _excerpt(comm, comp)
    scale = Scale(low=start, high=end, start=LEFT, end=_RIGHT)
    in_ms = Scale(low=start * 1e3, high=end * 1e3, start=LEFT, end=_RIGHT)
    height = 16.0 if len(owners) <= 8 else 8.0
    shapes: list[Shape] = []
    y = 14.0
    for row, (core, spans) in enumerate(owners.items()):
        if height > 8 or row % 2 == 0:  # with low rows, only every other label fits
            shapes.append(row_label(y + height / 2 + 4.5, f"core {core}"))
        shapes += [rect(LEFT, y, _RIGHT - LEFT, height, "idle"), *_row_of_cores(spans, scale, y, height)]
        y += height + 3
    y += _GAP
    for label, spans in (("comm", comm), ("training", comp)):
        shapes += [row_label(y + 16, label), rect(LEFT, y, _RIGHT - LEFT, _LANE, "idle"), *_tasks(spans, scale, y)]
        y += _LANE + _GAP
    shards = shard_spans(records)
    height = 12.0 if len(shards) <= 8 else 6.0
    for shard, spans in enumerate(shards):
        if height > 6 or shard % 2 == 0:
            shapes.append(row_label(y + height / 2 + 4.5, f"shard {shard}"))
        shapes += [rect(LEFT, y, _RIGHT - LEFT, height, "idle"), *_parts(spans, scale, y, height)]
        y += height + 3
    shapes = [*axis(in_ms, y, 10, f"milliseconds since the start, cycles {first} to {last}"), *shapes]
    y += 52
    whole = Scale(low=0.0, high=last_moment(records), start=LEFT, end=_RIGHT)
    bottom = y + 2 * (_STRIP + _GAP)
    shapes += axis(whole, bottom, y - 4, "seconds since the start, whole run; the frame marks the excerpt above")
    shapes += [*_strip(owners, comp, whole, y), _window(whole, start, end, y)]
    title = f"Core use over time under {policy}"
    rows = "one row per core, the tasks of comm and training" + (", and one row per shard" if shards else "")
    description = f"Top: cycles {first} to {last}, with {rows}. Bottom: the whole run."
    figure = Figure(name=f"timeline-{number}", title=title, description=description, height=bottom + 42, shapes=tuple(shapes))
    return figure, f"Top: cycles {first} to {last} of {(comp[-1].index or 0) + 1}, counted from 0. Bottom: the whole run."


def _excerpt(comm: Sequence[Span], comp: Sequence[Span]) -> tuple[int, int, float, float]:
    """Return the first and last cycle of the excerpt, and its start and end in seconds.

    The excerpt lies in the middle of the run, or at the end of comm if comm ends earlier.
    """
    cycles = [span for span in comp if span.index is not None]
    last_cycle = max(span.index or 0 for span in cycles)
    first = max(0, last_cycle // 2 - EXCERPT_CYCLES // 2 + 1)
    comm_ended = max((span.ended for span in comm), default=0.0)
    if comm_ended < min(span.started for span in cycles if span.index == first):
        during = max((span.index or 0 for span in cycles if span.started <= comm_ended), default=0)
        first = max(0, during - EXCERPT_CYCLES // 2)
    last = min(first + EXCERPT_CYCLES - 1, last_cycle)
    shown = [span for span in cycles if first <= (span.index or 0) <= last]
    end, worked_from = shown[-1].ended, next((span.started for span in shown if span.what not in ("hold", "stall")), 0.0)
    # A wait before the first cycle may take half of the run. The excerpt shows only the last part of a long wait.
    start = max(shown[0].started, worked_from - 0.5 * (end - worked_from))
    return first, last, start, end


def _cut(spans: Sequence[Span], scale: Scale) -> list[tuple[Span, float, float]]:
    """Return (span, x, width) of the spans that overlap the scale, which is in seconds."""
    visible = [span for span in spans if span.ended > scale.low and span.started < scale.high]
    ends = [(scale(max(span.started, scale.low)), scale(min(span.ended, scale.high))) for span in visible]
    return [(span, x, end - x) for span, (x, end) in zip(visible, ends, strict=True)]


def _row_of_cores(spans: Sequence[Span], scale: Scale, y: float, height: float) -> list[Shape]:
    cut = _cut(spans, scale)
    looks = {"comm": "held-comm", "comp": "held-comp", "both": "held-both"}
    boxes = {owner: [(x, y, width, height) for span, x, width in cut if span.what == owner] for owner in looks}
    return [blocks(boxes[owner], look) for owner, look in looks.items() if boxes[owner]]


def _parts(spans: Sequence[Span], scale: Scale, y: float, height: float) -> list[Shape]:
    """Draw the parts of a shard: one shape for each kind, because there are many."""
    boxes: dict[str, list[tuple[float, float, float, float]]] = {part: [] for part in SHARD_PARTS}
    for span, x, width in _cut(spans, scale):
        boxes[span.what].append((x, y, width, height))
    return [blocks(found, part) for part, found in boxes.items() if found]


def _tasks(spans: Sequence[Span], scale: Scale, y: float) -> list[Shape]:
    shapes = []
    for span, x, width in _cut(spans, scale):
        tip = f"{span.what} of cycle {span.index}: {(span.ended - span.started) * 1e3:.2f} ms"
        look = f"task {span.what}" if width > 3 else span.what  # an outline would cover a narrower task
        shapes.append(rect(x, y, width, _LANE, look, tip))
        if width > 30 and span.what in ("comm", "forward", "backward"):
            shapes.append(text(x + width / 2, y + 16, str(span.index), f"on-{span.what}", "middle"))
    return shapes


def _strip(owners: dict[int, list[Span]], comp: Sequence[Span], whole: Scale, y: float) -> list[Shape]:
    """Draw two stacked bands over time: the share of cores that each side held, and the share of each training activity."""
    cores = {
        look: [_of(spans, owner) for spans in owners.values()]
        for look, owner in (("held-comp", "comp"), ("held-both", "both"), ("held-comm", "comm"))
    }
    training = {activity: [_of(comp, activity)] for activity in ("backward", "forward", "hold", "stall")}
    lower = y + _STRIP + _GAP
    if len(comp) <= _MOST_DRAWN:
        visible = {activity: _cut(spans, whole) for activity, (spans,) in training.items() if spans}
        worked = [blocks([(x, lower, width, _STRIP) for _, x, width in cut], activity) for activity, cut in visible.items()]
    else:  # slices about as long as a task would alias with the tasks, so each slice spans several
        worked = _band(training, min(len(comp) // 8, _NUM_SLICES), whole, lower)
    return [
        *(row_label(top + 21, label) for top, label in ((y, "cores"), (lower, "training"))),
        *(rect(LEFT, top, _RIGHT - LEFT, _STRIP, "idle") for top in (y, lower)),
        *_band(cores, _NUM_SLICES, whole, y),
        *worked,
    ]


def _band(kinds: dict[str, list[list[Span]]], num_slices: int, whole: Scale, y: float) -> list[Shape]:
    shapes, below = [], [0.0] * num_slices
    for look, rows in kinds.items():
        slices = [_shares(row, whole.high, num_slices) for row in rows]
        shares = [sum(of_rows) / len(of_rows) for of_rows in zip(*slices, strict=True)]
        boxes = _stacked(below, shares, whole, y)
        if boxes:
            shapes.append(blocks(boxes, look))
        below = [low + share for low, share in zip(below, shares, strict=True)]
    return shapes


def _of(spans: Sequence[Span], kind: str) -> list[Span]:
    return [span for span in spans if span.what == kind]


def _shares(spans: Sequence[Span], end: float, num_slices: int) -> list[float]:
    """Return the share of each of `num_slices` equal slices of 0..end that the spans cover."""
    width, shares = end / num_slices, [0.0] * num_slices
    for span in spans:
        for slot in range(max(int(span.started / width), 0), min(int(span.ended / width) + 1, num_slices)):
            overlap = min(span.ended, (slot + 1) * width) - max(span.started, slot * width)
            shares[slot] += max(overlap, 0.0) / width
    return shares


def _stacked(below: Sequence[float], shares: Sequence[float], whole: Scale, y: float) -> list[tuple[float, float, float, float]]:
    """Return one box per stretch of neighbouring slices that are equal to half a pixel."""
    width = (whole.end - whole.start) / len(shares)
    boxes: list[tuple[float, float, float, float]] = []
    for slot, (low, share) in enumerate(zip(below, shares, strict=True)):
        bottom, top = (round(min(height, 1.0) * _STRIP * 2) / 2 for height in (low, low + share))
        if top <= bottom:
            continue
        x, box = whole.start + slot * width, (y + _STRIP - top, top - bottom)
        if boxes and abs(boxes[-1][0] + boxes[-1][2] - x) < 1e-6 and (boxes[-1][1], boxes[-1][3]) == box:
            boxes[-1] = (boxes[-1][0], box[0], boxes[-1][2] + width, box[1])
        else:
            boxes.append((x, box[0], width, box[1]))
    return boxes


def _window(whole: Scale, start: float, end: float, y: float) -> Shape:
    """Draw the frame around the time of the excerpt."""
    return rect(whole(start), y - 3, whole(end) - whole(start), 2 * _STRIP + _GAP + 6, "window")
