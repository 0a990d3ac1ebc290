"""What people see of a comparison on the terminal: the table, and how quiet the machine was. All of it is in report.json."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_student.host.disturbance import MAX_OTHERS_FRACTION
from edge_student.measure.interleaving import MAX_ATTEMPTS
from edge_student.measure.intervals import shown_level
from edge_student.report.verdict import Summary

_PARTS = ("forward", "backward", "stall", "hold")
_MAX_NAMED = 3


def print_table(summary: Sequence[Summary], runs: Sequence[dict[str, Any]], report: dict[str, Any]) -> None:
    """Print one row per policy: median wall-clock, intervals, where the time went, and the verdict.

    What a profile predicts has a column of its own, and only when there was a profile.
    """
    host, config = report["host"], report["config"]
    num_cores = len(host["cores_used"])
    is_modelled = config.get("profile") is not None
    table = Table(
        title=f"{config['cycles']} cycles of {config['model']} on {config['private']}, {num_cores} cores of {host['cpu']}",
        caption=caption(summary) + ("; modelled: what the profile predicts, not measured" if is_modelled else ""),
    )
    names = ["policy", "runs", "wall-clock", "interval", "vs os-default", "interval", *_PARTS, "accuracy"]
    for name in (*names, *(["modelled"] if is_modelled else []), "verdict"):
        table.add_column(name, justify="left" if name in ("policy", "verdict") else "right")
    for row in summary:
        table.add_row(
            row.policy,
            str(row.num_runs),
            _seconds(row.median_s),
            _interval(row.ci95),
            _seconds(row.ratio_vs_os_default),
            _interval(row.ratio_ci95),
            *(_seconds(_median_of(runs, row.policy, f"{part}_s")) for part in _PARTS),
            _seconds(_median_of(runs, row.policy, "accuracy")),
            *([_seconds(row.predicted_s)] if is_modelled else []),
            row.verdict,
        )
    # A pipe has no width of its own; a wrapped table is no table.
    console = Console()
    if not console.is_terminal:
        console = Console(width=170)
    console.print(table)


def caption(summary: Sequence[Summary]) -> str:
    """What the table's numbers are, with the level that its intervals really have."""
    sure = shown_level(level for row in summary for level in (row.ci_level, row.ratio_ci_level))
    return f"wall-clock in seconds, medians and their intervals{sure}; ratios are paired within a repeat"


def disturbance_lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    """How many runs others disturbed, who that was, and what the reader must make of it."""
    firsts = [run for run in runs if run["attempt"] == 1]
    disturbed = [run for run in firsts if run["disturbed"]]
    repetitions = len(runs) - len(firsts)
    nobody = "No run" if _all_were_watched(runs) else "None of the runs that could be watched"
    lines = [] if disturbed else [f"{nobody} was disturbed by others."]
    if disturbed:
        lines.append(
            f"{len(disturbed)} of {len(firsts)} runs were disturbed; {repetitions} repetitions were made to replace them. "
            f"By: {_who([run for run in runs if run['disturbed']])}."
        )
    noisy = [run for run in runs if run["disturbed"] and run["valid"]]
    if noisy:
        which = Counter(run["policy"] for run in noisy)
        named = ", ".join(f"{policy} {count}" for policy, count in which.items())
        lines.append(
            f"NOT A QUIET MACHINE: {len(noisy)} of the runs that count were disturbed too, each the least so of up to "
            f"{MAX_ATTEMPTS} attempts ({named}). Read differences with care."
        )
    return lines + _limits(runs)


def print_disturbances(runs: Sequence[dict[str, Any]]) -> None:
    """Print them below the table."""
    for line in disturbance_lines(runs):
        print(line)


def _who(disturbed: Sequence[dict[str, Any]]) -> str:
    """The disturbers by name, the greediest first."""
    seconds: Counter[str] = Counter()
    for run in disturbed:
        seen = run["disturbance"]
        for process in seen["busiest_others"]:
            seconds[process["name"]] += process["cpu_s"]
        seconds["the virtual machine's neighbours"] += (seen["steal_fraction"] or 0.0) * seen["core_s"]
    named = [f"{name} ({spent:.1f} s)" for name, spent in seconds.most_common(_MAX_NAMED) if spent >= 0.05]
    states = sorted({state for run in disturbed for state in run["disturbance"]["throttled"] or ()})
    return ", ".join([*named, *states]) or "processes that had ended when the run had"


def _limits(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What could not have been seen: nothing at all without counters, and small guests in short runs."""
    if not _all_were_watched(runs):
        return ["This machine does not tell who uses its cores (no /proc/stat), so a disturbed run may have gone unseen."]
    resolutions = [run["disturbance"]["others_resolution"] for run in runs if run["disturbance"] is not None]
    if resolutions and max(resolutions) > MAX_OTHERS_FRACTION:
        return [f"The runs are short: others with less than {max(resolutions):.0%} of the cores go unseen. More --cycles see more."]
    return []


def _all_were_watched(runs: Sequence[dict[str, Any]]) -> bool:
    seen = [run["disturbance"] for run in runs if run["disturbance"] is not None]
    return all(disturbance["others_resolution"] is not None for disturbance in seen)


def _median_of(runs: Sequence[dict[str, Any]], policy: str, part: str) -> float | None:
    values = [run[part] for run in runs if run["policy"] == policy and run["valid"]]
    return float(np.median(values)) if values else None


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f} .. {interval[1]:.3f}"
