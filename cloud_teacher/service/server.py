"""The gRPC server around the service: port, health service, startup and shutdown.

The server listens only when everything is loaded, so that an edge that connects gets logits. Shutdown updates the health service,
lets streams continue for a grace period, and then ends them with a status that makes edges retry.
"""

import asyncio
import errno
import os
import socket
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from cloud_teacher.service.auth import TokenInterceptor
from cloud_teacher.service.call_counter import CallCounter
from cloud_teacher.service.service import TeacherService
from edgekd.cli.address import format_address
from edgekd.wire.limits import SERVICE_NAME

# On shutdown, streams continue for _GRACE_S. Then they end with a status, within _ABORT_S, or gRPC cancels them.
_GRACE_S = 1.5
_ABORT_S = 0.5


class TeacherServer:
    """One service on one port. Create, start and stop it on one event loop."""

    def __init__(self, service: TeacherService, *, token_file: Path | None = None) -> None:
        """Apply the limits of `service`. The caller closes its store after `stop`."""
        self.service = service
        self._health = health.aio.HealthServicer()
        interceptors: list[grpc.aio.ServerInterceptor] = [CallCounter(service.metrics.request_ended)]
        if token_file is not None:
            interceptors.append(TokenInterceptor(token_file))
        self._server = grpc.aio.server(options=service.limits.server_options(), interceptors=interceptors)
        self._server.add_generic_rpc_handlers((self.service.handlers(),))
        add_HealthServicer_to_server(self._health, self._server)

    async def start(self, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on `host`:`port`, with TLS if there are credentials, and return the bound port.

        Raises OSError naming host and port if they cannot be bound.
        """
        address = format_address(host, port)
        try:
            bound: int = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError:
            check_port(host, port)
            raise OSError(f"cannot listen on {address}") from None
        await self._health.set(SERVICE_NAME, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return bound

    async def stop(self) -> None:
        """Reject new calls, let streams continue for the grace period, then end them."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._server.stop(_GRACE_S + _ABORT_S))
        await asyncio.wait([stopping], timeout=_GRACE_S)
        self.service.begin_shutdown()
        await stopping
        self.service.close()


def check_port(host: str, port: int) -> None:
    """Raise OSError with cause and remedy if a server cannot listen on `host`:`port` now.

    gRPC reports no cause of a failed bind. This check gets it from the kernel, before a model is loaded.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise OSError(f"cannot listen on {host!r}: {error.strerror}; name an address of this machine") from None
    with socket.socket(family, kind, protocol) as probe:
        # As gRPC does, or a port with connections in TIME_WAIT would count as in use.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OSError(f"port {port} on {host} is in use; stop the other server, or listen on another port") from None
            raise OSError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None
