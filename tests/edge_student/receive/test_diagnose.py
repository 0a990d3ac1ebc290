"""The diagnosis of a connection: a socket probe finds the cause of UNAVAILABLE, and whether a retry can help."""

import contextlib
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from edge_student.receive.diagnose import Cause, find_cause
from edgekd.cli.tls import TlsFiles

pytestmark = pytest.mark.slow
CERTS = Path(__file__).parents[3] / "deploy" / "certs.sh"
SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0])  # the header of a teacher's first frame, a SETTINGS frame of length 6


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the certificates of one authority."""
    folder = tmp_path_factory.mktemp("certs")
    subprocess.run([CERTS, folder, "localhost,127.0.0.1"], check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
    return folder


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("tls", [False, True], ids=["plaintext", "TLS"])
def test_a_silent_server_is_diagnosed_as_frozen(tls: bool, certs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        cause = find_cause("127.0.0.1", port, TlsFiles(ca=certs / "ca.pem" if tls else None), timeout_s=0.3)
    assert cause is not None
    assert ("it is frozen" in cause.text, cause.is_final) == (True, False)


def test_a_server_of_another_protocol_is_diagnosed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        cause = find_cause("127.0.0.1", other.getsockname()[1], TlsFiles())
    assert cause is not None
    assert ("is not a gRPC server" in cause.text, cause.is_final) == (True, True)


def cause_for(answer: bytes) -> Cause | None:
    """Return the diagnosed cause for a server that sends `answer` on each connection and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the block has ended
                while True:
                    connection, _ = other.accept()
                    with connection:
                        connection.recv(1000)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return find_cause("127.0.0.1", other.getsockname()[1], TlsFiles())


@pytest.mark.parametrize("num_bytes", [0, 1, 3, 4, 8])
def test_a_connection_closed_during_the_first_frame_is_not_final(num_bytes: int) -> None:
    cause = cause_for(SETTINGS[:num_bytes])
    assert cause is not None
    assert ("closed the connection at once" in cause.text, cause.is_final) == (True, False)


class Dripping(socket.socket):
    """Receives one byte at a time, as on a slow link."""

    def recv(self, num_bytes: int, flags: int = 0) -> bytes:
        return super().recv(min(num_bytes, 1), flags)


def test_a_first_frame_received_byte_by_byte_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, remote_end = socket.socketpair()
    dripping = Dripping(fileno=ours.detach())
    monkeypatch.setattr(socket, "create_connection", lambda *_: dripping)
    with dripping, remote_end:
        remote_end.sendall(SETTINGS)
        assert find_cause("127.0.0.1", 1, TlsFiles()) is None


def test_an_unknown_host_name_is_not_final() -> None:
    cause = find_cause("no-such-teacher.invalid", 1, TlsFiles())
    assert cause is not None
    assert ("cannot be resolved" in cause.text, cause.is_final) == (True, False)
