"""Rate limit for logits: a token bucket, computed from the times that the caller passes in.

Imports neither gRPC nor asyncio. The service asks before each chunk how long to wait, and sleeps itself.
"""

# A sleep ends late, by the resolution of the event loop's timer (1 ms) and more on a busy core. Senders may catch up this much
# lost time, or small chunks on a fast link would never reach the rate. Idle time beyond it is not credited.
CATCH_UP_S = 0.010


class RateLimiter:
    """A token bucket for payload bytes, shared by all streams.

    The first chunk may be sent at once, each later one after the previous chunks had their time on the link. Waiting reserves
    nothing, so a stream that is cancelled while it waits delays no other; the caller must let only one stream wait at a time.
    Not thread-safe. `now` is the time in seconds of any monotonic clock.
    """

    def __init__(self, bits_per_second: float) -> None:
        self._bytes_per_second = bits_per_second / 8
        self._free_at = float("-inf")

    def wait(self, now: float) -> float:
        """Return the seconds from `now` until the link is free."""
        return max(0.0, self._free_at - now)

    def take(self, num_bytes: int, now: float) -> None:
        """Record a chunk that is sent `now`, which occupies the link for its size divided by the rate."""
        self._free_at = max(self._free_at, now - CATCH_UP_S) + num_bytes / self._bytes_per_second

    def bytes_in(self, seconds: float) -> int:
        """Return the bytes that the rate allows in that time, at least one."""
        return max(1, int(self._bytes_per_second * seconds))
