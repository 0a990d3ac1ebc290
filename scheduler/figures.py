"""Draw the data of `studies`: every figure is written as JSON, and as a PNG and an SVG that are drawn from this JSON only.

No pyplot and no display: figures are separate objects, and the user's matplotlib settings are neither used nor changed. The same
arguments give the same JSON and the same SVG, byte for byte. Every figure is readable without colour.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from edgekd.files import replace_atomically, write_text
from scheduler.simulation import studies
from scheduler.simulation.studies import Data

Draw: TypeAlias = Callable[[Data], Figure]

DPI = 150
WIDTH = 7.2  # inches, the width of a page without margins
_CAPTION_LETTERS = 112  # characters per line of the caption at this width
_PACKAGES = ("edgekd", "numpy", "scipy", "matplotlib")
STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib bundles it, so text has the same width on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "figure.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "0.85",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": DPI,
    "svg.hashsalt": "edgekd",
}

# Colours of Okabe and Ito, from light to dark: distinct without colour too. Hatches keep neighbours distinct in poor print.
_COMM, _COMP, _FORWARD = "#E69F00", "#0072B2", "#56B4E9"
_BARS: tuple[tuple[str, str, str], ...] = (
    ("random", "#FFFFFF", ""),
    ("comm-priority", "#F0E442", "////"),
    ("comp-priority", "#E69F00", "\\\\\\\\"),
    ("best static", "#56B4E9", "...."),
    ("dynamic", "#009E73", "xxxx"),
    ("adaptive", "#333333", ""),
)


def write_figures(
    out: Path, *, runs: int = 1000, seed: int = 0, samples: Any | None = None, cycles: int = studies.CYCLES
) -> list[Path]:
    """Write NAME.json, NAME.png and NAME.svg of every figure into the folder `out`, and return their paths.

    `out` is created if missing. `runs` is the number of averaged runs of `random`. `samples` is the JSON data of a calibration for
    figure 2; without it, the figure shows example samples and labels them. `cycles` is N of figure 5 and of the gaps. Raises
    ValueError for invalid samples, runs or cycles, OSError if `out` cannot be written.
    """
    figures: tuple[tuple[str, Data, Draw], ...] = (
        ("fig2", studies.fitted_costs(samples=samples, seed=seed), draw_fitted_costs),
        ("fig3", studies.timeline(), draw_timeline),
        ("fig4", studies.cost_curves(), draw_cost_curves),
        ("fig5a", studies.comparison(x=1.0, y=1.0, cycles=cycles, runs=runs, seed=seed), draw_comparison),
        ("fig5b", studies.comparison(x=2.0, y=1.0, cycles=cycles, runs=runs, seed=seed), draw_comparison),
        ("gap", studies.gaps(cycles=cycles, runs=runs, seed=seed), draw_gaps),
    )
    out.mkdir(parents=True, exist_ok=True)
    return [path for name, data, draw in figures for path in write_figure(out, name, data, draw)]


def write_figure(out: Path, name: str, data: Data, draw: Draw) -> list[Path]:
    """Write one figure's data with software versions, and draw it. Returns the paths of NAME.json, NAME.png and NAME.svg."""
    text = json.dumps({"figure": name, **data, "versions": _versions()}, indent=1, allow_nan=False) + "\n"
    path = out / f"{name}.json"
    write_text(path, text)
    return [path, *draw_files(out / name, json.loads(text), draw)]


