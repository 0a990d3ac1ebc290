"""The limits of the protocol and the settings of a connection, the same at both ends.

The numbers are part of the protocol (teacher.proto); the channel options are how we want gRPC to carry it. The names of
the options are those of gRPC's include/grpc/impl/channel_arg_names.h, and of its chttp2 transport for ping_timeout_ms.
This module imports nothing, so that the lightest program can read it.
"""

PROTOCOL_VERSION = 1
SERVICE_NAME = "edgekd.v1.Teacher"
MAX_CHUNK_BYTES = 1 << 20
# All public inputs of a chunk, where they travel with the logits.
MAX_INPUTS_BYTES = 2 << 20
# A chunk's payload, inputs, sample ids (10 bytes each at most, MAX_BATCH_SIZE of them) and header fit, with 960 kB to spare.
MAX_MESSAGE_BYTES = 4 << 20
# What an edge sends: two digests, a few numbers, and room for what later versions may add. gRPC reads it before anybody is refused.
MAX_REQUEST_BYTES = 4 << 10
MAX_BATCH_SIZE = 4096
MAX_WINDOW = 1024
MAX_START = 2**31 - 1
# Ten times the largest image data sets; the order of so many takes a GiB at the edge.
MAX_SAMPLES = 2**27
# More streams than a board has cores.
MAX_STRIDE = 64
# A float32 row must fit in one chunk, because a chunk holds whole rows.
MAX_CLASSES = MAX_CHUNK_BYTES // 4
# Far more than anybody needs, and a row of them fits in one chunk.
MAX_TOP_K = 4096

# Metadata of every call: which edge asks, and in which of its runs. Both are what the edge says of itself, and prove nothing.
EDGE_ID_KEY = "edgekd-edge"
RUN_ID_KEY = "edgekd-run"
MAX_ID_LENGTH = 64
ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

_KEEPALIVE_TIME_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MIN_PING_INTERVAL_MS = 10_000


def _shared_options(most_sent: int, most_received: int) -> list[tuple[str, int]]:
    return [
        # Ask a silent peer for a sign of life: a board that lost its link sends no FIN, and TCP notices after minutes.
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        # How long the answer may take ...
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # ... and the timeout that really decides: gRPC has a second one for every ping, 60 s unless set, and a peer
        # that is frozen while its kernel still acknowledges is noticed only by it. Equal, so that there is one answer.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # Between two windows there is no call; a link that dies then should be found out before the next request.
        ("grpc.keepalive_permit_without_calls", 1),
        # A slow teacher sends no data for long. By default gRPC slows down or stops asking after two pings without
        # data; 0 means no limit.
        ("grpc.http2.max_pings_without_data", 0),
        # gRPC would send even loopback traffic through the proxy of http_proxy; an address is meant as it was given.
        ("grpc.enable_http_proxy", 0),
        # We compress nothing. Some versions of gRPC, 1.80 for one, inflate a message before they look at its size, and 1 MB can
        # hold 1 GB. Bit 0 means "not compressed"; a call that says anything else is ended.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # What is larger than the largest chunk, or than any request, is a mistake or an attack.
        ("grpc.max_send_message_length", most_sent),
        ("grpc.max_receive_message_length", most_received),
    ]


def channel_options() -> list[tuple[str, int]]:
    """Options of the student's channel, as `grpc.insecure_channel(target, options=...)` takes them."""
    return _shared_options(MAX_REQUEST_BYTES, MAX_MESSAGE_BYTES)


def server_options() -> list[tuple[str, int]]:
    """Options of the teacher's server, as `grpc.server(..., options=...)` takes them."""
    return [
        *_shared_options(MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES),
        # The default of 5 minutes takes the student's ping every 20 s for an attack: GOAWAY, too_many_pings.
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        # With SO_REUSEPORT a second server binds the same port and silently takes half of the students. Refuse it.
        ("grpc.so_reuseport", 0),
    ]
