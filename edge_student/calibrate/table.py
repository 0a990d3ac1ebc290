"""The output of a calibration: the terminal table, the findings as sentences, and the data of the plot. All from the profile."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_student.calibrate.visits import QUIET_SHARE
from edge_student.measure.intervals import shown_level
from edge_student.measure.number_format import format_duration, format_rate, format_rate_interval
from scheduler.simulation.studies import fitted_costs

Interval = Sequence[float] | None

MAX_RATIO = 1.5
"""Ratio of the ends of an interval above which a finding warns about it."""


def print_calibration(profile: dict[str, Any]) -> None:
    """Print one row per mode: the rates of both sides with intervals, and whether comm waited for the link."""
    origin, settings = profile["fingerprint"], profile["settings"]
    batch_s, cycle_s = profile["comm"], profile["forward"] + profile["backward"]
    table = Table(
        title=f"{settings['model']} on {settings['private']}, {profile['cores']} cores of {origin['cpu']}, "
        f"{profile['seconds']:.0f} s of measuring",
        caption=f"Medians of the visits and their intervals{_level_of(profile)}. "
        f"Alone on all cores, a cycle takes {format_duration(cycle_s)} "
        f"({format_duration(profile['forward'])} Forward, {format_duration(profile['backward'])} Backward) "
        f"and a batch {format_duration(batch_s)}",
    )
    for name in ("mode", "batches/s", "interval", "batches", "comm CPU", "steps/s", "interval", "steps", "remark"):
        table.add_column(name, justify="left" if name in ("mode", "remark") else "right")
    for mode in profile["modes"]:
        share = mode["comm_cpu_share"]
        table.add_row(
            mode["name"],
            format_rate(mode["comm_rate"] / batch_s),
            format_rate_interval(mode["comm_interval"], batch_s),
            str(mode["num_comm"]),
            "-" if share is None else f"{share:.2f}",
            format_rate(mode["comp_rate"] / cycle_s),
            format_rate_interval(mode["comp_interval"], cycle_s),
            str(mode["num_comp"]),
            remark(mode),
        )
    console = Console()
    if not console.is_terminal:  # a pipe has no width, and a wrapped table is unreadable
        console = Console(width=160)
    console.print(table)


def remark(mode: dict[str, Any]) -> str:
    """Return the remark on one mode in the table; empty if there is none."""
    if not mode["num_comm"] and not mode["num_comp"]:
        return "not measured, interpolated"
    if is_link_bound(mode):
        return "comm waits for teacher or link"
    if mode["comp_rate"] and not mode["comm_rate"] and mode["name"] != "comp-only":
        return "training leaves no time for comm"
    return ""


def is_link_bound(mode: dict[str, Any]) -> bool:
    """Return whether comm waited although it had cores of its own, so that the link limited it."""
    has_own_cores = mode["name"] == "comm-only" or mode["name"].startswith("split:")
    return has_own_cores and mode["comm_cpu_share"] is not None and mode["comm_cpu_share"] < QUIET_SHARE


def describe_findings(profile: dict[str, Any]) -> Iterator[str]:
    """Yield sentences on the paper's f and g, on the link and on the quality of the measurement."""
    comp, comm, cores = profile["fit"]["comp"], profile["fit"]["comm"], profile["cores"]
    if comp["identified"]:
        change = f"{-comp['a2']['value']:+.1%}{_plus_minus(comp['a2']['stderr'])}"
        yield f"Training: each core given to comm changes its rate by {change} of the rate on all cores (f; -a2)."
    else:
        yield f"Training: these measurements do not determine the paper's f: {comp['note']}."
    if comm["identified"]:
        b1, b2 = comm["b1"]["value"], comm["b2"]["value"]
        rate = f"{b1:.3g} c + {b2:.3g} ln({comm['b3']['value']:.3g} c)"
        yield f"Receiving: with c cores its rate is {rate}, relative to the rate on all {cores} cores (g)."
    elif cores == 2:
        yield "Receiving: 2 cores have one split, too few points for the paper's g. Policies use the measured rates."
    else:
        yield f"Receiving: these measurements do not determine the paper's g: {comm['note']}."
    for name, side in (("f", comp), ("g", comm)):
        if side["identified"] and side["note"]:
            yield f"Note on {name}: {side['note']}."
    waiting = [mode["name"] for mode in profile["modes"] if is_link_bound(mode)]
    if waiting:
        yield f"Comm waited for the teacher or the link in {', '.join(waiting)}. More cores do not make it faster there."
    unsteady = [mode["name"] for mode in profile["modes"] if any(_is_wide(mode[f"{side}_interval"]) for side in ("comm", "comp"))]
    if unsteady:
        yield f"Wide intervals in {', '.join(unsteady)}: other programs used the device, or --seconds allows too few visits."


def profile_figure(profile: dict[str, Any]) -> dict[str, Any]:
    """Return the data for `scheduler.figures.draw_fitted_costs`: figure 2 of the paper with the intervals of the rates."""
    data = fitted_costs(samples=profile["samples"])
    settings = profile["settings"]
    origin = f"Measured: {settings['model']} on {settings['private']}, {profile['cores']} cores of {profile['fingerprint']['cpu']}."
    units = "One unit of work takes 1 second alone on all cores. A sample is one visit; bars are the intervals of the rates."
    found = " ".join(side["text"] for side in data["sides"])
    for side in data["sides"]:
        side["bars"] = [*_bars(profile, side["side"])]
    return {**data, "caption": f"{origin} {units} {found}"}


def _bars(profile: dict[str, Any], side: str) -> Iterator[dict[str, float]]:
    """Yield one bar for each mode that divides the cores: seconds per unit of work of `side`, and their interval."""
    places = {"comp-only": 0, "comm-only": profile["cores"]}
    for mode in profile["modes"]:
        word, _, c = mode["name"].partition(":")
        rate, interval = mode[f"{side}_rate"], mode[f"{side}_interval"]
        if rate and interval and min(interval) > 0 and (word == "split" or word in places):
            place = int(c) if word == "split" else places[word]
            yield {"comm_cores": place, "seconds": 1 / rate, "low": 1 / interval[1], "high": 1 / interval[0]}


def _level_of(profile: dict[str, Any]) -> str:
    """Return the lowest level of an interval, in parentheses."""
    levels = [mode["interval_level"] for mode in profile["modes"] if mode["interval_level"] is not None]
    return shown_level(sorted(levels)[:1])


def _is_wide(interval: Interval) -> bool:
    return interval is not None and interval[1] > MAX_RATIO * interval[0]


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" +- {error:.1%}"
