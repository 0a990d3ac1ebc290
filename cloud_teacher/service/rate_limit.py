"""How fast the logits may leave: a token bucket as arithmetic on a clock that the caller reads.

It knows neither gRPC nor asyncio. The service asks how long to wait before each chunk and does the waiting.
"""

import math
import re

# A sleep ends late, by the grain of the event loop's timer (1 ms) and more on a busy core. Time lost like that may be caught up, or
# small chunks on a fast link would never reach the rate; time lost because nobody wanted to send may not.
CATCH_UP_S = 0.010

_RATE = re.compile(r"(\d+(?:\.\d+)?)(bit|kbit|mbit|gbit)", re.ASCII)
_UNITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


def parse_rate(text: str) -> float:
    """Bits per second of "100mbit", "1.5gbit", "64kbit" or "800bit": powers of ten, as networks count.

    Raises ValueError for anything else, spaces and capitals included, and for a rate below one bit or beyond all floats.
    """
    matched = _RATE.fullmatch(text)
    rate = float(matched[1]) * _UNITS[matched[2]] if matched else 0.0
    if not 1 <= rate < math.inf:
        raise ValueError(f"rate limit {text!r} is not a number and a unit, 1bit or more; write it like 100mbit or 1.5gbit")
    return rate


class RateLimiter:
    """A token bucket for payload bytes, shared by all streams.

    The first chunk goes at once, each later one when those before it have had their time on the link. Who waits has taken nothing
    yet, so that one who gives up costs the others nothing; two that wait at a time must therefore be kept apart. Not thread-safe.
    `now` is the time in seconds of any clock that never goes back.
    """

    def __init__(self, bits_per_second: float) -> None:
        self._bytes_per_second = bits_per_second / 8
        self._free_at = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds to wait, from `now`, until the link is free."""
        return max(0.0, self._free_at - now)

    def take(self, num_bytes: int, now: float) -> None:
        """A chunk is sent `now`: the link is not free before it has had its time."""
        self._free_at = max(self._free_at, now - CATCH_UP_S) + num_bytes / self._bytes_per_second

    def bytes_in(self, seconds: float) -> int:
        """How much the link takes in that time, at least one byte."""
        return max(1, int(self._bytes_per_second * seconds))
