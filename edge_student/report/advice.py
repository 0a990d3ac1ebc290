"""What the page says in words: which policy to use and why, and facts of any shape as rows of a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_student.host.disturbance import findings
from edge_student.report.verdict import BASELINE, MIN_REPEATS_FOR_VERDICT
from scheduler.policies.registry import kind_of

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Which policy to use: in a few words, and why. `policy` is empty where the runs do not tell."""

    policy: str
    headline: str
    why: str


def advise(summary: Sequence[Row]) -> Advice:
    """What the verdicts allow to say, and not more."""
    baseline = next((row for row in summary if row["policy"] == BASELINE), None)
    if baseline is None or not baseline["num_runs"]:
        why = f"Everything is judged against {BASELINE}, what you have without doing anything, and none of its runs counted."
        return Advice(policy="", headline="These runs do not tell which policy to use.", why=why)
    others = [row for row in summary if row["policy"] != BASELINE]
    faster = sorted((row for row in others if row["verdict"] == "faster"), key=lambda row: float(row["ratio_vs_os_default"]))
    if faster:
        return _faster(faster, others)
    return _stay(others)


def _faster(faster: Sequence[Row], others: Sequence[Row]) -> Advice:
    best, ratio, (low, high) = faster[0], faster[0]["ratio_vs_os_default"], faster[0]["ratio_ci95"]
    level = best.get("ratio_ci_level")
    sure = f"{level:.1%} " if level else ""
    why = (
        f"It took {ratio:.2f} of {BASELINE}'s time ({sure}interval {low:.2f} to {high:.2f}, {best['num_runs']} runs):"
        f" {_percent(1 - ratio)} less than doing nothing."
    )
    rivals = [row["policy"] for row in faster[1:] if row["ratio_ci95"][0] <= high]
    if rivals:
        why += f" {_listed(rivals)} {_was(rivals)} faster than {BASELINE} too; their intervals overlap, so either will do."
    return Advice(policy=best["policy"], headline=f"Use {best['policy']} on this device.", why=why + _untold(others))


def _stay(others: Sequence[Row]) -> Advice:
    alike = [row["policy"] for row in others if row["verdict"] == "no significant difference"]
    slower = [row["policy"] for row in others if row["verdict"] == "slower"]
    if slower and len(slower) == len(others):
        why = f"{_listed(slower)} {_was(slower)} significantly slower, so leave the cores to the operating system."
        return Advice(policy=BASELINE, headline=f"Use {BASELINE} on this device: it is the fastest.", why=why)
    if alike and not slower and len(alike) == len(others):
        why = f"No policy differs significantly from {BASELINE}, so the default is as good as any other."
        return Advice(policy=BASELINE, headline=f"Stay with {BASELINE} on this device: nothing differs.", why=why)
    if alike or slower:
        why = f"No other policy was significantly faster{f', and {_listed(slower)} {_was(slower)} slower' if slower else ''}."
        if alike:
            why += f" {_listed(alike)} cannot be told from {BASELINE}, so the default is as good."
        return Advice(policy=BASELINE, headline=f"Stay with {BASELINE} on this device.", why=why + _untold(others))
    if not others:
        return Advice(policy="", headline=f"Only {BASELINE} was measured.", why="There is nothing to compare it with.")
    why = f"A verdict needs {MIN_REPEATS_FOR_VERDICT} repeats of each policy. Until then stay with {BASELINE}, the default."
    return Advice(policy="", headline="Too few runs to tell which policy to use.", why=why)


def _untold(others: Sequence[Row]) -> str:
    untold = [row["policy"] for row in others if row["verdict"].startswith("too few")]
    return f" Of {_listed(untold)} there are too few runs to tell." if untold else ""


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _was(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def meaning_of(policy: str) -> str:
    """What a policy does, in a sentence."""
    try:
        sentence = kind_of(policy).sentence
    except ValueError:
        return "A policy that this version does not know."
    argument = policy.partition(":")[2]
    return f"{sentence[0].upper()}{sentence[1:]}." + (f" Here c is {argument}." if argument else "")


def disturbed_by(run: Row) -> list[str]:
    """What disturbed a run, in words; empty if nothing is known, also where a report of another version saw other things."""
    try:
        return findings(run.get("disturbance"))
    except (KeyError, TypeError):
        return []


def facts(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of everything in nested dicts and lists, whatever its keys are."""
    if isinstance(values, dict) and values:
        for name, value in values.items():
            yield from facts(value, f"{prefix}, {name}" if prefix else str(name))
    elif isinstance(values, list) and any(isinstance(value, dict | list) for value in values):
        for number, value in enumerate(values):
            yield from facts(value, f"{prefix} {number}")
    else:
        yield prefix.replace("_", " "), written(values)


def written(value: Any) -> str:
    """A fact as people write it."""
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
