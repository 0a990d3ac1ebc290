"""Draw the two pictures of README from JSON files, and nothing else.

    python docs/figures/readme_charts.py regimes             # docs/results/workers-*.json -> readme_regimes.png
    python docs/figures/readme_charts.py timeline            # readme_timeline.json -> readme_timeline.png
    python docs/figures/readme_charts.py record FOLDER NOTE  # a comparison's folder -> readme_timeline.json

`record` cuts the same number of cycles out of one run of each policy, and keeps the provenance of the comparison. The pictures are
as wide as a page on a phone of 390 pixels, so that their text keeps its size there.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edge_student.events.spans import Span, comm_spans, comp_spans, core_owners
from edge_student.measure.intervals import median_interval
from scheduler.figures import STYLE

Data = dict[str, Any]

HERE = Path(__file__).resolve().parent
PAGE = 3.58  # inches; 358 pixels at 100 pixels an inch, where a text of 8 points is 11 pixels high
DPI = 250
BASELINE = "plain"
SHOWN = {"os-tuned": "tuned, no scheduler", "adaptive": "EdgeKD, adaptive"}
LOADS = {"light": "light", "1MB": "1 MB", "5MB": "5 MB"}
CYCLES = 8

_COLOURS = {"os-tuned": "#999999", "adaptive": "#0072B2"}
_OWNERS = {"comm": "#E69F00", "comp": "#0072B2", "both": "#BBBBBB"}
_TASKS = {"comm": "#E69F00", "forward": "#56B4E9", "backward": "#0072B2"}


def regimes(cells: Sequence[Data]) -> Figure:
    """Bars from 1.0: wall-clock of two policies against the plain script, with the interval of the median ratio.

    Without neighbours there is a bar for each student and load, with one neighbour one for each student.
    """
    figure = Figure(figsize=(PAGE, 4.4), layout="constrained")
    axes = figure.subplots()
    place, places, labels = 0.0, [], []
    for title, count in (("quiet machine", 0), ("beside one busy process", 1)):
        place += 0.3
        axes.text(-0.02, place, title, transform=axes.get_yaxis_transform(), ha="right", va="center", weight="bold")
        place += 1.0
        for cell in sorted(
            (cell for cell in cells if cell["settings"]["neighbours"] == count), key=lambda cell: cell["settings"]["student"]
        ):
            for offset, policy in zip((-0.2, 0.2), SHOWN, strict=True):
                _ratio(axes, place + offset, {**cell["policies"], **cell["others"]}, policy)
            places.append(place)
            labels.append(f"{cell['settings']['student'].removesuffix('_small')}, {LOADS[cell['settings']['comm']]}")
            place += 1.0
    axes.axvline(1.0, color="black", linewidth=1.0)
    axes.set_yticks(places, labels)
    axes.set_ylim(place - 0.3, -0.4)
    axes.set_xlim(left=0.0)
    axes.set_xlabel("time / time of a plain PyTorch script")
    axes.tick_params(length=0, axis="y")
    axes.grid(axis="x")
    for text, side, where in (("faster", "right", 0.97), ("slower", "left", 1.03)):
        axes.text(where, 0.15, text, ha=side, va="center", style="italic")
    patches = [Patch(facecolor=_COLOURS[policy], label=label) for policy, label in SHOWN.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=2)
    return figure


def _ratio(axes: Axes, place: float, clocks: dict[str, Sequence[float]], policy: str) -> None:
    ratios = np.array(clocks[policy]) / np.array(clocks[BASELINE])
    middle, interval = float(np.median(ratios)), median_interval(ratios.tolist())
    axes.barh(place, middle - 1.0, 0.38, left=1.0, color=_COLOURS[policy], zorder=2)
    if interval is not None:
        axes.hlines(place, interval.low, interval.high, color="black", linewidth=1.2, zorder=3)


def timeline(data: Data) -> Figure:
    """One panel per policy: a row per core with its holder, then a row each for receiving and for training."""
    figure = Figure(figsize=(PAGE, 4.9), layout="constrained")
    panels = figure.subplots(len(data["runs"]), 1, sharex=True)
    for axes, run in zip(panels, data["runs"], strict=True):
        rows: list[tuple[str, list[Data], dict[str, str]]] = [
            (f"core {core}", spans, _OWNERS) for core, spans in run["cores"].items()
        ]
        rows += [("receive", run["comm"], _TASKS), ("train", run["comp"], _TASKS)]
        for place, (_, spans, colours) in enumerate(rows):
            for span in spans:
                if span["what"] in colours:
                    width = span["ended"] - span["started"]
                    axes.barh(
                        place, width, 0.72, left=span["started"], color=colours[span["what"]], edgecolor="white", linewidth=0.4
                    )
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title(run["policy"], loc="left", weight="bold")
        axes.tick_params(length=0, axis="y")
    panels[-1].set_xlabel("milliseconds")
    panels[-1].set_xlim(0, max(run["length_ms"] for run in data["runs"]))
    kinds = (("receiving", _OWNERS["comm"]), ("training", _OWNERS["comp"]), ("shared by the kernel", _OWNERS["both"]))
    patches = [Patch(facecolor=colour, label=label) for label, colour in kinds]
    patches.append(Patch(facecolor=_TASKS["forward"], label="forward pass"))
    figure.legend(handles=patches, loc="outside upper center", ncols=2)
    return figure


def record(folder: Path, note: str) -> Data:
    """Cut CYCLES cycles out of the middle of one run of each policy: the run that counts, or else the first one."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    names = list(dict.fromkeys(run["policy"] for run in report["runs"]))
    runs = []
    for name in names:
        of_policy = [run for run in report["runs"] if run["policy"] == name]
        chosen = next((run for run in of_policy if run["valid"]), of_policy[0])
        kept = {"policy": name, "repeat": chosen["repeat"], "valid": chosen["valid"], "disturbed": bool(chosen["disturbed"])}
        runs.append({**kept, "wall_clock_s": chosen["wall_clock_s"], **_excerpt(folder / chosen["folder"])})
    command = list(report["command"])
    if "--out" in command:  # where it was written says nothing about how it was measured
        place = command.index("--out")
        del command[place : place + 2]
    provenance = {"command": command, "host": report["host"], "software": report["software"]}
    return {"figure": "readme_timeline", "note": note, **provenance, "runs": runs}


