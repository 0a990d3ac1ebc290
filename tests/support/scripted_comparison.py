"""A comparison of scripted records: the turns of policies run without processes."""

from collections.abc import Mapping
from typing import Any

from synthetic_comparison import QUIET

from edge_student.measure.interleaving import run_turns


def loud(fraction: float) -> dict[str, Any]:
    return {**QUIET, "others_fraction": fraction, "busiest_others": [{"name": "make", "pid": 7, "cpu_s": 10 * fraction}]}


def compared(script: Mapping[tuple[str, int, int], dict[str, Any]], repeats: int = 2, policies: str = "ab") -> list[dict[str, Any]]:
    """Run some policies, the baseline first. `script` overrides record fields by (policy, repeat, attempt)."""
    runs: list[dict[str, Any]] = []

    def run_once(policy: str, repeat: int, attempt: int) -> dict[str, Any]:
        run = {"policy": policy, "repeat": repeat, "wall_clock_s": float(len(runs) + 1), "valid": True, "notes": []}
        return {**run, "disturbance": QUIET, **script.get((policy, repeat, attempt), {})}

    run_turns([{"a": "os-default"}.get(name, name) for name in policies], repeats, run_once, runs)
    return runs
