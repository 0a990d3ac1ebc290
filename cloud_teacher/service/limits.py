"""All limits of a running server in one value: limits of requests, of streams per edge, and of connections in gRPC.

Limits that both ends must know are in edgekd/wire/limits.py. This class also holds the ones that a server may lower.
"""

from dataclasses import dataclass

from edgekd.wire.limits import MAX_BATCH_SIZE, MAX_STRIDE, MAX_WINDOW, server_options


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one server. None means no limit of that kind."""

    max_streams: int = 64
    """Open streams of all edges together."""
    max_streams_per_edge: int | None = None
    """Open streams of one edge; callers.py defines how edges are identified."""
    max_window: int = MAX_WINDOW
    """Batches in one request."""
    max_batch_size: int = MAX_BATCH_SIZE
    """Samples in one batch."""
    max_stride: int = MAX_STRIDE
    """Largest stride of a request, which is the number of streams among which one edge may divide its batches."""
    max_connection_age_s: float | None = None
    """Seconds, plus or minus 10 %, after which a connection ends; its edge reconnects and authenticates again."""
    connection_grace_s: float = 30.0
    """Seconds for which the streams of such a connection may continue; then they are cancelled, and the edge retries."""
    max_metadata_bytes: int = 8 << 10
    """Metadata of a call in bytes, as HTTP/2 counts it, with 32 more for each field. A token of 4096 characters makes 5 KiB."""
    max_calls_per_connection: int = 100
    """Open calls on one connection; more wait at the edge. RFC 9113 recommends at least 100; an edge has one or two."""
    connection_idle_s: float = 300.0
    """Seconds after which a connection without a call is closed; an edge reconnects when it needs to."""
    handshake_timeout_s: float = 20.0
    """Timeout in seconds for the TLS and HTTP/2 handshakes of a connection. gRPC's default is 120."""

    def __post_init__(self) -> None:
        at_least_one = ("max_streams", "max_streams_per_edge", "max_window", "max_batch_size", "max_stride")
        for name in (*at_least_one, "max_metadata_bytes", "max_calls_per_connection"):
            value = getattr(self, name)
            assert value is None or value >= 1, f"{name} is {value}"
        assert self.max_connection_age_s is None or self.max_connection_age_s > 0

    @property
    def streams_for_one(self) -> int:
        """Streams that one edge may open."""
        return min(self.max_streams, self.max_streams_per_edge or self.max_streams)

    def server_options(self) -> list[tuple[str, int]]:
        """Return options for `grpc.server`: those that both ends share, and those of these limits that gRPC enforces."""
        options = [
            *server_options(),
            # Between the soft and the hard limit gRPC rejects calls at random, more often for more metadata. So both are equal.
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
            ("grpc.max_concurrent_streams", self.max_calls_per_connection),
            ("grpc.max_connection_idle_ms", _ms(self.connection_idle_s)),
            ("grpc.server_handshake_timeout_ms", _ms(self.handshake_timeout_s)),
        ]
        if self.max_connection_age_s is not None:
            options += [
                ("grpc.max_connection_age_ms", _ms(self.max_connection_age_s)),
                ("grpc.max_connection_age_grace_ms", _ms(self.connection_grace_s)),
            ]
        return options


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
