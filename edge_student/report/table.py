"""Print a comparison on the terminal: the table of policies and a report on disturbances. report.json holds all the data."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_student.host.disturbance import MAX_OTHERS_FRACTION
from edge_student.measure.interleaving import MAX_ATTEMPTS
from edge_student.measure.intervals import shown_level
from edge_student.measure.number_format import format_interval, format_number
from edge_student.report.verdict import Summary, median_of

_PARTS = ("forward", "backward", "stall", "hold")
_MAX_NAMED = 3
_PIPE_WIDTH = 170
_WIDE = 130
"""Columns of a terminal from which the table has all columns; report.json has them in any case."""


def print_table(summary: Sequence[Summary], runs: Sequence[dict[str, Any]], report: dict[str, Any]) -> None:
    """Print one row per policy: median wall-clock, intervals, time per part, verdict.

    With a profile, the modelled seconds have a column of their own. A narrow terminal has no room for the parts.
    """
    console = Console()
    if not console.is_terminal:  # a pipe has no width, and rich would wrap the table at 80 columns
        console = Console(width=_PIPE_WIDTH)
    parts = _PARTS if console.width >= _WIDE else ()
    host, config = report["host"], report["config"]
    num_cores = len(host["cores_used"])
    is_modelled = config.get("profile") is not None
    table = Table(
        title=f"{config['cycles']} cycles of {config['model']} on {config['private']}, {num_cores} cores of {host['cpu']}",
        caption=caption(summary) + ("; modelled seconds are predicted from the profile, not measured" if is_modelled else ""),
    )
    # The minimum width keeps policy names whole on a narrow terminal.
    longest_name = max((len(row.policy) for row in summary), default=0)
    table.add_column("policy", no_wrap=True, min_width=longest_name)
    columns = ["interval", "vs os-default", "interval", *parts, "accuracy"] if parts else ["vs os-default", "interval"]
    for name in ("runs", "wall-clock", *columns):
        table.add_column(name, justify="right")
    if is_modelled:
        table.add_column("modelled", justify="right")
    table.add_column("verdict")
    for row in summary:
        table.add_row(
            row.policy,
            str(row.num_runs),
            format_number(row.median_s),
            *([format_interval(row.ci95)] if parts else []),
            format_number(row.ratio_vs_os_default),
            format_interval(row.ratio_ci95),
            *(format_number(median_of(runs, row.policy, f"{part}_s")) for part in parts),
            *([format_number(median_of(runs, row.policy, "accuracy"))] if parts else []),
            *([format_number(row.predicted_s)] if is_modelled else []),
            row.verdict,
        )
    console.print(table)


def caption(summary: Sequence[Summary]) -> str:
    """Explain the numbers of the table. The actual level of the intervals follows in parentheses."""
    level = shown_level(level for row in summary for level in (row.ci_level, row.ratio_ci_level))
    return f"wall-clock: median seconds with intervals{level}; ratios are paired within a repeat, below 1 is faster"


def disturbance_lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Report how many runs were disturbed, by which processes, and how that limits the results."""
    firsts = [run for run in runs if run["attempt"] == 1]
    disturbed = [run for run in firsts if run["disturbed"]]
    num_attempts = len(runs) - len(firsts)
    lines = []
    if disturbed:
        lines.append(
            f"{len(disturbed)} of {len(firsts)} runs were disturbed; {num_attempts} extra attempts were made. "
            f"Causes: {_causes([run for run in runs if run['disturbed']])}."
        )
    elif _all_were_monitored(runs):
        lines.append("No run was disturbed by other processes.")
    else:
        lines.append("None of the monitored runs was disturbed by other processes.")
    noisy = [run for run in runs if run["disturbed"] and run["valid"]]
    if noisy:
        counts = Counter(run["policy"] for run in noisy)
        named = ", ".join(f"{policy} {count}" for policy, count in counts.items())
        lines.append(
            f"NOT A QUIET MACHINE: {len(noisy)} disturbed runs count ({named}). Each is the least disturbed of up to "
            f"{MAX_ATTEMPTS} attempts. Stop other programs and repeat the comparison before you rely on small differences."
        )
    return lines + _limits(runs)


def print_disturbances(runs: Sequence[dict[str, Any]]) -> None:
    """Print the lines on disturbances below the table."""
    for line in disturbance_lines(runs):
        print(line)


def _causes(disturbed: Sequence[dict[str, Any]]) -> str:
    """Name the processes with the most CPU time, then the throttling states."""
    seconds: Counter[str] = Counter()
    for run in disturbed:
        disturbance = run["disturbance"]
        for process in disturbance["busiest_others"]:
            seconds[process["name"]] += process["cpu_s"]
        seconds["other virtual machines on the host"] += (disturbance["steal_fraction"] or 0.0) * disturbance["core_s"]
    named = [f"{name} ({spent:.1f} s)" for name, spent in seconds.most_common(_MAX_NAMED) if spent >= 0.05]
    states = sorted({state for run in disturbed for state in run["disturbance"]["throttled"] or ()})
    return ", ".join([*named, *states]) or "processes that exited before the end of the run"


def _limits(runs: Sequence[dict[str, Any]]) -> list[str]:
    """List the limits of the monitoring: no detection without counters, and no small disturbances in short runs."""
    if not _all_were_monitored(runs):
        return ["This machine has no /proc/stat, so disturbances by other processes cannot be detected."]
    resolutions = [run["disturbance"]["others_resolution"] for run in runs if run["disturbance"] is not None]
    if resolutions and max(resolutions) > MAX_OTHERS_FRACTION:
        return [
            f"The runs are too short to detect other processes that use less than {max(resolutions):.0%} of the cores. "
            "Increase --cycles to detect smaller disturbances."
        ]
    return []


def _all_were_monitored(runs: Sequence[dict[str, Any]]) -> bool:
    disturbances = [run["disturbance"] for run in runs if run["disturbance"] is not None]
    return all(disturbance["others_resolution"] is not None for disturbance in disturbances)
