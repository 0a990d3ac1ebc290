"""What the trainer's process and its comm worker say to each other, over one Unix SOCK_SEQPACKET pair.

One message is one packet: JSON, but for the two that come with every batch, which are a few bytes. The socket keeps message
boundaries, carries the ring's descriptor, and tells each side when the other has died. Times are seconds of CLOCK_MONOTONIC, which
all processes of one Linux machine share.
"""

import contextlib
import json
import math
import socket
import struct
from dataclasses import asdict, dataclass
from typing import Any

_MAX_PACKET = 1 << 16
_WAKE = b"w"
_BATCH = struct.Struct("<cQddddQ")
_BATCH_KIND = b"b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """Trainer -> worker, first: whom to ask and how. `teacher` may be several addresses, with commas between. `max_wait_s` bounds
    the time without any progress, `max_silence_s` that of one wait for a chunk.

    `logits` is online, hybrid or offline, `cache` the folder of the latter two. Offline the data set's digest says whose cache.
    `inputs` is empty, or how public inputs travel with their logits; `num_streams` receive at a time. Of
    secrets it has the names of their files only. `edge_id` and `run_id` go with every call, so that the logs of both ends can be
    laid side by side; without them the teacher sees an address.
    """

    teacher: str
    batch_size: int
    seed: int
    encoding: str
    top_k: int
    window: int
    max_wait_s: float
    log_level: str
    niceness: int
    is_idle: bool
    max_silence_s: float = 30.0
    logits: str = "online"
    cache: str = ""
    dataset_digest: str = ""
    inputs: str = ""
    num_streams: int = 1
    tls_cert: str = ""
    tls_key: str = ""
    tls_ca: str = ""
    token_file: str = ""
    edge_id: str = ""
    run_id: str = ""
    log_format: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Worker -> trainer: what the teacher says of itself. The shape of its inputs is empty where nobody knows it."""

    teacher_digest: str
    dataset_digest: str
    dataset_name: str
    num_samples: int
    num_classes: int
    input_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", tuple(self.input_shape))  # JSON knows lists only


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRing:
    """Trainer -> worker, with the ring's descriptor: receive batches start .. stop-1 into it."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Worker -> trainer: connected and mapped; waits for Go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """Trainer -> worker: the wall-clock runs from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Trainer -> worker: the hold was lifted, or slots were freed; look into the ring's header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReceived:
    """Worker -> trainer: a batch lies complete in the ring. CPU seconds are those of all the worker's threads.

    `busy_s` are the seconds from the batch before to this one in which the worker ran or waited for a core, as far as was looked
    (`thread_times.Busy`); None where the kernel does not tell.
    """

    index: int
    started: float
    ended: float
    cpu_s: float
    busy_s: float | None
    num_bytes: int

    def pack(self) -> bytes:
        """As a packet: JSON would take five times as long, and this one is sent for every batch."""
        busy_s = math.nan if self.busy_s is None else self.busy_s
        return _BATCH.pack(_BATCH_KIND, self.index, self.started, self.ended, self.cpu_s, busy_s, self.num_bytes)

    @classmethod
    def unpack(cls, packet: bytes) -> "BatchReceived":
        """The one that `pack` was asked of."""
        _, index, started, ended, cpu_s, busy_s, num_bytes = _BATCH.unpack(packet)
        known_s = None if math.isnan(busy_s) else busy_s
        return cls(index=index, started=started, ended=ended, cpu_s=cpu_s, busy_s=known_s, num_bytes=num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTrouble:
    """Worker -> trainer: an attempt failed and another follows."""

    time: float
    cause: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Worker -> trainer, last: every batch has been received."""

    cpu_s: float
    num_bytes: int
    num_reconnects: int
    num_refused_chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Worker -> trainer, last: it cannot go on. `is_user_error` tells a wrong request from a failing world."""

    cause: str
    is_user_error: bool


Message = Configure | Described | UseRing | Ready | Go | Wake | BatchReceived | LinkTrouble | Finished | Failed
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Configure, Described, UseRing, Ready, Go, Wake, BatchReceived, LinkTrouble, Finished, Failed)
}


class PeerGone(ConnectionError):
    """The other process has closed its end, or died."""


def send(sock: socket.socket, message: Message, *, fds: tuple[int, ...] = ()) -> None:
    """Send one message, with descriptors if any; PeerGone if nobody is there to hear it."""
    packet = message.pack() if isinstance(message, BatchReceived) else _to_json(message)
    try:
        if fds:
            socket.send_fds(sock, [packet], list(fds))
        else:
            sock.send(packet)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise PeerGone("the other process is gone") from error


def wake(sock: socket.socket) -> None:
    """Send Wake without ever blocking, to a worker that may sleep, work, or have ended.

    A full queue is as good as a message delivered: the worker has wakes to read, and reads the ring's header after each.
    """
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        sock.send(_WAKE, socket.MSG_DONTWAIT)


def await_wake(sock: socket.socket) -> None:
    """Sleep until a wake comes, and take all that have come: one look into the ring answers them together. PeerGone at the end."""
    try:
        packet = sock.recv(_MAX_PACKET)
        while packet == _WAKE:
            packet = sock.recv(_MAX_PACKET, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    except ConnectionResetError:  # it closed with messages of ours unread
        packet = b""
    if not packet:
        raise PeerGone("the other process is gone")
    raise AssertionError(f"a wake was due, and this came: {packet[:80]!r}")


def receive(sock: socket.socket) -> tuple[Message, list[int]]:
    """Wait for one message and the descriptors that came with it; PeerGone at the end, TimeoutError as the socket says.

    Both ends are ours, so a packet that is no message is an AssertionError.
    """
    try:
        packet, fds, _, _ = socket.recv_fds(sock, _MAX_PACKET, 1)
    except ConnectionResetError:
        # The peer closed with wakes unread. The kernel says so once, ahead of the messages that the peer had sent before.
        packet, fds, _, _ = socket.recv_fds(sock, _MAX_PACKET, 1)
    if not packet:
        raise PeerGone("the other process is gone")
    if packet == _WAKE:
        return Wake(), fds
    try:
        return _parse(packet), fds
    except (ValueError, TypeError, KeyError, RecursionError, struct.error):
        raise AssertionError(f"no message of ours came: {packet[:80]!r}") from None


def _parse(packet: bytes) -> Message:
    if packet[:1] == _BATCH_KIND:
        return BatchReceived.unpack(packet)
    kind, fields = json.loads(packet)
    message: Message = _KINDS[kind](**fields)
    return message


def _to_json(message: Message) -> bytes:
    return json.dumps([type(message).__name__, asdict(message)]).encode()