def _excerpt(folder: Path) -> Data:
    """Spans of CYCLES cycles in the middle of a run, in milliseconds since the first of these cycles starts to train."""
    records = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    comp = comp_spans(records)
    first = max(span.index or 0 for span in comp) // 2
    shown = [span for span in comp if first <= (span.index or 0) < first + CYCLES]
    start, end = shown[0].started, shown[-1].ended
    cores = {str(core): _cut(spans, start, end) for core, spans in core_owners(records).items()}
    cut = {"cores": cores, "comm": _cut(comm_spans(records), start, end), "comp": _cut(comp, start, end)}
    return {"first_cycle": first, "cycles": CYCLES, "length_ms": 1e3 * (end - start), **cut}


def _cut(spans: Sequence[Span], start: float, end: float) -> list[Data]:
    inside = [span for span in spans if span.ended > start and span.started < end]
    bounds = [(1e3 * (max(span.started, start) - start), 1e3 * (min(span.ended, end) - start)) for span in inside]
    return [{"what": span.what, "started": low, "ended": high} for span, (low, high) in zip(inside, bounds, strict=True)]


RESULTS = ("workers-quiet.json", "workers-quiet-1mb.json", "workers-resnet18.json", "workers-neighbour.json")
DRAWINGS = ("regimes", "timeline")


def figure_of(name: str) -> Figure:
    """Return the picture of that name, drawn from its JSON files."""
    with matplotlib.style.context(["default", STYLE]):
        if name == "timeline":
            figure = timeline(json.loads((HERE / "readme_timeline.json").read_text(encoding="utf-8")))
        else:
            light, loaded, resnet18, beside = (
                json.loads((HERE.parent / "results" / source).read_text(encoding="utf-8"))["cells"] for source in RESULTS
            )
            # The first two have resnet18 in shards, which is not its default any more.
            quiet = [cell for cell in (*light, *loaded) if cell["settings"]["student"] != "resnet18"] + resnet18
            figure = regimes([*quiet, *(cell for cell in beside if cell["settings"]["neighbours"])])
        figure.draw_without_rendering()
    return figure


def main() -> None:
    """Do what the command line asks for."""
    target, *arguments = sys.argv[1:] or [""]
    if target == "record" and len(arguments) == 2:
        text = json.dumps(record(Path(arguments[0]), arguments[1]), indent=1) + "\n"
        (HERE / "readme_timeline.json").write_text(text, encoding="utf-8")
    elif target in DRAWINGS and not arguments:
        figure_of(target).savefig(HERE / f"readme_{target}.png", dpi=DPI, metadata={"Software": None})
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
