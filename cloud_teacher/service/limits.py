"""Every limit of a running server in one value: what it grants, how much of it to whom, and what gRPC refuses before we see it.

Limits that both ends must know as numbers, such as the size of a chunk, are the protocol's (edgekd/wire/limits.py); of those
only the ones
that a server may want lower stand here too.
"""

from dataclasses import dataclass

from edgekd.wire.limits import MAX_BATCH_SIZE, MAX_STRIDE, MAX_WINDOW, server_options


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a server grants. None means that there is no limit of that kind."""

    max_streams: int = 64
    """Streams open at a time, of all edges together."""
    max_streams_per_edge: int | None = None
    """Streams open at a time of one edge; callers.py says who is one."""
    max_window: int = MAX_WINDOW
    """Batches in one request."""
    max_batch_size: int = MAX_BATCH_SIZE
    """Samples in one batch."""
    max_stride: int = MAX_STRIDE
    """Streams among which one edge may divide its batches."""
    max_connection_age_s: float | None = None
    """Seconds, give or take a tenth, after which a connection is to end; its edge makes a new one with the certificates of then."""
    connection_grace_s: float = 30.0
    """Seconds that the streams of such a connection may run on; what is still open then is cut, and asked for again by its edge."""
    max_metadata_bytes: int = 8 << 10
    """Metadata of a call, as HTTP/2 counts it: 32 bytes for each field on top. With a token of 4096 characters it is 5 KiB."""
    max_calls_per_connection: int = 100
    """Calls open at a time on one connection; further ones wait at the edge. RFC 9113 asks for no fewer; an edge has one or two."""
    connection_idle_s: float = 300.0
    """Seconds that a connection may be there without a call; an edge that has something to ask again makes a new one."""
    handshake_timeout_s: float = 20.0
    """Seconds in which a connection must have got through TLS and HTTP/2's first words. gRPC waits for 120 of itself."""

    def __post_init__(self) -> None:
        at_least_one = ("max_streams", "max_streams_per_edge", "max_window", "max_batch_size", "max_stride")
        for name in (*at_least_one, "max_metadata_bytes", "max_calls_per_connection"):
            value = getattr(self, name)
            assert value is None or value >= 1, f"{name} is {value}"
        assert self.max_connection_age_s is None or self.max_connection_age_s > 0

    @property
    def streams_for_one(self) -> int:
        """Streams that one edge can have at best."""
        return min(self.max_streams, self.max_streams_per_edge or self.max_streams)

    def server_options(self) -> list[tuple[str, int]]:
        """Options for `grpc.server`: those that both ends agree on, and these limits as far as gRPC keeps them."""
        options = [
            *server_options(),
            # Between the first of these and the second gRPC refuses by chance, the more often the more there is; so they are equal.
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
