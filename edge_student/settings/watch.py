"""Settings of `watch`. The docstring below a field is its help text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchConfig:
    """Show a running training: cores, buffer, waits, loss and decisions."""

    positional: ClassVar[tuple[str, ...]] = ("out",)

    out: Path = field(metadata={"group": "output"})
    """The --out of the run."""
    every: float = field(default=1.0, metadata={"group": "output"})
    """Seconds between two updates."""
    once: bool = field(default=False, metadata={"group": "output"})
    """Print the present state once."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.every <= 3600:
            raise ValueError(f"--every is {self.every}, must be in 0.1 .. 3600")
