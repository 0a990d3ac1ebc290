"""Messages between the trainer's process and its comm worker, over one Unix SOCK_SEQPACKET pair.

Each message is one packet. It is JSON, except for the two messages of every batch, which are short binary packets. The socket keeps
message boundaries, carries the ring's descriptor, and reports the exit of the other process. Times are seconds of CLOCK_MONOTONIC,
which all processes of a Linux machine share.
"""

import contextlib
import json
import math
import socket
import struct
from dataclasses import asdict, dataclass
from typing import Any

_MAX_PACKET = 1 << 17  # with all class names that a teacher may send
_WAKE = b"w"
_BATCH = struct.Struct("<cQddddQ")
_BATCH_KIND = b"b"


@dataclass(frozen=True, slots=True, kw_only=True)
class Configure:
    """Trainer -> worker, first message: the settings of the worker.

    `teacher` is one address, or several separated by commas. `max_wait_s` limits the time without progress, `max_silence_s` one
    wait for a chunk. `logits` is online, hybrid or offline; `cache` is the folder of the latter two. Offline, `dataset_digest`
    selects the cache. `inputs` is the encoding of public inputs that travel with their logits, or empty. `num_streams` is the
    number of concurrent streams. Secrets are given as file names only. `edge_id` and `run_id` are sent with every call, so that
    the logs of both ends can be matched; without them the teacher logs an address.
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
    """Worker -> trainer: the teacher's description. `input_shape` is empty if it is not known.

    `class_names` is empty if the classes have no names, or if there are too many to send; then `classes_digest` identifies them.
    """

    teacher_digest: str
    dataset_digest: str
    dataset_name: str
    num_samples: int
    num_classes: int
    input_shape: tuple[int, ...] = ()
    input_dtype: str = "uint8"
    class_names: tuple[str, ...] = ()
    classes_digest: str = ""

    def __post_init__(self) -> None:
        for name in ("input_shape", "class_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists only


@dataclass(frozen=True, slots=True, kw_only=True)
class UseRing:
    """Trainer -> worker, with the ring's descriptor: receive batches start .. stop-1 into this ring."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Worker -> trainer: the connection and the ring are ready; the worker waits for Go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """Trainer -> worker: start to receive; the wall-clock starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Trainer -> worker: the hold flag was cleared or slots were freed; read the ring's header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReceived:
    """Worker -> trainer: a batch is complete in the ring.

    `cpu_s` is the CPU time of all threads of the worker since the previous batch. `busy_s` is the time since the previous batch in
    which the worker ran or waited for a core (`receive.busy_time.Busy`); None if it is not known.

    `CommWorkerProcess.next_event` converts this message to the event `scheduler.live.comm_port.BatchArrived`. The scheduler loop
    logs the event as the record `task` (comm) in events.jsonl, and passes it to the controller as `TaskDone`.
    """

    index: int
    started: float
    ended: float
    cpu_s: float
    busy_s: float | None
    num_bytes: int

    def pack(self) -> bytes:
        """Return the packet. It is binary, because it is sent for every batch and JSON takes five times as long."""
        busy_s = math.nan if self.busy_s is None else self.busy_s
        return _BATCH.pack(_BATCH_KIND, self.index, self.started, self.ended, self.cpu_s, busy_s, self.num_bytes)

    @classmethod
    def unpack(cls, packet: bytes) -> "BatchReceived":
        """Return the message of a packet made by `pack`."""
        _, index, started, ended, cpu_s, busy_s, num_bytes = _BATCH.unpack(packet)
        known_s = None if math.isnan(busy_s) else busy_s
        return cls(index=index, started=started, ended=ended, cpu_s=cpu_s, busy_s=known_s, num_bytes=num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTrouble:
    """Worker -> trainer: an attempt failed; another one follows."""

    time: float
    cause: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Worker -> trainer, last message: every batch has been received. The counts are sums over all receivers."""

    cpu_s: float
    num_bytes: int
    num_reconnects: int
    num_refused_chunks: int
    num_duplicate_chunks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Worker -> trainer, last message: the worker failed. `is_user_error`: the user's settings are wrong, not the environment."""

    cause: str
    is_user_error: bool


Message = Configure | Described | UseRing | Ready | Go | Wake | BatchReceived | LinkTrouble | Finished | Failed
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Configure, Described, UseRing, Ready, Go, Wake, BatchReceived, LinkTrouble, Finished, Failed)
}


class PeerGone(ConnectionError):
    """The other process has closed its socket or exited."""


def send(sock: socket.socket, message: Message, *, fds: tuple[int, ...] = ()) -> None:
    """Send one message, and descriptors if given. Raises PeerGone if the other process has exited."""
    packet = message.pack() if isinstance(message, BatchReceived) else _to_json(message)
    try:
        if fds:
            socket.send_fds(sock, [packet], list(fds))
        else:
            sock.send(packet)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise PeerGone("the other process has exited") from error


def wake(sock: socket.socket) -> None:
    """Send Wake without blocking, to a worker that may sleep, run, or have exited.

    A full queue needs no further Wake: the worker still has some to read, and reads the ring's header after each.
    """
    with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
        sock.send(_WAKE, socket.MSG_DONTWAIT)


def await_wake(sock: socket.socket) -> None:
    """Wait for a Wake and drain all queued ones: one read of the ring's header serves them all. Raises PeerGone at the end."""
    try:
        packet = sock.recv(_MAX_PACKET)
        while packet == _WAKE:
            packet = sock.recv(_MAX_PACKET, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return
    except ConnectionResetError:  # the peer closed with unread messages
        packet = b""
    if not packet:
        raise PeerGone("the other process has exited")
    raise AssertionError(f"expected a Wake, received {packet[:80]!r}")


def receive(sock: socket.socket) -> tuple[Message, list[int]]:
    """Wait for one message; return it with its descriptors.

    Raises PeerGone at the end, TimeoutError after the socket's timeout, and AssertionError for an invalid packet: both ends are
    EdgeKD.
    """
    try:
        packet, fds, _, _ = socket.recv_fds(sock, _MAX_PACKET, 1)
    except ConnectionResetError:
        # The peer closed with unread wakes. The kernel reports that once, before the messages that the peer had sent.
        packet, fds, _, _ = socket.recv_fds(sock, _MAX_PACKET, 1)
    if not packet:
        raise PeerGone("the other process has exited")
    if packet == _WAKE:
        return Wake(), fds
    try:
        return _parse(packet), fds
    except (ValueError, TypeError, KeyError, RecursionError, struct.error):
        raise AssertionError(f"invalid message: {packet[:80]!r}") from None


def _parse(packet: bytes) -> Message:
    if packet[:1] == _BATCH_KIND:
        return BatchReceived.unpack(packet)
    kind, fields = json.loads(packet)
    message: Message = _KINDS[kind](**fields)
    return message


def _to_json(message: Message) -> bytes:
    return json.dumps([type(message).__name__, asdict(message)]).encode()
