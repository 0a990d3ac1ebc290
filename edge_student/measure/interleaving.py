"""Whose run is next, and what becomes of a run that others disturbed: it runs again at the end of its turn.

In a turn every policy runs once, so that a ratio compares neighbours in time. Turns go A B C, C B A, A B C, ... A disturbed run is
left out whatever its wall-clock was, and its repetition takes its place in the pair, be it the policy's or the baseline's. Where no
attempt was quiet the least disturbed one counts, and says so; and after a turn without any quiet run nothing is repeated until
there is one again: on a machine that is never quiet, repeating takes three times as long and changes nothing.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from edge_student.host.disturbance import findings, severity

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3

RunRecord = dict[str, Any]
RunOnce = Callable[[str, int, int], RunRecord]
"""(policy, repeat, attempt from 1) -> a run with `valid`, `notes` and `disturbance`."""


def schedule_of_runs(policies: Sequence[str], repeats: int) -> list[tuple[int, str]]:
    """(repeat, policy) in the order in which they run: A B C, C B A, A B C, ..."""
    return [(repeat, policy) for repeat in range(repeats) for policy in _turn(policies, repeat)]


def run_turns(policies: Sequence[str], repeats: int, run_once: RunOnce, runs: list[RunRecord]) -> None:
    """Append run after run to `runs`, which is the caller's, so that nothing is lost when one of them breaks off.

    Each gets `attempt` and `disturbed`. Of the attempts of one policy in one turn at most one is `valid`.
    """
    is_promising = True
    for repeat in range(repeats):
        start = len(runs)
        due = _turn(policies, repeat)
        try:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                due = [policy for policy in due if _is_disturbed(run_once, policy, repeat, attempt, runs)]
                is_promising = is_promising or any(run["valid"] for run in runs[start:])
                if not due or not is_promising:
                    break
                if attempt < MAX_ATTEMPTS:
                    logger.info("attempt %d of %d for what was disturbed: %s", attempt + 1, MAX_ATTEMPTS, ", ".join(due))
        finally:  # an interrupted turn is settled too
            was_quiet_once = any(run["valid"] for run in runs[start:])
            _settle(runs[start:])
        if due and is_promising and not was_quiet_once:
            logger.warning("none of %d attempts in this turn was quiet; disturbed runs are not repeated until one is", MAX_ATTEMPTS)
        is_promising = was_quiet_once or not due


def is_complete(policies: Sequence[str], repeats: int, runs: Sequence[RunRecord]) -> bool:
    """Whether every policy has had its run in every turn: one that counts, or one that failed."""
    done = {(run["repeat"], run["policy"]) for run in runs if run["valid"] or not run["disturbed"]}
    return done == set(schedule_of_runs(policies, repeats))


def _turn(policies: Sequence[str], repeat: int) -> list[str]:
    return list(policies) if repeat % 2 == 0 else list(reversed(policies))


def _is_disturbed(run_once: RunOnce, policy: str, repeat: int, attempt: int, runs: list[RunRecord]) -> bool:
    """Run it and append the run; whether others disturbed it. A run that failed by itself is not asked."""
    run = run_once(policy, repeat, attempt)
    found = findings(run["disturbance"]) if run["valid"] else []
    run = {**run, "attempt": attempt, "disturbed": bool(found), "valid": run["valid"] and not found}
    runs.append({**run, "notes": [*run["notes"], *(f"disturbed: {what}" for what in found)]})
    if found:
        logger.info("%s, repeat %d, attempt %d, was disturbed: %s", policy, repeat, attempt, "; ".join(found))
    return bool(found)


def _settle(turn: Sequence[RunRecord]) -> None:
    """Where every attempt of a policy was disturbed, let the least disturbed one count."""
    for policy in {run["policy"] for run in turn}:
        attempts = [run for run in turn if run["policy"] == policy]
        disturbed = [run for run in attempts if run["disturbed"]]
        if disturbed and not any(run["valid"] for run in attempts):
            best = min(disturbed, key=lambda run: severity(run["disturbance"]))
            best["valid"] = True
            best["notes"].append(f"counts although disturbed: the least disturbed of {len(disturbed)} attempts")
