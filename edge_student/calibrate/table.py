"""What people see of a calibration: the table, what the fit says in plain words, and the data of the plot. All from the profile."""

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
"""An interval whose ends differ by more than this factor calls for a word."""


def print_calibration(profile: dict[str, Any]) -> None:
    """Print one row per mode: how fast both sides are in it, with intervals, and whether comm waited for the link."""
    origin, settings = profile["fingerprint"], profile["settings"]
    batch_s, cycle_s = profile["comm"], profile["forward"] + profile["backward"]
    table = Table(
        title=f"{settings['model']} on {settings['private']}, {profile['cores']} cores of {origin['cpu']}, "
        f"{profile['seconds']:.0f} s of measuring",
        caption=f"medians of the visits and their intervals{_level_of(profile)}. "
        f"Alone on all cores a cycle takes {format_duration(cycle_s)} "
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
    if not console.is_terminal:  # a pipe has no width of its own; a wrapped table is no table
        console = Console(width=160)
    console.print(table)


def remark(mode: dict[str, Any]) -> str:
    """What a reader of a mode's rates must know."""
    if not mode["num_comm"] and not mode["num_comp"]:
        return "not measured: between its neighbours"
    if is_link_bound(mode):
        return "comm waits for teacher or link"
    if mode["comp_rate"] and not mode["comm_rate"] and mode["name"] != "comp-only":
        return "training leaves comm nothing"
    return ""


def is_link_bound(mode: dict[str, Any]) -> bool:
    """Whether comm waited in a mode in which it had cores of its own, so that the link must have been to blame."""
    has_own_cores = mode["name"] == "comm-only" or mode["name"].startswith("split:")
    return has_own_cores and mode["comm_cpu_share"] is not None and mode["comm_cpu_share"] < QUIET_SHARE


def describe_findings(profile: dict[str, Any]) -> Iterator[str]:
    """What the measurements say of the paper's f and g, of the link and of themselves, in plain words."""
    comp, comm, cores = profile["fit"]["comp"], profile["fit"]["comm"], profile["cores"]
    if comp["identified"]:
        a2, error = comp["a2"]["value"], comp["a2"]["stderr"]
        yield f"Training: each core given to comm changes its rate by {-a2:+.1%}{_plus_minus(error)} of that on all cores (f; -a2)."
    else:
        yield f"Training: the paper's f cannot be told from these measurements: {comp['note']}."
    if comm["identified"]:
        b1, b2 = comm["b1"]["value"], comm["b2"]["value"]
        rate = f"{b1:.3g} c + {b2:.3g} ln({comm['b3']['value']:.3g} c)"
        yield f"Receiving: with c cores its rate is {rate}, in units of that on all {cores} (g)."
    elif cores == 2:
        yield "Receiving: 2 cores have one split, too few points for the paper's g. Policies use the measured rates anyway."
    else:
        yield f"Receiving: the paper's g cannot be told from these measurements: {comm['note']}."
    for name, side in (("f", comp), ("g", comm)):
        if side["identified"] and side["note"]:
            yield f"Of {name}: {side['note']}."
    waiting = [mode["name"] for mode in profile["modes"] if is_link_bound(mode)]
    if waiting:
        yield f"Comm waited for the teacher or the link in {', '.join(waiting)}: more cores do not make it faster there."
    unsteady = [mode["name"] for mode in profile["modes"] if any(_is_wide(mode[f"{side}_interval"]) for side in ("comm", "comp"))]
    if unsteady:
        yield f"Wide intervals in {', '.join(unsteady)}: the device was busy otherwise, or the visits were few (--seconds)."


def profile_figure(profile: dict[str, Any]) -> dict[str, Any]:
    """The data of the plot, for `scheduler.figures.draw_fitted_costs`: figure 2 of the paper with the intervals of the rates."""
    data = fitted_costs(samples=profile["samples"])
    settings = profile["settings"]
    origin = f"Measured: {settings['model']} on {settings['private']}, {profile['cores']} cores of {profile['fingerprint']['cpu']}."
    units = "One unit of work takes 1 second alone on all cores. A sample is one visit; bars are the intervals of the rates."
    found = " ".join(side["text"] for side in data["sides"])
    for side in data["sides"]:
        side["bars"] = [*_bars(profile, side["side"])]
    return {**data, "caption": f"{origin} {units} {found}"}


def _bars(profile: dict[str, Any], side: str) -> Iterator[dict[str, float]]:
    """One bar for each mode of `side` whose cores are divided: seconds per unit of work, and their interval."""
    places = {"comp-only": 0, "comm-only": profile["cores"]}
    for mode in profile["modes"]:
        word, _, c = mode["name"].partition(":")
        rate, interval = mode[f"{side}_rate"], mode[f"{side}_interval"]
        if rate and interval and min(interval) > 0 and (word == "split" or word in places):
            place = int(c) if word == "split" else places[word]
            yield {"comm_cores": place, "seconds": 1 / rate, "low": 1 / interval[1], "high": 1 / interval[0]}


def _level_of(profile: dict[str, Any]) -> str:
    """The level of the least sure interval, in parentheses."""
    levels = [mode["interval_level"] for mode in profile["modes"] if mode["interval_level"] is not None]
    return shown_level(sorted(levels)[:1])


def _is_wide(interval: Interval) -> bool:
    return interval is not None and interval[1] > MAX_RATIO * interval[0]


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" +- {error:.1%}"
