"""Limits of the protocol, and gRPC channel options, shared by both ends.

The numbers are part of the protocol (teacher.proto). The option names are those of gRPC's include/grpc/impl/channel_arg_names.h,
and of its chttp2 transport for ping_timeout_ms. This module imports nothing, so that every program can load it cheaply.
"""

PROTOCOL_VERSION = 1
SERVICE_NAME = "edgekd.v1.Teacher"
MAX_CHUNK_BYTES = 1 << 20
# All public inputs of one chunk, if inputs travel with the logits.
MAX_INPUTS_BYTES = 2 << 20
# Payload, inputs, header and MAX_BATCH_SIZE sample ids of at most 10 bytes fit, with 960 kB to spare.
MAX_MESSAGE_BYTES = 4 << 20
# A request has two digests and a few numbers; the rest is reserved for later versions. gRPC reads it before authentication.
MAX_REQUEST_BYTES = 4 << 10
MAX_BATCH_SIZE = 4096
MAX_WINDOW = 1024
MAX_START = 2**31 - 1
# Ten times the largest image data sets. The order of 2^27 samples takes 1 GiB at the edge.
MAX_SAMPLES = 2**27
# Above the number of cores of any edge board.
MAX_STRIDE = 64
# A float32 row must fit in one chunk, because a chunk holds whole rows.
MAX_CLASSES = MAX_CHUNK_BYTES // 4
# Class names in the answer to Describe, in bytes of UTF-8. Teachers with more names send their digest only.
MAX_NAMES_BYTES = 24 << 10
MAX_NAMES = 2000
# Dimensions of a public input.
MAX_DIMENSIONS = 4
# Far above practical values; a row of 4096 classes fits in one chunk.
MAX_TOP_K = 4096

# Metadata of every call: edge id and run id. Both are the edge's own claims, not authenticated.
EDGE_ID_KEY = "edgekd-edge"
RUN_ID_KEY = "edgekd-run"
MAX_ID_LENGTH = 64
ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

_KEEPALIVE_TIME_MS = 20_000
_KEEPALIVE_TIMEOUT_MS = 10_000
_MIN_PING_INTERVAL_MS = 10_000


def _shared_options(max_sent: int, max_received: int) -> list[tuple[str, int]]:
    return [
        # Ping a silent peer: a board that lost its link sends no FIN, and TCP detects that after minutes.
        ("grpc.keepalive_time_ms", _KEEPALIVE_TIME_MS),
        # The timeout of a ping's answer.
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # gRPC has a second timeout for every ping, by default 60 s. Only this one detects a frozen peer whose kernel still
        # acknowledges packets. Both timeouts are equal, so that there is one limit.
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        # There is no call between two windows. A link that breaks then must be detected before the next request.
        ("grpc.keepalive_permit_without_calls", 1),
        # A slow teacher sends no data for a long time. By default gRPC slows down or stops after two pings without data; 0 means
        # no limit.
        ("grpc.http2.max_pings_without_data", 0),
        # Connect to the given address: by default gRPC sends even loopback traffic through the proxy of http_proxy.
        ("grpc.enable_http_proxy", 0),
        # Compression is disabled. Some gRPC versions, for example 1.80, inflate a message before they check its size, and 1 MB can
        # inflate to 1 GB. Bit 0 means "not compressed"; gRPC ends a call with any other algorithm.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # A message above the size of the largest chunk, or of any request, is a bug or an attack.
        ("grpc.max_send_message_length", max_sent),
        ("grpc.max_receive_message_length", max_received),
    ]


def channel_options() -> list[tuple[str, int]]:
    """Return the options of the student's channel, for `grpc.insecure_channel(target, options=...)`."""
    return _shared_options(MAX_REQUEST_BYTES, MAX_MESSAGE_BYTES)


def server_options() -> list[tuple[str, int]]:
    """Return the options of the teacher's server, for `grpc.server(..., options=...)`."""
    return [
        *_shared_options(MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES),
        # With the default of 5 minutes the server treats a ping every 20 s as an attack: GOAWAY, too_many_pings.
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
        # With SO_REUSEPORT a second server could bind the same port and silently take half of the students.
        ("grpc.so_reuseport", 0),
    ]
