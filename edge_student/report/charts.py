"""Draw the figures over all runs: wall-clock per run and time per part. Every number comes from report.json."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from edge_student.report.advice import disturbed_by
from edge_student.report.shapes import LEFT, WIDTH, Figure, Scale, Shape, axis, circle, line, rect, row_label, text

RunRecord = dict[str, Any]

PARTS = ("forward", "backward", "stall", "hold", "rest")
_RIGHT = WIDTH - 96
_ROW = 40.0
_TOP = 16.0
_SPREAD_FOR_LOG = 4.0  # at a larger ratio of slowest to fastest, one slow run would compress all others on a linear scale


def is_doubtful(run: RunRecord) -> bool:
    """Return whether a run is drawn as a hollow dot: it does not count, or it was disturbed."""
    return not run["valid"] or bool(disturbed_by(run))


def wall_clock_figure(summary: Sequence[RunRecord], runs: Sequence[RunRecord]) -> Figure | None:
    """Draw every run as a dot, and the median with its interval. Return None if no run finished."""
    times = [run["wall_clock_s"] for run in runs if run["wall_clock_s"]]
    if not times:
        return None
    scale, bottom = _wall_clock_scale(times), _TOP + _ROW * len(summary)
    unit = "wall-clock in seconds" + (", logarithmic" if scale.is_log else "")
    shapes = axis(scale, bottom, _TOP - 8, unit)
    base = summary[0]["median_s"] if summary and summary[0]["verdict"] == "baseline" else None
    if base is not None:
        shapes.append(line(scale(base), _TOP - 8, scale(base), bottom, "baseline"))
    for number, row in enumerate(summary):
        y = _TOP + _ROW * (number + 0.5)
        shapes += [row_label(y + 4, row["policy"]), *_wall_clock_row(scale, y, row, runs)]
    described = [f"{row['policy']} {row['median_s']:.3f} s" for row in summary if row["median_s"] is not None]
    return Figure(
        name="wall-clock",
        title="Wall-clock of every run, by policy",
        description=f"Medians: {'; '.join(described) or 'none'}. The table has the intervals. The list of runs has every time.",
        height=bottom + 42,
        shapes=tuple(shapes),
    )


def _wall_clock_scale(times: Sequence[float]) -> Scale:
    low, high = min(times), max(times)
    if high > _SPREAD_FOR_LOG * low:
        return Scale(low=low / 1.15, high=high * 1.15, start=LEFT, end=_RIGHT, is_log=True)
    margin = max((high - low) * 0.06, high * 0.01)
    return Scale(low=low - margin, high=high + margin, start=LEFT, end=_RIGHT)


def _wall_clock_row(scale: Scale, y: float, row: RunRecord, runs: Sequence[RunRecord]) -> list[Shape]:
    shapes = []
    if row["ci95"] is not None:
        low, high = (scale(value) for value in row["ci95"])
        shapes += [rect(low, y - 9, high - low, 18, "interval")]
    if row["median_s"] is not None:
        x = scale(row["median_s"])
        shapes += [line(x, y - 13, x, y + 13, "median"), text(WIDTH - 4, y + 4, f"{row['median_s']:.3f} s", "value", "end")]
    own = [run for run in runs if run["policy"] == row["policy"] and run["wall_clock_s"]]
    for number, run in enumerate(own):
        lane = y + (number % 5 - 2) * 3.2  # separates runs with equal times
        tip = f"repeat {run['repeat']}: {run['wall_clock_s']:.3f} s" + ("" if run["valid"] else "; does not count")
        shapes.append(circle(scale(run["wall_clock_s"]), lane, 3.6, "hollow" if is_doubtful(run) else "dot", tip))
    return shapes


def parts_of(policies: Sequence[str], runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Return {"policy", "forward", "backward", "stall", "hold", "rest"}, in seconds, for each policy with a valid run.

    Each part is the median over the valid runs.
    """
    rows = []
    for policy in policies:
        valid = [_with_rest(run) for run in runs if run["policy"] == policy and run["valid"]]
        if valid:
            rows.append({"policy": policy, **{part: median(run[f"{part}_s"] for run in valid) for part in PARTS}})
    return rows


def _with_rest(run: RunRecord) -> RunRecord:
    return {**run, "rest_s": max(run["wall_clock_s"] - sum(run[f"{part}_s"] for part in PARTS[:-1]), 0.0)}


def parts_figure(parts: Sequence[RunRecord]) -> Figure | None:
    """Draw a stacked bar of the parts for each policy. Return None without a valid run."""
    if not parts:
        return None
    bottom = _TOP + _ROW * len(parts)
    longest = max(sum(row[part] for part in PARTS) for row in parts)
    scale = Scale(low=0.0, high=longest * 1.02 or 1.0, start=LEFT, end=_RIGHT)
    shapes = axis(scale, bottom, _TOP - 8, "seconds, median of each part")
    for number, row in enumerate(parts):
        y = _TOP + _ROW * (number + 0.5)
        shapes.append(row_label(y + 4, row["policy"]))
        before = 0.0
        for part in PARTS:
            x, width = scale(before), scale(row[part]) - LEFT
            if width >= 0.3:
                shapes.append(rect(x, y - 13, width, 26, part, f"{row['policy']}, {part}: {row[part]:.3f} s"))
            if width > 58 and part in ("forward", "backward"):
                shapes.append(text(x + width / 2, y + 4, f"{row[part]:.3f}", f"on-{part}", "middle"))
            before += row[part]
        shapes.append(text(WIDTH - 4, y + 4, f"{before:.3f} s", "value", "end"))
    medians = "; ".join(f"{row['policy']}: " + ", ".join(f"{part} {row[part]:.3f}" for part in PARTS) for row in parts)
    return Figure(
        name="parts",
        title="Training time by part, for each policy",
        description=f"Seconds, medians over the runs that count. {medians}.",
        height=bottom + 42,
        shapes=tuple(shapes),
    )
