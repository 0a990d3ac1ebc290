"""Who may ask this server, and how it proves who it is: certificates that are read again when their files change, and a token.

gRPC asks for the certificates at every handshake, so a renewed one needs no restart; streams that are open keep the old one.
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
_NO_TOKEN = "this server wants a token: give --token-file"
_WRONG_TOKEN = "the token is not this server's"

logger = logging.getLogger(__name__)

T = TypeVar("T")


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Of files that have been checked. With `ca` an edge must show a certificate that was signed by it."""

    def read() -> grpc.ServerCertificateConfiguration:
        files.check()
        return _configuration(files)

    watched = Watched("the certificates", [files.cert, files.key, files.ca], read)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), watched.if_changed, require_client_authentication=files.ca is not None
    )


class Watched(Generic[T]):
    """What `read` makes of files, again whenever they change. `what` they hold is for the log.

    A change for the worse, at which `read` raises ValueError or OSError, is said once and otherwise ignored.
    """

    def __init__(self, what: str, files: Sequence[Path | None], read: Callable[[], T]) -> None:
        self._what, self._files, self._read = what, files, read
        self._seen = self._signature()

    def if_changed(self) -> T | None:
        """What they hold if they have changed since the last time; None if they have not, or are no good. Does not raise."""
        now = self._signature()
        if now == self._seen:
            return None
        self._seen = now
        try:
            fresh = self._read()
        except (ValueError, OSError) as error:
            logger.error("%s changed and cannot be used, so the old is kept: %s", self._what, error)
            return None
        logger.info("%s changed; from now on the new is used", self._what)
        return fresh

    def _signature(self) -> list[tuple[int, int, int] | None]:
        return [None if path is None else _stat(path) for path in self._files]


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call through if it carries the token of a file, which is read again when it changes. Health checks need none."""

    def __init__(self, path: Path) -> None:
        self._watched = Watched("the token", [path], lambda: read_token(path))
        self._token = read_token(path)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """UNAUTHENTICATED for a call without the token."""
        if handler_call_details.method.startswith(_HEALTH):
            return await continuation(handler_call_details)
        self._token = self._watched.if_changed() or self._token
        given = dict(handler_call_details.invocation_metadata).get("authorization", "")
        given = given if isinstance(given, str) else ""
        if hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return await continuation(handler_call_details)
        return _refusal(_WRONG_TOKEN if given else _NO_TOKEN)


def _refusal(details: str) -> grpc.RpcMethodHandler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
        caller = caller_of(context)
        with log_context(edge=caller.edge, run=caller.run, peer=caller.peer):
            logger.info("%s: refused, UNAUTHENTICATED: %s", caller, details)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, details)

    return grpc.unary_unary_rpc_method_handler(refuse)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    pem = files.read()
    assert pem.cert is not None
    assert pem.key is not None
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca)


def _stat(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file, also where a symbolic link is turned to another; None if it is gone."""
    try:
        found = path.expanduser().stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
