"""One edge's connection to its teachers: the channel, what goes with every call, and what a failure of one really means.

Where several teachers are named, all of the same logits, it is connected to one of them at a time and goes to the next when told.
It knows gRPC, TLS and the schema; it does not know what is received, nor how often to try again.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import grpc
import grpc.experimental

from edge_student.ipc.messages import Configure
from edge_student.receive.description import NotLetInError, RequestRefusedError
from edge_student.receive.diagnose import find_cause
from edge_student.receive.retry import LinkLostError
from edgekd.cli.address import format_address, parse_addresses
from edgekd.cli.logs import plain
from edgekd.cli.tls import Pem, TlsFiles, read_token
from edgekd.v1 import teacher_pb2
from edgekd.wire.limits import EDGE_ID_KEY, RUN_ID_KEY, SERVICE_NAME, channel_options

_FINAL_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}
_ENTRY_CODES = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
# What one hears too while something is being replaced: a token, or a server behind a proxy, whose 404 gRPC calls unimplemented.
_PASSING_CODES = {*_ENTRY_CODES, grpc.StatusCode.UNIMPLEMENTED}
_STREAM_LOGITS = f"/{SERVICE_NAME}/StreamLogits"
_DESCRIBE = f"/{SERVICE_NAME}/Describe"
_MAX_DETAILS = 500

logger = logging.getLogger(__name__)

T = TypeVar("T")
_DESCRIBE_TIMEOUT_S = 10.0


class ChunkStream(Protocol):
    """A running call of StreamLogits, message by message."""

    def __next__(self) -> bytes: ...

    def __iter__(self) -> Iterator[bytes]: ...

    def cancel(self) -> bool:
        """Tell the teacher that nobody listens any more."""


class Connection:
    """A channel to one teacher of `config.teacher`, made when it is first needed. Not thread-safe.

    `turn` is the number of the first teacher that is asked, so that several connections do not all crowd one.
    """

    def __init__(self, config: Configure, turn: int = 0) -> None:
        self._config = config
        # None where all comes from a cache, and nothing here is ever called.
        addresses = parse_addresses(config.teacher, flag="--teacher", lowest_port=1) if config.teacher else []
        turn %= max(len(addresses), 1)
        self._addresses = addresses[turn:] + addresses[:turn]
        cert, key, ca = (Path(file) if file else None for file in (config.tls_cert, config.tls_key, config.tls_ca))
        self._tls = TlsFiles(cert=cert, key=key, ca=ca)
        self._leaves_to: list[tuple[str, int]] | None = None  # where the teacher of now goes when the next one's turn comes
        self._kept_out: list[tuple[str, int]] = []
        self._channel: grpc.Channel | None = None
        self._last_pem: Pem | None = None
        self._last_token: str | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the teacher that is asked now."""
        return format_address(*self._addresses[0])

    def describe(self) -> bytes:
        """What the teacher says of itself, as it came: gRPC would log a traceback for an answer that cannot be parsed.

        Raises grpc.RpcError; waits 10 s at most.
        """
        call = self._open().unary_unary(_DESCRIBE, teacher_pb2.DescribeRequest.SerializeToString)
        answer: bytes = call(teacher_pb2.DescribeRequest(), timeout=_DESCRIBE_TIMEOUT_S, metadata=self._metadata())
        return answer

    def stream(self, request: teacher_pb2.StreamLogitsRequest) -> ChunkStream:
        """Begin to receive a window; what fails, fails when its first chunk is asked for."""
        stream = self._open().unary_stream(_STREAM_LOGITS, teacher_pb2.StreamLogitsRequest.SerializeToString)
        call: ChunkStream = stream(request, metadata=self._metadata())
        return call

    def close(self) -> None:
        """Drop the channel. The next call makes a new one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def go_on(self) -> None:
        """Turn to the next teacher, where there are several."""
        self.close()
        address = self._addresses.pop(0)
        (self._addresses if self._leaves_to is None else self._leaves_to).append(address)
        self._leaves_to = None

    def rule_out(self, *, for_good: bool) -> bool:
        """Have `go_on` leave this teacher, for good or until `reconsider`; False, and nothing is done, if it is the last."""
        if len(self._addresses) < 2:
            return False
        self._leaves_to = [] if for_good else self._kept_out
        return True

    def reconsider(self) -> None:
        """Ask the teachers that were not left for good again, after those that are asked now."""
        self._addresses += self._kept_out
        self._kept_out.clear()

    def translate(self, error: grpc.RpcError, *, look_closer: bool, has_worked: bool) -> Exception:
        """A failed call as LinkLostError or, where another attempt cannot help, RequestRefusedError.

        Who has been let in before is refused because something is being replaced, at one end after the other: that is waited for.
        Who has not may be let in later: NotLetInError.
        With `look_closer` the connection is tried once more by hand where gRPC can only say that the teacher is unavailable.
        """
        cause = f"teacher {self.address}: {error.code().name}: {plain(error.details() or '', _MAX_DETAILS)}"
        if error.code() in _FINAL_CODES and not (has_worked and error.code() in _PASSING_CODES):
            return NotLetInError(cause) if error.code() in _ENTRY_CODES else RequestRefusedError(cause)
        if error.code() is grpc.StatusCode.UNAVAILABLE and look_closer:
            try:
                found = find_cause(*self._addresses[0], self._tls)
            except OSError:  # of our own files, which are being replaced
                found = None
            if found is not None:
                kind = NotLetInError if found.is_final and not has_worked else LinkLostError
                return kind(f"teacher {self.address}: UNAVAILABLE: {found.text}")
        return LinkLostError(cause)

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            # A pool of its own, so that a new channel tries at once instead of inheriting an old one's backoff.
            options: list[tuple[str, int]] = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
            # And streams without threads of their own: this thread, which waits for the chunk anyway, does their work.
            options.append((grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1))
            # All retrying is ours. gRPC would make a connection of its own for a stream that failed before its first message; if
            # that comes to stand while the channel is closed, nobody is left who would close it.
            options.append(("grpc.enable_retries", 0))
            if self._tls:
                pem = self._read_pem()
                credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
                self._channel = grpc.secure_channel(self.address, credentials, options=options)
            else:
                self._channel = grpc.insecure_channel(self.address, options=options)
        return self._channel

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call: who asks, in which run, and the token, if the teacher wants one, read again each time."""
        named = ((EDGE_ID_KEY, self._config.edge_id), (RUN_ID_KEY, self._config.run_id))
        metadata = tuple((key, value) for key, value in named if value)
        if self._config.token_file:
            metadata += (("authorization", f"Bearer {self._read_token(Path(self._config.token_file))}"),)
        return metadata

    def _read_pem(self) -> Pem:
        """As they are now, so that the next connection uses a renewed one; while files are being replaced, as they were."""
        try:
            self._tls.check()
            self._last_pem = self._tls.read()
        except (ValueError, OSError) as error:
            self._last_pem = _last_or_lost(self._last_pem, error)
        return self._last_pem

    def _read_token(self, path: Path) -> str:
        try:
            self._last_token = read_token(path)
        except ValueError as error:
            self._last_token = _last_or_lost(self._last_token, error)
        return self._last_token


def _last_or_lost(last: T | None, error: Exception) -> T:
    """What was good before. Without that LinkLostError: the next attempt may find whole files."""
    if last is None:
        raise LinkLostError(str(error)) from error
    logger.warning("%s; going on with what was there before", error)
    return last
