"""A small HTTP server beside the gRPC one: /metrics for Prometheus, /healthz and /livez for who asks whether this teacher serves.

On threads of its own, so that the event loop which writes logits never waits for a scrape. It answers some at a time and hangs up
on more, and on whoever takes seconds to say what he wants. It knows no gRPC, and no TLS: decision 023 says who may reach it.
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

_MOST_AT_A_TIME = 32
_MOST_S = 5.0  # for a whole request: who sends a byte now and then would keep his place for hours

logger = logging.getLogger(__name__)

App = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


@contextmanager
def metrics_served(host: str, port: int, registry: CollectorRegistry, liveness: Liveness) -> Iterator[int]:
    """Answer on `host`:`port` while the block runs; yields the port, which port 0 leaves open. Raises OSError if it cannot be had.

    `liveness` is asked on another thread.
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
    """The pages as a WSGI application; anything else is 404.

    /healthz is 200 while edges are served. /livez is 200 unless the event loop hangs, also while it starts and stops: what says 503
    there should be restarted.
    """
    metrics: App = make_wsgi_app(registry)

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path not in ("/healthz", "/livez"):
            return _say(HTTPStatus.NOT_FOUND, "there are /metrics, /healthz and /livez", start_response)
        if liveness.is_hung:
            return _say(HTTPStatus.SERVICE_UNAVAILABLE, "hung", start_response)
        if path == "/livez":
            return _say(HTTPStatus.OK, "alive", start_response)
        if liveness.is_serving:
            return _say(HTTPStatus.OK, "serving", start_response)
        return _say(HTTPStatus.SERVICE_UNAVAILABLE, "starting or stopping", start_response)

    return app


def _say(status: HTTPStatus, text: str, start_response: StartResponse) -> list[bytes]:
    start_response(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a scrape every few seconds is no news, and what strangers ask for belongs in no log."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self._places = threading.BoundedSemaphore(_MOST_AT_A_TIME)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """As http.server does, but without asking the name service who we are, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is a place left; without one the connection is closed."""
        return self._places.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; where none can be had, the place is given back."""
        try:
            super().process_request(request, client_address)
        except Exception:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one request, and give its place back, in time."""
        deadline = threading.Timer(_MOST_S, _hang_up, (request,))
        deadline.daemon = True
        try:
            deadline.start()
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hung up in the middle, or said nothing, is no news."""
        if not isinstance(sys.exception(), OSError):
            logger.exception("a request for metrics failed")


def _hang_up(connection: socket.socket) -> None:
    """Whoever waits in another thread for what comes from there waits no longer."""
    with suppress(OSError):  # it has ended meanwhile
        connection.shutdown(socket.SHUT_RDWR)
