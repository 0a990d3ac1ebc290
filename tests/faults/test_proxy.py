"""The proxy follows its script and counts its actions. The other tests of faults rely on this."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from proxy import Proxy
from proxy_script import Break, Weather


class Echo:
    """A server that returns the received data."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        clients = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                clients.append(threading.Thread(target=self._answer, args=(connection,)))
                clients[-1].start()
        for client in clients:
            client.join()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=30)


def read(connection: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        part = connection.recv(num_bytes - len(data))
        assert part, f"the connection ended after {len(data)} of {num_bytes} bytes"
        data += part
    return data


def read_to_the_end(connection: socket.socket) -> int:
    """Return the bytes until FIN. Raises ConnectionResetError for an RST."""
    num_bytes = 0
    while data := connection.recv(65536):
        num_bytes += len(data)
    return num_bytes


def send_and_read_to_the_end(proxy: Proxy, num_bytes: int) -> int:
    with connect(proxy) as connection:
        connection.sendall(bytes(num_bytes))
        return read_to_the_end(connection)


def test_in_calm_weather_everything_passes(echo: Echo) -> None:
    sent = bytes(range(256)) * 1000
    with Proxy(echo.port) as proxy, connect(proxy) as connection:
        writing = threading.Thread(target=connection.sendall, args=(sent,))
        writing.start()
        assert read(connection, len(sent)) == sent
        writing.join()
        counts = proxy.wait_until(lambda counts: counts.bytes_given == len(sent))
    assert (counts.connections, counts.bytes_taken, counts.resets, counts.cuts) == (1, len(sent), 0, 0)


def test_latency_is_added_in_each_direction(echo: Echo) -> None:
    with Proxy(echo.port, weather=Weather(latency_s=0.05)) as proxy, connect(proxy) as connection:
        began = time.monotonic()
        connection.sendall(b"ping")
        assert read(connection, 4) == b"ping"
        assert time.monotonic() - began >= 0.1


def test_slices_of_one_byte_arrive_whole(echo: Echo) -> None:
    sent = bytes(range(250))
    with Proxy(echo.port, weather=Weather(slice_bytes=1)) as proxy, connect(proxy) as connection:
        connection.sendall(sent)
        assert read(connection, len(sent)) == sent
        proxy.wait_until(lambda counts: counts.pieces_given == len(sent) == counts.bytes_given)


def test_bandwidth_is_limited_until_the_weather_changes(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connect(proxy) as connection:
        with proxy.weather(Weather(bytes_per_s=20_000)):
            began = time.monotonic()
            connection.sendall(bytes(4000))
            read(connection, 4000)
            assert time.monotonic() - began >= 0.2
        connection.sendall(bytes(4000))
        read(connection, 4000)


@pytest.mark.parametrize("after", [0, 1, 5000])
def test_a_reset_comes_after_the_given_number_of_bytes(after: int, echo: Echo) -> None:
    with Proxy(echo.port, breaks=[Break(after=after, how="reset")]) as proxy:
        with pytest.raises(ConnectionResetError):
            send_and_read_to_the_end(proxy, 10_000)
        assert proxy.wait_until(lambda counts: counts.resets == 1).bytes_given == after
        with connect(proxy) as connection:
            connection.sendall(b"again")
            assert read(connection, 5) == b"again"
        assert proxy.counts.connections == 2


def test_a_cut_comes_after_the_given_number_of_bytes_with_fin(echo: Echo) -> None:
    with Proxy(echo.port, breaks=[Break(after=5000, how="cut"), Break(after=7, how="cut")]) as proxy:
        for num_bytes in (5000, 7):
            assert send_and_read_to_the_end(proxy, 5000) == num_bytes
        assert (proxy.counts.cuts, proxy.counts.resets) == (2, 0)


def test_breaks_that_are_added_later_count_from_then(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connect(proxy) as connection:
        connection.sendall(bytes(100))
        read(connection, 100)
        proxy.break_next(Break(after=10, how="cut"))
        connection.sendall(bytes(100))
        assert read_to_the_end(connection) == 10


def test_a_paused_link_loses_nothing(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connect(proxy) as connection:
        proxy.pause()
        connection.sendall(b"wait")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(4)
        connection.settimeout(30)
        proxy.resume()
        assert read(connection, 4) == b"wait"


def test_a_black_hole_accepts_everything_and_a_connection_never_leaves_it(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connect(proxy) as lost:
        lost.sendall(b"a")
        read(lost, 1)
        proxy.swallow()
        with connect(proxy) as another:
            another.sendall(b"abc")
            lost.sendall(b"defg")
            proxy.wait_until(lambda counts: counts.bytes_swallowed == 7)
        proxy.surface()
        lost.sendall(b"h")
        proxy.wait_until(lambda counts: counts.bytes_swallowed == 8)
        with connect(proxy) as found:
            found.sendall(b"b")
            assert read(found, 1) == b"b"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            lost.recv(1)


def test_down_refuses_and_up_is_the_same_port(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, connect(proxy) as connection:
        connection.sendall(b"a")
        read(connection, 1)
        proxy.go_down()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.come_up()
        with connect(proxy) as again:
            again.sendall(b"b")
            assert read(again, 1) == b"b"
        assert proxy.counts.resets == 1


def test_a_reader_that_stops_is_felt_by_the_writer(echo: Echo) -> None:
    """Otherwise the proxy would hide how far a teacher runs ahead."""
    with Proxy(echo.port) as proxy, connect(proxy) as connection:
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.sendall(bytes(1 << 26))


def test_without_a_teacher_behind_it_a_connection_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as vacated:
        port = vacated.getsockname()[1]
    with Proxy(port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as connection:
        connection.recv(1)


def test_waiting_for_a_missing_event_raises_with_the_counts(echo: Echo) -> None:
    with Proxy(echo.port) as proxy, pytest.raises(AssertionError, match="never happened: Counts"):
        proxy.wait_until(lambda counts: counts.resets == 1, timeout_s=0.05)
