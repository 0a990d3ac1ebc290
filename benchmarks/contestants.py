"""Runs one training as a process: `edge-student train` of this or another checkout, or plain_script.py.

As a program it does nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "plain"
PREFETCH = 16  # as the queue of plain_script.py
_LIMIT_S = 1200.0  # plain_script.py waits forever if its receiving thread fails


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A policy of the checkout at `tree`, or plain_script.py if `policy` is None."""

    name: str
    policy: str | None
    tree: Path = ROOT

    def run(self, address: str, flags: Sequence[str], more: Sequence[str] = ()) -> dict[str, Any]:
        """Train once with the logits of the teacher at `address`. Returns result.json, or the JSON of plain_script.py.

        `more` are flags of `edge-student train` only. Raises SystemExit with the run's stderr if it fails.
        """
        with tempfile.TemporaryDirectory() as out:
            finished = subprocess.run(
                [sys.executable, *self._command(out), "--teacher", address, *flags, *more],
                # `python -m` prefers the current folder to PYTHONPATH, so both have to be the tree's.
                cwd=self.tree,
                env={**os.environ, "PYTHONPATH": f"{self.tree}{os.pathsep}{self.tree / 'proto'}"},
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=_LIMIT_S,
                check=False,
            )
            if finished.returncode != 0:
                raise SystemExit(f"{self.name} ended with exit status {finished.returncode}:\n{finished.stderr}")
            result: dict[str, Any] = json.loads(
                finished.stdout if self.policy is None else (Path(out) / "result.json").read_text(encoding="utf-8")
            )
        if not result.get("valid", True):
            raise SystemExit(f"{self.name}: the run does not count: {'; '.join(result['notes'])}\n{finished.stderr}")
        return result

    def _command(self, out: str) -> list[str]:
        if self.policy is None:
            return [str(ROOT / "benchmarks" / "plain_script.py")]
        # Only flags that older checkouts have too: no --shards. The address of a network namespace requires --insecure.
        command = ["-m", "edge_student", "train", "--policy", self.policy, "--out", out, "--prefetch", str(PREFETCH)]
        return [*command, "--checkpoint-every", "0", "--log-level", "warning", "--insecure"]


def parse_others(text: str | None) -> list[Contestant]:
    """Parse NAME=PATH:POLICY, comma-separated: policies of other checkouts. Raises ValueError for another form or no checkout."""
    found = []
    for part in text.split(",") if text else ():
        name, _, rest = part.partition("=")
        path, _, policy = rest.partition(":")
        if not (name and path and policy):
            raise ValueError(f"--other has {part!r}, must be NAME=PATH:POLICY")
        tree = Path(path).resolve()
        if not (tree / "edge_student").is_dir():
            raise ValueError(f"--other has {part!r}, but {path} has no folder edge_student: name the root of a checkout")
        found.append(Contestant(name=name, policy=policy, tree=tree))
    return found


def contestants(policies: str, others: str | None) -> list[Contestant]:
    """Return plain_script.py, the policies and the `others`. Raises ValueError if two have one name."""
    plain = Contestant(name=PLAIN, policy=None)
    found = [plain, *(Contestant(name=name, policy=name) for name in policies.split(",")), *parse_others(others)]
    names = [contestant.name for contestant in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two contestants are named {name}: use another NAME in --other, and each policy once")
    return found
