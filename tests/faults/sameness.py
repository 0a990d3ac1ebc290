"""The meaning of "same result" in tests: bit-identical weights to a run without faults, and each batch used once."""

from pathlib import Path
from typing import Any

from processes import events, weights

CYCLES = 60
"""Of every run that is held against the fixture `undisturbed`."""
FLAGS = ("--policy", "os-default", "--torch-threads", "1", "--cycles", str(CYCLES))
"""What these runs have in common: `undisturbed` adds nothing."""


def check_same(out: Path, undisturbed: Path) -> list[dict[str, Any]]:
    """Assert that the run in `out` has the same result as the one in `undisturbed`. Returns its events."""
    log = events(out)
    for task in ("comm", "forward", "backward"):
        assert [record["index"] for record in log if record.get("task") == task] == list(range(CYCLES)), f"each {task} once"
    assert weights(out) == weights(undisturbed)
    return log


def troubles(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the failures that the edge recorded."""
    return [record for record in log if record["event"] == "comm-trouble"]


def started_at(log: list[dict[str, Any]]) -> float:
    """Return the start of the run's clock on the monotonic clock."""
    return next(float(record["clock_monotonic_s"]) for record in log if record["event"] == "start")
