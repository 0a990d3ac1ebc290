"""Calculations, tables and the heat map of regimes.py. As a program it does nothing."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from contestants import PLAIN

from edge_student.measure.intervals import median_interval
from edge_student.report.verdict import BASELINE

BASES = (PLAIN, BASELINE, "os-tuned")
SUMMARIZED = (*(f"vs {base}" for base in BASES), "slowest vs quiet", "regret", "regret held out")


def rows_of(cell: dict[str, Any], quiet: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Compare each contestant, paired, with the baselines, and each policy with the best in hindsight, which has the least median.

    `quiet` is the same regime without neighbours. "slowest vs quiet" is the longest run relative to the contestant's quiet median.
    """
    policies = {name: np.array(seconds) for name, seconds in cell["policies"].items()}
    clocks = policies | {name: np.array(seconds) for name, seconds in cell["others"].items()}
    quiet_clocks = {} if quiet is None else {**quiet["policies"], **quiet["others"]}
    least = min(float(np.median(seconds)) for seconds in policies.values())
    found: dict[str, dict[str, Any]] = {}
    for name, seconds in clocks.items():
        row = found[name] = {"median_s": float(np.median(seconds))}
        for base in (base for base in BASES if base in clocks):
            ratios = seconds / clocks[base]
            interval = median_interval(ratios.tolist())
            row |= {f"vs {base}": float(np.median(ratios)), f"vs {base} interval": interval and asdict(interval)}
        if name in quiet_clocks:
            row["slowest vs quiet"] = float(max(seconds) / np.median(quiet_clocks[name]))
        if name in policies:
            row["regret"] = row["median_s"] / least
        if name in policies and len(seconds) > 1:
            row["regret held out"] = held_out_regret(policies, name)
    return found


def held_out_regret(clocks: dict[str, np.ndarray], name: str) -> float:
    """Return the median over repeats of the ratio of `name` to the policy that is best in the other repeats.

    The least of several noisy medians is biased below the true one, so even equal policies show a regret. Choosing the best policy
    without the repeat in which it is compared removes this bias.
    """
    ratios = []
    for repeat in range(len(clocks[name])):
        best = min(clocks, key=lambda other: float(np.median(np.delete(clocks[other], repeat))))
        ratios.append(clocks[name][repeat] / clocks[best][repeat])
    return float(np.median(ratios))


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the geometric mean over cells and the worst cell, for each contestant, without and with neighbours."""
    groups: dict[str, list[dict[str, Any]]] = {"quiet": [], "with neighbours": []}
    for cell in results:
        groups["with neighbours" if cell["settings"]["neighbours"] else "quiet"].append(cell)
    summary: dict[str, Any] = {}
    for group, cells in groups.items():
        for name, figure in product(results[0]["rows"], SUMMARIZED):
            values = {cell["name"]: cell["rows"][name][figure] for cell in cells if figure in cell["rows"][name]}
            if values:
                worst = max(values, key=lambda cell: values[cell])
                mean = float(np.exp(np.mean(np.log([*values.values()]))))
                row = {"geometric_mean": mean, "worst": values[worst], "worst_cell": worst}
                summary.setdefault(group, {}).setdefault(name, {})[figure] = row
    return summary


def print_tables(results: Sequence[dict[str, Any]]) -> None:
    """Print Markdown tables: ratios to two baselines with intervals, the slowest runs, the regret, and the means over cells."""
    titles: dict[str, tuple[str, Callable[[dict[str, Any], str], str]]] = {
        f"wall-clock / {PLAIN}": (f"vs {PLAIN}", _ratio),
        f"wall-clock / {BASELINE}": (f"vs {BASELINE}", _ratio),
        "slowest run / median without neighbours": ("slowest vs quiet", _number),
        "wall-clock / best policy of the cell, medians (best chosen in the other repeats)": ("regret", _regret),
    }
    for title, (figure, show) in titles.items():
        names = [name for name in results[0]["rows"] if any(figure in cell["rows"][name] for cell in results)]
        if names:
            lines = [[cell["name"], *(show(cell["rows"][name], figure) for name in names)] for cell in results]
            _print_table(title, ["cell", *names], lines)
    for group, rows in summarize(results).items():
        lines = [[name, *(_mean(row, figure) for figure in SUMMARIZED)] for name, row in rows.items()]
        _print_table(f"geometric means over the cells, {group} (worst cell)", ["contestant", *SUMMARIZED], lines)


def _print_table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")


def _number(row: dict[str, Any], figure: str) -> str:
    return f"{row[figure]:.2f}" if figure in row else "-"


def _ratio(row: dict[str, Any], figure: str) -> str:
    interval = row.get(f"{figure} interval")
    return _number(row, figure) + (f" ({interval['low']:.2f} .. {interval['high']:.2f})" if interval else "")


def _regret(row: dict[str, Any], figure: str) -> str:
    held_out = f"{figure} held out"
    return _number(row, figure) + (f" ({row[held_out]:.2f})" if held_out in row else "")


def _mean(row: dict[str, Any], figure: str) -> str:
    return f"{row[figure]['geometric_mean']:.2f} ({row[figure]['worst']:.2f})" if figure in row else "-"


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw two heat maps with a row per cell and a column per contestant: the ratio to plain_script.py, and the regret."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows, maps = [cell["name"] for cell in results], {f"vs {PLAIN}": ("PuOr_r", 0.4, 1.6), "regret": ("Oranges", 1.0, 1.4)}
    titles = {f"vs {PLAIN}": f"wall-clock / {PLAIN}", "regret": "wall-clock / best policy of the cell"}
    size = 4 + 1.6 * len(results[0]["rows"]), 1.2 + 0.36 * len(rows)
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for axis, (quantity, (colour, least, most)) in zip(axes, maps.items(), strict=True):
        names = [name for name, row in results[0]["rows"].items() if quantity in row and name != PLAIN]
        values = np.array([[cell["rows"][name][quantity] for name in names] for cell in results])
        image = axis.imshow(values, cmap=colour, vmin=least, vmax=most, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            is_on_dark = image.norm(value) > 0.8 or (image.norm(value) < 0.2 and least < 1)
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if is_on_dark else "black")
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.set_yticks(range(len(rows)), rows)
        axis.set_title(titles[quantity])
        figure.colorbar(image, ax=axis, shrink=0.8)
    figure.savefig(path, dpi=150)
