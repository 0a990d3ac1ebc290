"""Who may ask this server, and how it proves who it is: certificates that are read again when their files change, and a token.

gRPC asks for the certificates at every handshake, so a renewed one needs no restart; streams that are open keep the old one.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from edgekd.tls import TlsFiles, read_token

_HEALTH = "/grpc.health."
_NO_TOKEN = "this server wants a token: give --token-file"
_WRONG_TOKEN = "the token is not this server's"

logger = logging.getLogger(__name__)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Of files that have been checked. With `ca` an edge must show a certificate that was signed by it."""
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), CertificateFetcher(files), require_client_authentication=files.ca is not None
    )


class CertificateFetcher:
    """What gRPC calls at every handshake: the certificates if their files have changed, None if they have not, or are no good."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._seen = _signature(files)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Called in threads of gRPC's; must not raise."""
        now = _signature(self._files)
        if now == self._seen:
            return None
        self._seen = now
        try:
            self._files.check()
            fresh = _configuration(self._files)
        except (ValueError, OSError) as error:
            logger.error("the certificates have changed and are no good, so the old ones are kept: %s", error)
            return None
        logger.info("the certificates have changed; connections from now on get the new ones")
        return fresh


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call through if it carries the token of a file, which is read again when it changes. Health checks need none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._token = read_token(path)
        self._seen = _stat(path)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """UNAUTHENTICATED for a call without the token."""
        if handler_call_details.method.startswith(_HEALTH):
            return await continuation(handler_call_details)
        self._look_again()
        given = dict(handler_call_details.invocation_metadata).get("authorization", "")
        given = given if isinstance(given, str) else ""
        if hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return await continuation(handler_call_details)
        return _refusal(_WRONG_TOKEN if given else _NO_TOKEN)

    def _look_again(self) -> None:
        now = _stat(self._path)
        if now == self._seen:
            return
        self._seen = now
        try:
            self._token = read_token(self._path)
            logger.info("the token has changed")
        except ValueError as error:
            logger.error("the token file has changed and is no good, so the old token is kept: %s", error)


def _refusal(details: str) -> grpc.RpcMethodHandler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
        logger.info("%s: refused, UNAUTHENTICATED: %s", context.peer(), details)
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, details)

    return grpc.unary_unary_rpc_method_handler(refuse)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    pem = files.read()
    assert pem.cert is not None
    assert pem.key is not None
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], root_certificates=pem.ca)


def _signature(files: TlsFiles) -> list[tuple[int, int, int] | None]:
    return [None if path is None else _stat(path) for path in (files.cert, files.key, files.ca)]


def _stat(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file, also where a symbolic link is turned to another; None if it is gone."""
    try:
        found = path.expanduser().stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
