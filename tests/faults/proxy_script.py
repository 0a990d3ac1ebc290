"""What a test tells the proxy to do, and what the proxy tells of what it did: values."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """What every byte meets that passes now."""

    latency_s: float = 0.0
    """In each direction."""
    slice_bytes: int | None = None
    """Most bytes in one segment, in each direction."""
    bytes_per_s: float | None = None
    """Towards the edge, all connections together."""


CALM = Weather()


@dataclass(frozen=True, kw_only=True, slots=True)
class Break:
    """End the connection over which the `after`-th byte towards the edge comes, counted over all of them from the last break on.

    `reset` says RST, `cut` says FIN; both at both ends. With 0 it is the next connection, as soon as it is accepted.
    """

    after: int
    how: Literal["reset", "cut"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What has happened so far."""

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
