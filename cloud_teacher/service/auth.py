"""Authentication: TLS certificates and a token, both reloaded when their files change.

gRPC requests the certificates at every handshake, so a renewed certificate needs no restart. Open streams keep the old one.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from cloud_teacher.service.callers import caller_of
from edgekd.cli.logs import log_context
from edgekd.cli.tls import TlsFiles, read_token

_HEALTH = "/grpc.health."
_NO_TOKEN = "the call has no token, this server requires one: set --token-file"
_WRONG_TOKEN = "the token is not this server's"

logger = logging.getLogger(__name__)

T = TypeVar("T")


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return reloading credentials of files that are already checked. With `ca`, edges must present a certificate signed by it."""

    def read() -> grpc.ServerCertificateConfiguration:
        files.check()
        return _configuration(files)

    watched = Watched("the certificates", [files.cert, files.key, files.ca], read)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), watched.if_changed, require_client_authentication=files.ca is not None
    )


class Watched(Generic[T]):
    """Calls `read` again when one of the files changes. `content` names what the files hold, for the log.

    If `read` raises ValueError or OSError, the error is logged once and the previous value stays in use.
    """

    def __init__(self, content: str, files: Sequence[Path | None], read: Callable[[], T]) -> None:
        self._content, self._files, self._read = content, files, read
        self._seen = self._signature()

    def if_changed(self) -> T | None:
        """Return the new value if the files changed since the last call and are usable, else None. Never raises."""
        now = self._signature()
        if now == self._seen:
            return None
        self._seen = now
        try:
            fresh = self._read()
        except (ValueError, OSError) as error:
            logger.error("%s changed and cannot be used, keeping the previous: %s", self._content, error)
            return None
        logger.info("%s changed and have been reloaded", self._content)
        return fresh

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [None if path is None else _stat(path) for path in self._files]


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Rejects calls without the token of a file, which is reloaded when it changes. Health checks need no token."""

    def __init__(self, path: Path) -> None:
        self._watched = Watched("the contents of the token file", [path], lambda: read_token(path))
        self._token = read_token(path)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Return the handler of the call, or one that aborts with UNAUTHENTICATED if the token is missing or wrong."""
        if handler_call_details.method.startswith(_HEALTH):
            return await continuation(handler_call_details)
        self._token = self._watched.if_changed() or self._token
        given = dict(handler_call_details.invocation_metadata).get("authorization", "")
        given = given if isinstance(given, str) else ""
        if hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return await continuation(handler_call_details)
        return _rejection(_WRONG_TOKEN if given else _NO_TOKEN)


def _rejection(details: str) -> grpc.RpcMethodHandler:
    async def reject(request: Any, context: grpc.aio.ServicerContext) -> None:
        caller = caller_of(context)
        with log_context(edge=caller.edge, run=caller.run, peer=caller.peer):
            logger.info("%s: rejected, UNAUTHENTICATED: %s", caller, details)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, details)

    return grpc.unary_unary_rpc_method_handler(reject)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    pem = files.read()
    assert pem.cert is not None
    assert pem.key is not None
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca)


def _stat(path: Path) -> tuple[int, int, int] | None:
    """Return modification time, size and inode, which follow symbolic links; None if the file is missing."""
    try:
        status = path.expanduser().stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
