"""What people see of a comparison: the table on the terminal. Every number in it stands in report.json."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_student.summary import Summary

_PARTS = ("forward", "backward", "stall", "hold")


def print_table(summary: Sequence[Summary], runs: Sequence[dict[str, Any]], report: dict[str, Any]) -> None:
    """Print one row per policy: median wall-clock, 95 % intervals, where the time went, and the verdict."""
    host, config = report["host"], report["config"]
    num_cores = len(host["cores_used"])
    table = Table(
        title=f"{config['cycles']} cycles of {config['model']} on {config['private']}, {num_cores} cores of {host['cpu']}",
        caption="wall-clock in seconds, medians; intervals are 95 % (bootstrap); ratios are paired within a repeat",
    )
    for name in (
        "policy",
        "runs",
        "wall-clock",
        "95 %",
        "vs os-default",
        "95 %",
        "forward",
        "backward",
        "stall",
        "hold",
        "accuracy",
        "verdict",
    ):
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
            row.verdict,
        )
    # A pipe has no width of its own; a wrapped table is no table.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)


def _median_of(runs: Sequence[dict[str, Any]], policy: str, part: str) -> float | None:
    values = [run[part] for run in runs if run["policy"] == policy and run["valid"]]
    return float(np.median(values)) if values else None


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.3f} .. {interval[1]:.3f}"
