"""Computes a device profile from visits: rates with intervals, rates of splits that were not measured, and the fit of f and g.

Units: comp work is in seconds of training alone on all cores, comm work in seconds of receiving alone on all cores. The works of a
cycle are therefore its durations there. Both sides have rate 1 there, and every other rate is relative to it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_student.calibrate.visits import ModeUnderTest, Visit
from edge_student.measure.intervals import median_interval
from scheduler.model.fit import fit
from scheduler.model.fit_result import Fit
from scheduler.model.samples import Samples
from scheduler.model.scenario import Profile

Row = dict[str, Any]
"""A mode of the profile, as JSON."""


def make_profile(visits: Sequence[Visit], num_cores: int) -> dict[str, Any]:
    """Return the profile as JSON for `Profile.from_json`, with "samples" and "fit", without fingerprint and settings."""
    rows = _measured_rows(visits)
    alone_comp, alone_comm = rows["comp-only"]["comp_rate"], rows["comm-only"]["comm_rate"]
    forward_part = _forward_part(visits)
    cycle_s, batch_s = 1 / alone_comp, 1 / alone_comm
    for row in rows.values():
        _scale(row, "comm", batch_s)
        _scale(row, "comp", cycle_s)
    samples = _samples(visits, num_cores, cycle_s=cycle_s, batch_s=batch_s)
    fitted = fit(Samples.from_json(samples))
    profile = {
        "cores": num_cores,
        "forward": cycle_s * forward_part,
        "backward": cycle_s * (1 - forward_part),
        "comm": batch_s,
        "modes": [*_with_interpolated_splits(rows, fitted, num_cores)],
        "samples": samples,
        "fit": fitted.to_json(),
    }
    Profile.from_json(profile)
    return profile


def _measured_rows(visits: Sequence[Visit]) -> dict[str, Row]:
    """Return tasks per second in each mode: the median over its visits with its interval. Every visit has its own disturbances.

    In compute-first, comm may finish at most one batch in a visit. Its rate there is that of all visits together.
    """
    by_mode: dict[ModeUnderTest, list[Visit]] = {}
    for visit in visits:
        by_mode.setdefault(visit.mode, []).append(visit)
    rows = {}
    for mode, there in by_mode.items():
        comm = [visit.num_comm / visit.comm_s for visit in there if visit.num_comm]
        comp = [visit.num_comp / visit.comp_s for visit in there if visit.num_comp]
        num_comm, comm_s = sum(visit.num_comm for visit in there), sum(visit.comm_s for visit in there)
        comm_rate = float(np.median(comm)) if comm and mode.has_comm else 0.0
        if mode.may_starve:
            comm = [visit.num_comm / visit.comm_s for visit in there if visit.comm_s]
            comm_rate = num_comm / comm_s if comm_s else 0.0
        comm_interval, comp_interval = median_interval(comm), median_interval(comp)
        levels = [found.level for found in (comm_interval, comp_interval) if found is not None]
        rows[mode.name] = {
            "name": mode.name,
            "comm_rate": comm_rate,
            "comp_rate": float(np.median(comp)) if mode.has_comp else 0.0,
            "comm_interval": None if comm_interval is None else [comm_interval.low, comm_interval.high],
            "comp_interval": None if comp_interval is None else [comp_interval.low, comp_interval.high],
            "interval_level": min(levels, default=None),
            "num_comm": num_comm,
            "num_comp": sum(visit.num_comp for visit in there),
            "comm_cpu_share": sum(visit.comm_cpu_s for visit in there) / comm_s if comm_s else None,
        }
    return rows


def _forward_part(visits: Sequence[Visit]) -> float:
    """Return the share of Forward in a cycle of training alone."""
    parts = [visit.forward_s / visit.comp_s for visit in visits if visit.num_comp and not visit.mode.has_comm]
    return float(np.median(parts))


def _scale(row: Row, side: str, seconds: float) -> None:
    """Convert tasks per second to work per second, with `seconds` of work in a task."""
    row[f"{side}_rate"] *= seconds
    interval = row[f"{side}_interval"]
    row[f"{side}_interval"] = None if interval is None else [end * seconds for end in interval]


def _samples(visits: Sequence[Visit], num_cores: int, *, cycle_s: float, batch_s: float) -> dict[str, Any]:
    """Return one sample per visit and side, for the modes that divide the cores."""
    divided = [visit for visit in visits if visit.mode.allocation.shared is None]

    def sample(visit: Visit, work: float, seconds: float) -> dict[str, float]:
        return {"work": work, "comm_cores": visit.mode.allocation.comm, "seconds": seconds}

    comp = [sample(visit, visit.num_comp * cycle_s, visit.comp_s) for visit in divided if visit.num_comp]
    comm = [sample(visit, visit.num_comm * batch_s, visit.comm_s) for visit in divided if visit.num_comm]
    return {"cores": num_cores, "comp": comp, "comm": comm}


def _with_interpolated_splits(rows: dict[str, Row], fitted: Fit, num_cores: int) -> list[Row]:
    """Return all modes in order. A split without measurement gets the rates of the fit, or interpolated rates of its neighbours.

    Interpolation is used if the fit has a note, because such a fit is doubtful and may be far from the neighbours.
    """
    fits = {"comm": fitted.comm, "comp": fitted.comp}
    is_sure = {side: found.identified and not found.note for side, found in fits.items()}
    splits = [f"split:{c}" for c in range(1, num_cores)]
    names = ["comp-only", *splits, "comm-only"]
    known = [c for c, name in enumerate(names) if name in rows]
    for c, name in enumerate(names):
        if name in rows:
            continue
        between = {side: [rows[names[k]][f"{side}_rate"] for k in known] for side in ("comm", "comp")}
        comm, comp = (float(np.interp(c, known, between[side])) for side in ("comm", "comp"))
        rows[name] = {
            "name": name,
            "comm_rate": 1 / fitted.comm_time(1.0, c) if is_sure["comm"] else comm,
            "comp_rate": 1 / fitted.comp_time(1.0, c) if is_sure["comp"] else comp,
            "comm_interval": None,
            "comp_interval": None,
            "interval_level": None,
            "num_comm": 0,
            "num_comp": 0,
            "comm_cpu_share": None,
        }
    shared = [name for name in rows if name not in names]
    return [rows[name] for name in (*names, *shared)]
