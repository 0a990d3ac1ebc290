"""Draw the device profile: measured rates over the cores given to comm, and the curves of f and g if they are known."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_student.report.shapes import Figure, Scale, circle, line, polyline, text
from scheduler.model.cost import CostModel
from scheduler.model.samples import Samples

Data = dict[str, Any]

_COMP = ("a1", "a2")
_COMM = ("b1", "b2", "b3")
_ANY_PARAMETERS = {"a1": 1.0, "a2": 0.0, "b1": 1.0, "b2": 0.0, "b3": 1.0}
_CURVE_POINTS = 60


def profile_section(given: str | None, out: Path) -> Data:
    """Return {"why_not", "path", "figures", "notes", "modes", "fingerprint", "cores"} of the profile given to the comparison.

    If the profile is missing or unreadable, return {"why_not"} with the reason alone.
    """
    if given is None:
        return {"why_not": "No device profile was given to this comparison."}
    found = next((path for path in (Path(given), out / given) if path.is_file()), None)
    if found is None:
        return {"why_not": f"The profile {given} was deleted or moved, so its rates cannot be shown."}
    try:
        return {"why_not": "", "path": given, **_describe(json.loads(found.read_text(encoding="utf-8")))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        return {"why_not": f"The profile {given} cannot be shown: {type(error).__name__}: {error}"}


def _describe(profile: Data) -> Data:
    cores = int(profile["cores"])
    sides, notes = [], []
    for name in ("comp", "comm"):
        parameters, note = _parameters(profile, name)
        notes.append(_noted(name, parameters, note))
        sides.append(_side(name, profile, cores, parameters))
    figures: list[Figure] = [_rates_figure(side, cores) for side in sides if side["points"] or side["samples"]]
    shared = [mode for mode in profile.get("modes") or [] if _comm_cores(mode["name"], cores) is None]
    return {"figures": figures, "notes": notes, "modes": shared, "fingerprint": profile.get("fingerprint") or {}, "cores": cores}


def _side(name: str, profile: Data, cores: int, parameters: dict[str, float] | None) -> Data:
    first = 0 if name == "comp" else 1
    points = []
    for mode in profile.get("modes") or []:
        c = _comm_cores(mode["name"], cores)
        if c is not None and first <= c < first + cores:
            points.append({"c": c, "name": mode["name"], "rate": float(mode[f"{name}_rate"]), "ci95": mode.get(f"{name}_interval")})
    samples = [
        {"c": sample["comm_cores"], "rate": sample["work"] / sample["seconds"]}
        for sample in (profile.get("samples") or {}).get(name, [])
    ]
    return {"name": name, "points": points, "samples": samples, "curve": _curve(name, parameters, first, cores)}


def _comm_cores(mode: str, cores: int) -> int | None:
    """Return the number of cores that a mode gives to comm. None for a mode in which both sides share cores."""
    if mode in ("comp-only", "comm-only"):
        return 0 if mode == "comp-only" else cores
    digits = mode.removeprefix("split").strip(":()")
    return int(digits) if mode.startswith("split") and digits.isdecimal() else None


def _parameters(profile: Data, side: str) -> tuple[dict[str, float] | None, str]:
    """Return the parameters of f (comp) or g (comm), or None, and a note.

    The first available source is used: the stored fit, the given cost, or a new fit of the stored samples.
    """
    names = _COMP if side == "comp" else _COMM
    fitted = (profile.get("fit") or {}).get(side)
    if fitted is None and profile.get("cost"):
        return {name: float(profile["cost"][name]) for name in names}, ""
    if fitted is None and profile.get("samples"):
        from scheduler.model.fit import fit  # loads scipy, which takes seconds on a small board

        samples = Samples.from_json({key: profile["samples"][key] for key in ("cores", "comp", "comm")})
        fitted = fit(samples).to_json()[side]
    if fitted is None:
        return None, "the profile contains only measured rates"
    if any(fitted.get(name) is None for name in names):
        return None, str(fitted.get("note") or "not identified")
    return {name: float(fitted[name]["value"]) for name in names}, str(fitted.get("note") or "")


def _noted(side: str, parameters: dict[str, float] | None, note: str) -> str:
    formula = "f(x, c) = a1 x / (1 - a2 c)" if side == "comp" else "g(y, c) = y / (b1 c + b2 ln(b3 c))"
    if parameters is None:
        return f"{formula} is not drawn: {note}."
    values = ", ".join(f"{name} = {value:.4g}" for name, value in parameters.items())
    return f"{formula} with {values}" + (f" ({note})." if note else ".")


def _curve(side: str, parameters: dict[str, float] | None, first: int, cores: int) -> list[Data]:
    if parameters is None:
        return []
    model = CostModel(**{**_ANY_PARAMETERS, **parameters})
    rate: Callable[[float], float] = model.comp_rate if side == "comp" else model.comm_rate
    core_counts = [first + (cores - 1) * number / _CURVE_POINTS for number in range(_CURVE_POINTS + 1)]
    return [{"c": c, "rate": rate(c)} for c in core_counts if math.isfinite(rate(c)) and rate(c) > 0]


def _rates_figure(side: Data, cores: int) -> Figure:
    """Draw the rates of one side over the cores given to comm. `side` has the keys "name", "points", "samples" and "curve"."""
    height, bottom, start, end = 268.0, 216.0, 62.0, 440.0
    highest = max([point["rate"] for point in (*side["points"], *side["samples"])] + [ci[1] for ci in _intervals(side)])
    up = Scale(low=0.0, high=highest * 1.08, start=bottom, end=14.0)
    across = Scale(low=-0.35, high=cores + 0.35, start=start, end=end)
    shapes = []
    for tick in up.ticks(5):
        shapes += [line(start, up(tick), end, up(tick), "grid"), text(start - 8, up(tick) + 4, f"{tick:.10g}", "tick", "end")]
    for c in range(0, cores + 1, max(1, cores // 12)):
        shapes.append(text(across(c), bottom + 16, str(c), "tick", "middle"))
    shapes.append(text((start + end) / 2, bottom + 36, "cores given to comm, c", "tick", "middle"))
    look = side["name"]
    shapes += [circle(across(point["c"]), up(point["rate"]), 2.2, "sample") for point in side["samples"]]
    if side["curve"]:
        visible = [(across(point["c"]), up(point["rate"])) for point in side["curve"] if point["rate"] <= up.high]
        shapes.append(polyline(visible, f"curve curve-{look}"))
    for point in side["points"]:
        x = across(point["c"])
        if point["ci95"] is not None:
            low, high = (up(value) for value in point["ci95"])
            shapes += [line(x, low, x, high, "whisker"), *(line(x - 5, y, x + 5, y, "whisker") for y in (low, high))]
        shapes.append(circle(x, up(point["rate"]), 5, f"rate-{look}", f"{point['name']}: {point['rate']:.4g} per second"))
    rates = ", ".join(f"c={point['c']}: {point['rate']:.4g}" for point in side["points"])
    return Figure(
        name=f"rates-{look}",
        title=f"Rate of {'training (comp)' if look == 'comp' else 'receiving (comm)'} by cores given to comm",
        description=f"Work per second. {rates or 'no points'}.",
        height=height,
        width=460.0,
        shapes=tuple(shapes),
    )


def _intervals(side: Data) -> list[Sequence[float]]:
    return [point["ci95"] for point in side["points"] if point["ci95"] is not None]
