"""Values that a test passes to the proxy, and the counts that the proxy returns."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """Conditions for every byte that passes."""

    latency_s: float = 0.0
    """In each direction."""
    slice_bytes: int | None = None
    """Most bytes in one segment, in each direction."""
    bytes_per_s: float | None = None
    """Towards the edge, all connections together."""


CALM = Weather()


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """End the connection that carries the `after`-th byte towards the edge, counted over all connections since the last break.

    `reset` sends RST, `cut` sends FIN, both to both ends. With 0 it is the next connection, as soon as it is accepted.
    """

    after: int
    how: Literal["reset", "cut"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Counts of events so far."""

    connections: int = 0
    resets: int = 0
    cuts: int = 0
    bytes_taken: int = 0
    """Bytes that the teacher has sent."""
    bytes_given: int = 0
    """Bytes that went on to the edge."""
    pieces_given: int = 0
    """In how many writes."""
    bytes_swallowed: int = 0
    """Of both directions."""
