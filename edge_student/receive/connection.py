"""Connection of one edge to its teachers: the gRPC channel, the metadata of every call, and the classification of failed calls.

If several teachers serve the same logits, the connection uses one at a time and switches when the caller asks for the next one.
The module knows gRPC, TLS and the schema. It knows neither the received data nor the retry policy.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import grpc
import grpc.experimental

from edge_student.ipc.messages import Configure
from edge_student.receive.description import AccessDeniedError, RequestRefusedError
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
_ACCESS_CODES = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
# These codes are transient while a token, or a server behind a proxy, is replaced: gRPC maps a proxy's 404 to UNIMPLEMENTED.
_TRANSIENT_CODES = {*_ACCESS_CODES, grpc.StatusCode.UNIMPLEMENTED}
_STREAM_LOGITS = f"/{SERVICE_NAME}/StreamLogits"
_DESCRIBE = f"/{SERVICE_NAME}/Describe"
_MAX_DETAILS = 500

logger = logging.getLogger(__name__)

T = TypeVar("T")
_DESCRIBE_TIMEOUT_S = 10.0


class ChunkStream(Protocol):
    """A running StreamLogits call; yields serialised messages."""

    def __next__(self) -> bytes: ...

    def __iter__(self) -> Iterator[bytes]: ...

    def cancel(self) -> bool:
        """Cancel the call; the teacher ends its stream."""


class Connection:
    """Channel to one teacher of `config.teacher`, opened at the first call. Not thread-safe.

    `first_teacher` is the position of the teacher to use first; different positions spread several connections over the teachers.
    """

    def __init__(self, config: Configure, first_teacher: int = 0) -> None:
        self._config = config
        # Empty if all logits come from a cache; no method is called then.
        addresses = parse_addresses(config.teacher, flag="--teacher", lowest_port=1) if config.teacher else []
        first_teacher %= max(len(addresses), 1)
        self._addresses = addresses[first_teacher:] + addresses[:first_teacher]
        cert, key, ca = (Path(file) if file else None for file in (config.tls_cert, config.tls_key, config.tls_ca))
        self._tls = TlsFiles(cert=cert, key=key, ca=ca)
        # The list that gets the current teacher at the next switch; None for the end of `_addresses`.
        self._moves_to: list[tuple[str, int]] | None = None
        self._excluded: list[tuple[str, int]] = []
        self._channel: grpc.Channel | None = None
        self._last_pem: Pem | None = None
        self._last_token: str | None = None

    @property
    def address(self) -> str:
        """HOST:PORT of the current teacher."""
        return format_address(*self._addresses[0])

    def describe(self) -> bytes:
        """Call Describe and return the serialised answer. Raises grpc.RpcError; the timeout is 10 s.

        The caller parses the answer, because gRPC would log a traceback for one that cannot be parsed.
        """
        call = self._open().unary_unary(_DESCRIBE, teacher_pb2.DescribeRequest.SerializeToString)
        answer: bytes = call(teacher_pb2.DescribeRequest(), timeout=_DESCRIBE_TIMEOUT_S, metadata=self._metadata())
        return answer

    def stream(self, request: teacher_pb2.StreamLogitsRequest) -> ChunkStream:
        """Start to receive a window. Errors are raised when its first chunk is read."""
        stream = self._open().unary_stream(_STREAM_LOGITS, teacher_pb2.StreamLogitsRequest.SerializeToString)
        call: ChunkStream = stream(request, metadata=self._metadata())
        return call

    def close(self) -> None:
        """Close the channel. The next call opens a new one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def next_teacher(self) -> None:
        """Switch to the next teacher, if there are several."""
        self.close()
        address = self._addresses.pop(0)
        (self._addresses if self._moves_to is None else self._moves_to).append(address)
        self._moves_to = None

    def exclude(self, *, for_good: bool) -> bool:
        """Exclude the current teacher from the next `next_teacher` on, for good or until `readmit`.

        Returns False, and changes nothing, if it is the last teacher.
        """
        if len(self._addresses) < 2:
            return False
        self._moves_to = [] if for_good else self._excluded
        return True

    def readmit(self) -> None:
        """Append the temporarily excluded teachers to the queue of teachers."""
        self._addresses += self._excluded
        self._excluded.clear()

    def translate(self, error: grpc.RpcError, *, diagnose: bool, has_worked: bool) -> Exception:
        """Return the error of a failed call: LinkLostError, or RequestRefusedError if a retry cannot help.

        If the teacher has accepted this edge before (`has_worked`), a denied access is transient: certificates or tokens are being
        replaced at one end after the other. Otherwise it is an AccessDeniedError, which may change later.
        With `diagnose` a socket probe looks for the cause of UNAVAILABLE, for which gRPC gives no reason.
        """
        cause = f"teacher {self.address}: {error.code().name}: {plain(error.details() or '', _MAX_DETAILS)}"
        if error.code() in _FINAL_CODES and not (has_worked and error.code() in _TRANSIENT_CODES):
            return AccessDeniedError(cause) if error.code() in _ACCESS_CODES else RequestRefusedError(cause)
        if error.code() is grpc.StatusCode.UNAVAILABLE and diagnose:
            try:
                found = find_cause(*self._addresses[0], self._tls)
            except OSError:  # from this edge's TLS files, while they are replaced
                found = None
            if found is not None:
                kind = AccessDeniedError if found.is_final and not has_worked else LinkLostError
                return kind(f"teacher {self.address}: UNAVAILABLE: {found.text}")
        return LinkLostError(cause)

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            # A local subchannel pool: a new channel connects at once and does not inherit the backoff of an old one.
            options: list[tuple[str, int]] = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
            # Streams without extra threads: the thread that waits for the chunk does their work.
            options.append((grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1))
            # RetryPolicy does all retries. gRPC would open another connection for a stream that failed before its first message. A
            # connection that completes while the channel is being closed would never be closed.
            options.append(("grpc.enable_retries", 0))
            if self._tls:
                pem = self._read_pem()
                credentials = grpc.ssl_channel_credentials(pem.ca, pem.key, pem.cert)
                self._channel = grpc.secure_channel(self.address, credentials, options=options)
            else:
                self._channel = grpc.insecure_channel(self.address, options=options)
        return self._channel

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call: edge id, run id, and the token, which is read from its file each time."""
        named = ((EDGE_ID_KEY, self._config.edge_id), (RUN_ID_KEY, self._config.run_id))
        metadata = tuple((key, value) for key, value in named if value)
        if self._config.token_file:
            metadata += (("authorization", f"Bearer {self._read_token(Path(self._config.token_file))}"),)
        return metadata

    def _read_pem(self) -> Pem:
        """Read the TLS files again, so that the next connection uses renewed ones; keep the last valid ones on an error."""
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
    """Return the last valid value. Raises LinkLostError if there is none: the next attempt may find valid files."""
    if last is None:
        raise LinkLostError(str(error)) from error
    logger.warning("%s; using the last valid version", error)
    return last
