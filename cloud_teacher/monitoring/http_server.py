"""HTTP server for monitoring: /metrics for Prometheus, /healthz and /livez for health checks.

Runs on its own threads, so that a scrape never delays the event loop that writes logits. It closes connections beyond a maximum
number, and those whose request takes longer than a timeout. It has no TLS; decision 023 defines who may reach it.
"""

import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

from cloud_teacher.monitoring.liveness import Liveness

_MAX_REQUESTS = 32  # in flight at the same time
_REQUEST_TIMEOUT_S = 5.0  # for the whole request, or a client that sends a byte now and then would hold a thread for hours

logger = logging.getLogger(__name__)

App = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


@contextmanager
def metrics_served(host: str, port: int, registry: CollectorRegistry, liveness: Liveness) -> Iterator[int]:
    """Serve the pages on `host`:`port` during the block. Yields the bound port. Raises OSError if the port cannot be bound.

    Reads `liveness` from other threads.
    """
    server = _Server(host, port)
    server.set_app(make_app(registry, liveness))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_app(registry: CollectorRegistry, liveness: Liveness) -> App:
    """Return the WSGI application with the three pages. Every other path is 404.

    /healthz is 200 while the server accepts streams, else 503. /livez is 503 if the event loop hangs, so that the process should
    be restarted; it is 200 otherwise, also during startup and shutdown.
    """
    metrics: App = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path not in ("/healthz", "/livez"):
            return _respond(HTTPStatus.NOT_FOUND, "there are /metrics, /healthz and /livez", start_response)
        if liveness.is_hung:
            return _respond(HTTPStatus.SERVICE_UNAVAILABLE, "hung", start_response)
        if path == "/livez":
            return _respond(HTTPStatus.OK, "alive", start_response)
        if liveness.is_serving:
            return _respond(HTTPStatus.OK, "serving", start_response)
        return _respond(HTTPStatus.SERVICE_UNAVAILABLE, "starting or stopping", start_response)

    return app


def _respond(status: HTTPStatus, text: str, start_response: StartResponse) -> list[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: scrapes come every few seconds, and untrusted request lines must not reach the log."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self._free = threading.BoundedSemaphore(_MAX_REQUESTS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind as http.server does, but without a reverse DNS lookup, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Accept the request if fewer than the maximum are in flight; else the base class closes the connection."""
        return self._free.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for the request. If the thread cannot start, free its slot and re-raise."""
        try:
            super().process_request(request, client_address)
        except Exception:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one request within the timeout, and free its slot."""
        timer = threading.Timer(_REQUEST_TIMEOUT_S, _shut_down, (request,))
        timer.daemon = True
        try:
            timer.start()
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a failed request, unless the client closed the connection or sent nothing."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("a request for metrics failed")


def _shut_down(connection: socket.socket) -> None:
    """Shut the connection down, which ends the blocked read in the thread of its request."""
    with suppress(OSError):  # the connection is already closed
        connection.shutdown(socket.SHUT_RDWR)
