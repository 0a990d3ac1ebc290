"""Derive the recommended policy and its reason, and format values for the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_student.host.disturbance import findings
from edge_student.report.verdict import BASELINE, MIN_REPEATS_FOR_VERDICT
from scheduler.policies.registry import kind_of

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The recommended policy, with a headline and a reason. `policy` is empty if the runs support no recommendation."""

    policy: str
    headline: str
    why: str


def advise(summary: Sequence[Row]) -> Advice:
    """Derive the recommendation from the verdicts alone."""
    baseline = next((row for row in summary if row["policy"] == BASELINE), None)
    if baseline is None or not baseline["num_runs"]:
        why = f"Every policy is compared with {BASELINE}, the default of the operating system. No run of {BASELINE} counts."
        return Advice(policy="", headline="These runs do not show which policy to use.", why=why)
    others = [row for row in summary if row["policy"] != BASELINE]
    faster = sorted((row for row in others if row["verdict"] == "faster"), key=lambda row: float(row["ratio_vs_os_default"]))
    if faster:
        return _recommend_fastest(faster, others)
    return _recommend_baseline(others)


def _recommend_fastest(faster: Sequence[Row], others: Sequence[Row]) -> Advice:
    best, ratio, (low, high) = faster[0], faster[0]["ratio_vs_os_default"], faster[0]["ratio_ci95"]
    level = best.get("ratio_ci_level")
    shown_level = f"{level:.1%} " if level else ""
    why = (
        f"It took {ratio:.2f} of the time of {BASELINE} ({shown_level}interval {low:.2f} to {high:.2f}, {best['num_runs']} runs),"
        f" which is {1 - ratio:.0%} less."
    )
    rivals = [row["policy"] for row in faster[1:] if row["ratio_ci95"][0] <= high]
    if rivals:
        why += f" {_listed(rivals)} {_was(rivals)} also faster than {BASELINE}."
        why += " The intervals overlap, so any of these policies is a good choice."
    return Advice(policy=best["policy"], headline=f"Use {best['policy']} on this device.", why=why + _undecided(others))


def _recommend_baseline(others: Sequence[Row]) -> Advice:
    alike = [row["policy"] for row in others if row["verdict"] == "no significant difference"]
    slower = [row["policy"] for row in others if row["verdict"] == "slower"]
    if slower and len(slower) == len(others):
        why = f"{_listed(slower)} {_was(slower)} significantly slower. Let the operating system assign the cores."
        return Advice(policy=BASELINE, headline=f"Use {BASELINE} on this device: it is the fastest.", why=why)
    if alike and not slower and len(alike) == len(others):
        why = f"No policy differs significantly from {BASELINE}, so the default is as good as any other policy."
        return Advice(policy=BASELINE, headline=f"Keep {BASELINE} on this device: no policy is faster.", why=why)
    if alike or slower:
        why = f"No other policy was significantly faster{f', and {_listed(slower)} {_was(slower)} slower' if slower else ''}."
        if alike:
            differ = "does not differ" if len(alike) == 1 else "do not differ"
            why += f" {_listed(alike)} {differ} significantly from {BASELINE}, so the default is as good."
        return Advice(policy=BASELINE, headline=f"Keep {BASELINE} on this device.", why=why + _undecided(others))
    if not others:
        return Advice(policy="", headline=f"Only {BASELINE} was measured.", why="Compare it with at least one other policy.")
    why = f"A verdict needs {MIN_REPEATS_FOR_VERDICT} repeats of each policy. Keep {BASELINE}, the default, until you have them."
    return Advice(policy="", headline="Too few runs to recommend a policy.", why=why)


def _undecided(others: Sequence[Row]) -> str:
    undecided = [row["policy"] for row in others if row["verdict"].startswith("too few")]
    return f" {_listed(undecided)} had too few runs for a verdict." if undecided else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def meaning_of(policy: str) -> str:
    """Describe a policy in one sentence."""
    try:
        sentence = kind_of(policy).sentence
    except ValueError:
        return "This version of EdgeKD does not know this policy."
    argument = policy.partition(":")[2]
    return f"{sentence[0].upper()}{sentence[1:]}." + (f" Here c is {argument}." if argument else "")


def disturbed_by(run: Row) -> list[str]:
    """List the disturbances of a run. Empty if none are known, or if the report is of a version with other fields."""
    try:
        return findings(run.get("disturbance"))
    except (KeyError, TypeError):
        return []


def facts(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every value in nested dicts and lists, for any keys."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from facts(value, f"{prefix}, {name}" if prefix else str(name))
    elif isinstance(values, list) and any(isinstance(value, dict | list) for value in values):
        for number, value in enumerate(values):
            yield from facts(value, f"{prefix} {number}")
    else:
        yield prefix.replace("_", " "), written(values)


def written(value: Any) -> str:
    """Format a JSON value as text for readers."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(written(element) for element in value) or "none"
    if isinstance(value, dict):
        return "; ".join(f"{str(name).replace('_', ' ')}: {written(element)}" for name, element in value.items()) or "none"
    return str(value)