def draw_files(stem: Path, data: Data, draw: Draw) -> list[Path]:
    """Draw `data`, which is already in a file, as STEM.png and STEM.svg. Returns the paths."""
    paths = [stem.with_name(f"{stem.name}{suffix}") for suffix in (".png", ".svg")]
    with matplotlib.style.context(["default", STYLE]):  # rc_context would include the user's settings
        figure = draw(data)
        replace_atomically(paths[0], lambda file: figure.savefig(file, metadata={"Software": None}))
        replace_atomically(paths[1], lambda file: figure.savefig(file, metadata={"Date": None}))
    return paths


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def draw_fitted_costs(data: Data) -> Figure:
    """Draw figure 2: samples with their fit, and the relative errors below; comp on the left, comm on the right.

    A side may have "bars": the median and the confidence interval at each core count.
    """
    figure = _figure(data, height=4.6)
    grid = figure.subplots(2, 2, sharex="col", height_ratios=(5, 2))
    for times, errors, side, colour, marker in zip(*grid, data["sides"], (_COMP, _COMM), "os", strict=True):
        points, formula = side["points"], side["formula"]
        look = {"color": "black", "linestyle": "none", "marker": marker, "markerfacecolor": "none", "markersize": 4}
        times.plot(*_columns(points, "comm_cores", "seconds"), **look, label="sample")
        if side.get("bars"):
            places, middles, lows, highs = _columns(side["bars"], "comm_cores", "seconds", "low", "high")
            bars = {"color": colour, "linestyle": "none", "marker": "_", "capsize": 4, "zorder": 3}
            times.errorbar(places, middles, yerr=np.maximum([middles - lows, highs - middles], 0), **bars, label="median, 95 %")
        if side["curve"]:
            times.plot(*_columns(side["curve"], "comm_cores", "seconds"), color=colour, label=f"{formula}, fitted")
            cores, relative = _columns(points, "comm_cores", "relative_error")
            errors.plot(cores, 100 * relative, **look)
            errors.axhspan(-100 * side["spread"], 100 * side["spread"], color=colour, alpha=0.3, linewidth=0)
            errors.axhline(0, color="black", linewidth=0.8)
            most = 110 * max(np.max(np.abs(relative)), 0.005)  # so that rounding errors do not fill the panel
            errors.set_ylim(-most, most)
        else:
            errors.set_yticks([])
            errors.text(0.5, 0.5, "no fit", ha="center", va="center", transform=errors.transAxes)
        longest = max(point["seconds"] for point in points)
        times.set(title=side["side"], ylabel="seconds per unit of work", ylim=(0, 1.08 * longest))
        errors.set(xlabel="cores given to comm, c", ylabel="sample above fit, %" if side["curve"] else "")
        errors.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (times, errors):
            axes.grid()
        times.legend()
    return figure


def draw_timeline(data: Data) -> Figure:
    """Draw figure 3: one lane per kind of task with hatched waits, and the cores of both sides below."""
    figure = _figure(data, height=4.6)
    lanes, cores = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    places = {"comm": 2, "forward": 1, "backward": 0}
    looks = {"comm": (_COMM, "black"), "forward": (_FORWARD, "black"), "backward": (_COMP, "white")}
    for span in data["spans"]:
        place, (colour, ink) = places[span["task"]], looks[span["task"]]
        _block(lanes, span, place - 0.35, 0.7, facecolor=colour)
        lanes.text(_middle(span), place, str(span["cycle"]), color=ink, ha="center", va="center")
    for wait in data["waits"]:
        place = places["comm" if wait["side"] == "comm" else "backward"]
        _block(lanes, wait, place - 0.35, 0.7, facecolor="white", hatch="//////", linestyle=":")
    for number, segment in enumerate(data["segments"], 1):
        lanes.text(_middle(segment), 2.55, f"$t_{{{number}}}$: {segment['scenario']}", ha="center", va="bottom")
        lanes.axvline(segment["start"], color="0.3", linestyle="--", linewidth=0.8)
    lanes.text(-0.01, 2.55, "segment: scenario", transform=lanes.get_yaxis_transform(), ha="right", va="bottom")
    for held in data["intervals"]:
        _block(cores, held, 0, held["comm_cores"], facecolor=_COMM)
        _block(cores, held, held["comm_cores"], held["comp_cores"], facecolor=_COMP)
    lanes.set(ylim=(-0.5, 2.5), yticks=list(places.values()), yticklabels=[lane.capitalize() for lane in places])
    num_cores = data["scenario"]["cores"]
    cores.set(xlabel="modelled time in seconds", ylabel="cores", ylim=(0, num_cores), yticks=range(num_cores + 1))
    cores.set_xlim(0, 1.003 * data["makespan"])  # room for the last edge
    kinds = [
        Patch(facecolor="white", edgecolor="black", hatch="//////", linestyle=":", label="waits"),
        Patch(facecolor=_COMM, edgecolor="black", label="held by comm (lowest cores)"),
        Patch(facecolor=_COMP, edgecolor="black", label="held by comp (highest cores)"),
    ]
    lanes.legend(handles=kinds, loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=3)
    return figure


