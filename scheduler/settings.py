"""Settings of `core-scheduler`: one frozen dataclass per command. The docstring below a field is its help text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

MAX_RUNS, MAX_SEED, MAX_SHARDS = 1_000_000, 2**32 - 1, 4096

EXAMPLE_SCENARIO = """\
{"cores": 4, "cycles": 6, "forward": 1, "backward": [2, 2, 2, 3, 2, 2], "comm": 8, "prefetch": 2,
 "cost": {"a1": 0.5, "a2": 0.2, "b1": 1.0, "b2": 2.0, "b3": 3.0}}"""

EXAMPLE_SAMPLES = """\
{"cores": 4,
 "comp": [{"work": 1, "comm_cores": 0, "seconds": 0.50}, {"work": 1, "comm_cores": 1, "seconds": 0.62},
          {"work": 2, "comm_cores": 2, "seconds": 1.67}, {"work": 2, "comm_cores": 3, "seconds": 2.51}],
 "comm": [{"work": 8, "comm_cores": 1, "seconds": 2.50}, {"work": 8, "comm_cores": 2, "seconds": 1.43},
          {"work": 9, "comm_cores": 3, "seconds": 1.22}, {"work": 9, "comm_cores": 4, "seconds": 1.00}]}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateConfig:
    """Simulate a scenario under several policies."""

    examples: ClassVar[str] = f"""\
Example of a scenario. A task's work is one number for all cycles, or a list with one number per cycle:

{EXAMPLE_SCENARIO}

"cost" gives the rates: f(x, c) = a1 x / (1 - a2 c) and g(y, c) = y / (b1 c + b2 ln(b3 c)) are the seconds of comp
work x and comm work y, when comm has c cores and comp has the others. "prefetch" is the number of batches that comm
may run ahead; without it, there is no limit. "modes" can list measured rates instead of "cost":
[{{"name": "comp-only" | "split:<c>" | "comm-only" | ..., "comm_rate": R, "comp_rate": R}}, ...].

Without --policies, `dynamic` is simulated only if cycles x cycles x cores is at most 12,000,000."""

    scenario: Path
    """Scenario file in JSON; - reads stdin."""
    policies: str | None = None
    """Policies, separated by commas. (default: every policy that simulates in a short time)"""
    shards: int = 1
    """Number of shards of a batch. The Backward of a shard may start when its share of the batch is received."""
    random_runs: int = 1000
    """Number of runs of the policy `random`."""
    seed: int = 0
    """Seed of the policy `random`."""
    json: bool = False
    """Print the lower bound and the makespan of each policy as JSON."""

    def __post_init__(self) -> None:
        _check_range("--shards", self.shards, 1, MAX_SHARDS)
        _check_range("--random-runs", self.random_runs, 1, MAX_RUNS)
        _check_range("--seed", self.seed, 0, MAX_SEED)


@dataclass(frozen=True, kw_only=True, slots=True)
class FiguresConfig:
    """Draw the figures of the model."""

    examples: ClassVar[str] = f"""\
Every figure is written as PNG, as SVG, and as JSON with its numbers. The command prints the paths.
Example of samples (`core-scheduler fit --help` explains the fields):

{EXAMPLE_SAMPLES}"""

    out: Path
    """Folder for the figures; it is created if missing, and earlier figures are replaced."""
    runs: int = 1000
    """Number of runs of the policy `random` that are averaged."""
    seed: int = 0
    """Seed of the policy `random` and of the example samples."""
    samples: Path | None = None
    """File of measured times to fit; - reads stdin. Without it, the figure shows samples that it labels as examples."""

    def __post_init__(self) -> None:
        _check_range("--runs", self.runs, 1, MAX_RUNS)
        _check_range("--seed", self.seed, 0, MAX_SEED)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """Fit the cost functions to measured times."""

    positional: ClassVar[tuple[str, ...]] = ("samples",)
    examples: ClassVar[str] = f"""\
Example of samples:

{EXAMPLE_SAMPLES}

Each sample gives the seconds that some work took while comm had "comm_cores" cores and comp had the others: 0..3 in
"comp" and 1..4 in "comm". f needs 3 samples or more, at 2 or more core counts; g needs 4 at 3 or more.
A parameter that the samples do not determine gets no value. A note names the missing samples."""

    samples: Path
    """File of measured times in JSON; - reads stdin."""
    json: bool = False
    """Print JSON; its "cost" can be pasted into a scenario."""


def _check_range(flag: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ValueError(f"{flag} is {value}, must be in {least} .. {most}")
