"""Orders the runs of a comparison in turns and repeats disturbed runs at the end of their turn.

In a turn every policy runs once, with the same seed and batches. Ratios are taken within a turn, so that a slowdown of the whole
machine cancels out. Turns alternate in direction: A B C, C B A, A B C, ...

A disturbed run is excluded whatever its wall-clock, and its repetition takes its place in the pair with the baseline. If all
attempts were disturbed, the least disturbed one counts, with a note.

After a turn without any undisturbed run, disturbed runs are not repeated until a run is undisturbed again. On a permanently busy
machine, repeating would take three times as long without effect.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from edge_student.host.disturbance import DISTURBED, findings, severity

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3

RunRecord = dict[str, Any]
RunOnce = Callable[[str, int, int], RunRecord]
"""Runs one policy: (policy, repeat, attempt counted from 1) -> a record with `valid`, `notes` and `disturbance`."""


def schedule_of_runs(policies: Sequence[str], repeats: int) -> list[tuple[int, str]]:
    """Return (repeat, policy) of all runs in order: A B C, C B A, A B C, ..."""
    return [(repeat, policy) for repeat in range(repeats) for policy in _turn(policies, repeat)]


def run_turns(policies: Sequence[str], repeats: int, run_once: RunOnce, runs: list[RunRecord]) -> None:
    """Execute all runs and append their records to the caller's list `runs`, which keeps them if an exception is raised.

    Each record gets `attempt` and `disturbed`. At most one attempt of a policy in a turn is `valid`.
    """
    repeats_disturbed = True
    for repeat in range(repeats):
        start = len(runs)
        due = _turn(policies, repeat)
        try:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                due = [policy for policy in due if _is_disturbed(run_once, policy, repeat, attempt, runs)]
                repeats_disturbed = repeats_disturbed or any(run["valid"] for run in runs[start:])
                if not due or not repeats_disturbed:
                    break
                if attempt < MAX_ATTEMPTS:
                    logger.info("attempt %d of %d for disturbed runs: %s", attempt + 1, MAX_ATTEMPTS, ", ".join(due))
        finally:  # also for an interrupted turn
            has_undisturbed = any(run["valid"] for run in runs[start:])
            _accept_least_disturbed(runs[start:])
        if due and repeats_disturbed and not has_undisturbed:
            logger.warning(
                "all %d attempts in this turn were disturbed; later turns run each policy once, until a run is undisturbed",
                MAX_ATTEMPTS,
            )
        repeats_disturbed = has_undisturbed or not due


def is_complete(policies: Sequence[str], repeats: int, runs: Sequence[RunRecord]) -> bool:
    """Return whether every policy has a run in every turn that counts or failed."""
    done = {(run["repeat"], run["policy"]) for run in runs if run["valid"] or not run["disturbed"]}
    return done == set(schedule_of_runs(policies, repeats))


def _turn(policies: Sequence[str], repeat: int) -> list[str]:
    return list(policies) if repeat % 2 == 0 else list(reversed(policies))


def _is_disturbed(run_once: RunOnce, policy: str, repeat: int, attempt: int, runs: list[RunRecord]) -> bool:
    """Run a policy, append the record, and return whether the run was disturbed. A failed run never counts as disturbed."""
    run = run_once(policy, repeat, attempt)
    found = findings(run["disturbance"]) if run["valid"] else []
    run = {**run, "attempt": attempt, "disturbed": bool(found), "valid": run["valid"] and not found}
    notes = [*run["notes"], *(f"{DISTURBED}{finding}" for finding in found)]
    runs.append({**run, "notes": list(dict.fromkeys(notes))})
    if found:
        logger.info("%s, repeat %d, attempt %d, was disturbed: %s", policy, repeat, attempt, "; ".join(found))
    return bool(found)


def _accept_least_disturbed(turn: Sequence[RunRecord]) -> None:
    """Mark the least disturbed attempt as valid for each policy without an undisturbed attempt."""
    for policy in {run["policy"] for run in turn}:
        attempts = [run for run in turn if run["policy"] == policy]
        disturbed = [run for run in attempts if run["disturbed"]]
        if disturbed and not any(run["valid"] for run in attempts):
            best = min(disturbed, key=lambda run: severity(run["disturbance"]))
            best["valid"] = True
            best["notes"].append(f"counts although disturbed: the least disturbed of {len(disturbed)} attempts")