def draw_cost_curves(data: Data) -> Figure:
    """Draw figure 4: one panel per C, with f and g against comp's cores."""
    curves = data["curves"]
    figure = _figure(data, height=5.0)
    grid = figure.subplots((len(curves) + 1) // 2, 2, sharey=True, squeeze=False)
    for axes, curve in zip(grid.flat, curves, strict=False):
        axes.plot(*_columns(curve["comp"], "comp_cores", "seconds"), "-o", color=_COMP, markersize=4, label="f: comp")
        axes.plot(*_columns(curve["comm"], "comp_cores", "seconds"), "--s", color=_COMM, markersize=4, label="g: comm")
        axes.set(title=f"C = {curve['cores']}", xticks=range(curve["cores"] + 1), ylim=(0, None))
        axes.grid()
    for axes in grid[-1]:
        axes.set_xlabel("cores given to comp, C - c")
    for axes in grid[:, 0]:
        axes.set_ylabel("seconds for one unit")
    grid[0, 0].legend()
    return figure


def draw_comparison(data: Data) -> Figure:
    """Draw figure 5: bars of time, and below them bars of the excess over the lower bound in per cent."""
    figure = _figure(data, height=6.2)
    times, excess = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    for place, group in enumerate(data["groups"]):
        _bars(times, excess, place, group)
        for colour, line in (("white", "-"), ("black", "--")):
            times.hlines(group["lower_bound"], place - 0.45, place + 0.45, color=colour, linestyle=line, linewidth=1.8)
    times.set_ylabel("modelled time in seconds")
    excess.set(ylabel="above the lower bound, %", xlabel="number of cores C")
    excess.set_xticks(range(len(data["groups"])), [str(group["scenario"]["cores"]) for group in data["groups"]])
    for axes in (times, excess):
        axes.grid(axis="y")
        axes.margins(x=0.02, y=0.12)
        axes.set_ylim(bottom=0)
    bars = [Patch(facecolor=colour, hatch=hatch, edgecolor="black", label=name) for name, colour, hatch in _BARS]
    bound = Line2D([], [], color="black", linewidth=1.8, linestyle="--", label="lower bound")
    times.legend(handles=[*bars, bound], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return figure


def _bars(times: Axes, excess: Axes, place: int, group: Data) -> None:
    """Draw the bars of one number of cores, side by side around x = `place`."""
    width, bound = 0.84 / len(_BARS), group["lower_bound"]
    for number, (name, colour, hatch) in enumerate(_BARS):
        policy = group["policies"][group["best_static"] if name == "best static" else name]
        x = place + (number + 0.5) * width - 0.42
        percent = {key: 100 * (seconds / bound - 1) for key, seconds in policy.items() if key != "runs"}
        for axes, height in ((times, policy["makespan"]), (excess, percent["makespan"])):
            axes.bar(x, height, width, color=colour, hatch=hatch, edgecolor="black", linewidth=0.7)
        if "p5" in percent:
            excess.vlines(x, percent["min"], percent["max"], color="black", linewidth=0.8)
            excess.vlines(x, percent["p5"], percent["p95"], color="black", linewidth=3)
        top = max(percent.values())
        excess.annotate(_rounded(percent["makespan"], 1), (x, top), (0, 2), textcoords="offset points", ha="center", va="bottom")
        if name == "best static":
            split = group["best_static"].partition(":")[2]
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            times.annotate(split, (x, 0), (0, 5), textcoords="offset points", ha="center", va="bottom", bbox=box)


def draw_gaps(data: Data) -> Figure:
    """Draw one table per policy. A darker cell is further from the bound."""
    figure = _figure(data, height=5.4)
    panels = data["panels"]
    grid = figure.subplots(2, (len(panels) + 1) // 2, sharex=True, sharey=True, squeeze=False)
    most = max(value for panel in panels for row in panel["percent"] for value in row)
    scale = Normalize(0, max(most, 1.0))  # if all values are below 1 %, all cells stay light
    for axes, panel in zip(grid.flat, panels, strict=False):
        values = np.array(panel["percent"])
        axes.pcolormesh(values, cmap="Blues", norm=scale, edgecolor="white", linewidth=1)
        for row, column in np.ndindex(values.shape):
            value = float(values[row, column])
            ink = "white" if scale(value) > 0.62 else "black"
            axes.text(column + 0.5, row + 0.5, _rounded(value, 2), color=ink, ha="center", va="center")
        axes.set_title(panel["title"])
        axes.set_xticks(np.arange(len(data["cores"])) + 0.5, data["cores"])
        axes.set_yticks(np.arange(len(data["ratios"])) + 0.5, data["ratios"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("number of cores C")
    for axes in grid[:, 0]:
        axes.set_ylabel("work x : y")
    return figure


def _figure(data: Data, *, height: float) -> Figure:
    """Return an empty figure with the data's title above and its caption below."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(data["title"])
    caption = textwrap.fill(data["caption"], _CAPTION_LETTERS, break_on_hyphens=False)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8)
    return figure


def _block(axes: Axes, span: Data, bottom: float, height: float, **look: Any) -> None:
    axes.bar(span["start"], height, span["end"] - span["start"], bottom, align="edge", edgecolor="black", linewidth=0.7, **look)


def _middle(span: Data) -> float:
    return float(span["start"] + span["end"]) / 2


def _rounded(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # shows 0.0, not -0.0, for a rounding error below the bound


def _columns(rows: Sequence[Data], *keys: str) -> list[np.ndarray]:
    return [np.array([row[key] for row in rows]) for key in keys]
