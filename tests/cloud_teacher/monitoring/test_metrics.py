"""Metrics of a teacher, the HTTP pages that publish them, and the access to these pages."""

import asyncio
import contextlib
import http.client
import importlib.metadata
import itertools
import socket
from collections.abc import Callable, Iterator
from socketserver import ThreadingMixIn
from typing import Any

import grpc
import numpy as np
import pytest
from processes import wait_until
from prometheus_client.parser import text_string_to_metric_families

from cloud_teacher.monitoring import http_server
from cloud_teacher.monitoring.http_server import metrics_served
from cloud_teacher.monitoring.liveness import Liveness
from cloud_teacher.monitoring.metrics import Metrics
from cloud_teacher.settings import ServeConfig
from edgekd.v1 import teacher_pb2
from edgekd.wire.limits import EDGE_ID_KEY


def value(harness: Any, name: str, **labels: str) -> float | None:
    return harness.metrics.registry.get_sample_value(f"edgekd_{name}", labels)


def test_a_stream_and_its_cost_are_counted(harness: Any) -> None:
    chunks = harness.stream(count=6)
    wait_until(lambda: value(harness, "requests_total", method="StreamLogits", code="OK") == 1)
    assert value(harness, "streams_started_total") == 1
    assert value(harness, "streams_open") == 0
    assert value(harness, "chunks_sent_total") == 6
    assert value(harness, "rows_sent_total") == 48
    assert value(harness, "payload_sent_bytes_total") == sum(len(chunk.payload) for chunk in chunks)
    assert value(harness, "rows_computed_total") == harness.store.num_ready == value(harness, "store_rows_ready")
    assert (value(harness, "computing_seconds_total") or 0) > 0
    assert value(harness, "store_rows") == 50
    assert (value(harness, "group_write_seconds_count") or 0) >= 1
    info = {"version": importlib.metadata.version("edgekd"), "teacher": "ab" * 8, "dataset": "tiny:public"}
    assert value(harness, "teacher_info", **info) == 1


def test_open_streams_are_a_gauge_and_a_stream_that_is_broken_off_counts_as_far_as_it_came(harness: Any) -> None:
    harness.store.rows(np.arange(50))
    stream = harness.stub.StreamLogits(harness.request(count=1024, batch_size=4096), timeout=30)
    next(stream)
    assert value(harness, "streams_open") == 1
    stream.cancel()
    wait_until(lambda: value(harness, "requests_total", method="StreamLogits", code="CANCELLED") == 1)
    assert value(harness, "streams_open") == 0
    assert 1 <= (value(harness, "chunks_sent_total") or 0) < 1024


@pytest.mark.parametrize(
    ("method", "message", "label", "code"),
    [
        ("/edgekd.v1.Teacher/StreamLogits", b"\xff", "StreamLogits", "INVALID_ARGUMENT"),
        ("/edgekd.v1.Teacher/Describe", b"", "Describe", "OK"),
        ("/edgekd.v1.Teacher/Steal", b"", "other", "UNIMPLEMENTED"),
        ("/no.such.Service/x" + "y" * 1000, b"", "other", "UNIMPLEMENTED"),
    ],
)
def test_calls_are_counted_by_method_and_status(harness: Any, method: str, message: bytes, label: str, code: str) -> None:
    for _ in range(2):
        with contextlib.suppress(grpc.RpcError):
            list(harness.channel.unary_stream(method)(message, timeout=10))
    wait_until(lambda: value(harness, "requests_total", method=label, code=code) == 2)
    (requests,) = [family for family in harness.metrics.registry.collect() if family.name == "edgekd_requests"]
    assert len([sample for sample in requests.samples if sample.name.endswith("_total")]) == 1


def test_refusals_and_failures_are_counted_by_their_status(harness: Any) -> None:
    harness.refusal(count=0)
    harness.refusal(teacher_digest="ee" * 32)
    harness.teacher.failure = RuntimeError("secret")
    harness.refusal()
    for code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION", "INTERNAL"):
        wait_until(lambda code=code: value(harness, "requests_total", method="StreamLogits", code=code) == 1)
    assert value(harness, "streams_started_total") == 1


def test_no_edge_run_or_address_is_in_the_metrics_however_many_there_are(harness: Any) -> None:
    def num_samples() -> int:
        return sum(len(family.samples) for family in harness.metrics.registry.collect())

    harness.stream()
    wait_until(lambda: value(harness, "requests_total", method="StreamLogits", code="OK") == 1)
    before = num_samples()
    for number in range(20):
        list(harness.stub.StreamLogits(harness.request(), timeout=30, metadata=((EDGE_ID_KEY, f"pi-{number}"),)))
    wait_until(lambda: value(harness, "requests_total", method="StreamLogits", code="OK") == 21)
    assert num_samples() == before


def test_two_servers_in_one_process_count_for_themselves(make_harness: Callable[..., Any]) -> None:
    one, other = make_harness(), make_harness()
    one.stream()
    assert (value(one, "chunks_sent_total"), value(other, "chunks_sent_total")) == (3, 0)


class Pages:
    """The HTTP server, and its answers to health checks."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.now = 100.0
        self.liveness = Liveness(lambda: self.now)
        self.port = 0

    def beat_once(self) -> None:
        """Beat once, as the event loop does each second, and then hang."""

        async def beat() -> None:
            beating = asyncio.ensure_future(self.liveness.beat())
            await asyncio.sleep(0)
            beating.cancel()

        asyncio.run(beat())

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.status, body


@pytest.fixture
def pages() -> Iterator[Pages]:
    made = Pages()
    with metrics_served("127.0.0.1", 0, made.metrics.registry, made.liveness) as made.port:
        yield made


def test_metrics_have_the_prometheus_format_and_describe_the_process(pages: Pages) -> None:
    pages.metrics.request_ended("Describe", "OK")
    status, body = pages.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(body)}
    assert status == 200
    assert {"edgekd_streams_open", "edgekd_group_write_seconds", "process_resident_memory_bytes", "process_open_fds"} <= set(
        families
    )
    assert all(family.documentation for family in families.values())


def test_health_is_503_until_it_serves_and_when_it_stops(pages: Pages) -> None:
    output = []
    for is_serving in (False, True, False):
        pages.liveness.set_serving(is_serving)
        output.append(pages.get("/healthz"))
    assert [status for status, _ in output] == [503, 200, 503]
    assert "starting or stopping" in output[0][1]


def test_a_server_whose_loop_hangs_is_neither_healthy_nor_alive(pages: Pages) -> None:
    assert (pages.get("/livez")[0], pages.get("/healthz")[0]) == (200, 503), "while it starts"
    pages.liveness.set_serving(True)
    pages.beat_once()
    assert (pages.get("/livez")[0], pages.get("/healthz")[0]) == (200, 200)
    pages.now += 60
    assert (pages.get("/livez"), pages.get("/healthz")[0]) == ((503, "hung\n"), 503)
    pages.beat_once()
    pages.liveness.set_serving(False)
    assert (pages.get("/livez")[0], pages.get("/healthz")[0]) == (200, 503), "while it stops"


def test_where_no_thread_can_be_had_the_place_is_given_back(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, request: object, client_address: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(ThreadingMixIn, "process_request", refuse)
        for _ in range(20):
            with pytest.raises((http.client.HTTPException, OSError)):
                pages.get("/livez")
    assert pages.get("/livez")[0] == 200


@pytest.mark.parametrize("path", ["/", "/metricsx", "/healthz/", "/favicon.ico", "/%00", "/../etc/passwd"])
def test_there_are_no_other_pages(pages: Pages, path: str) -> None:
    assert pages.get(path)[0] == 404


def test_metrics_cannot_be_written(pages: Pages) -> None:
    assert pages.get("/metrics", "POST")[0] == 405


def test_garbage_and_too_many_at_a_time_do_no_harm(pages: Pages, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", pages.port), timeout=20) as garbage:
        garbage.sendall(b"\x00\xff" * 1000 + b"\r\n\r\n")
        while garbage.recv(1 << 10):
            pass
    silent = [socket.create_connection(("127.0.0.1", pages.port), timeout=20) for _ in range(32)]
    one_more = socket.create_connection(("127.0.0.1", pages.port), timeout=20)
    assert one_more.recv(1) == b"", "it is hung up on at once"
    for each in (*silent, one_more):
        each.close()
    pages.liveness.set_serving(True)

    def answers() -> bool:
        try:
            return pages.get("/healthz")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    wait_until(answers)
    assert capfd.readouterr().err == ""


def test_a_client_that_sends_slowly_is_disconnected(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_REQUEST_TIMEOUT_S", 0.2)
    with socket.create_connection(("127.0.0.1", pages.port), timeout=0.01) as dripping:
        for byte in itertools.cycle(b"GET /livez"):
            try:
                dripping.sendall(bytes([byte]))
                if dripping.recv(1) == b"":
                    break
            except (ConnectionResetError, BrokenPipeError):
                break
            except TimeoutError:
                pass
    assert pages.get("/livez")[0] == 200


def test_the_port_is_free_again_afterwards() -> None:
    made = Pages()
    with metrics_served("127.0.0.1", 0, made.metrics.registry, made.liveness) as port:
        pass
    with metrics_served("127.0.0.1", port, made.metrics.registry, made.liveness) as again:
        assert again == port


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"metrics_listen": "nowhere"}, "--metrics-listen is 'nowhere', must be HOST:PORT"),
        ({"metrics_listen": "0.0.0.0:9464"}, "--metrics-listen is 0.0.0.0:9464, which other machines can reach, in plaintext"),
        ({"metrics_listen": "0.0.0.0:9464", "insecure": True}, "or give --metrics-insecure"),
        (
            {"metrics_listen": "127.0.0.1:9464", "listen": "127.0.0.1:9464"},
            "the same as --listen; give metrics a port",
        ),
        ({"max_streams_per_edge": 0}, "--max-streams-per-edge is 0, must be at least 1"),
        ({"max_connection_age": 0.5}, "--max-connection-age is 0.5, must be in 1 .. 1728000 seconds"),
        ({"max_connection_age": float("nan")}, "--max-connection-age is nan"),
    ],
)
def test_wrong_setting_is_named(changes: dict[str, Any], fragment: str) -> None:
    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "dataset": "digits:public", "model": "cnn"}
    with pytest.raises(ValueError, match=fragment):
        ServeConfig(**(settings | changes))


def test_settings_become_limits_and_metrics_beyond_loopback_can_be_asked_for() -> None:
    config = ServeConfig(
        listen="127.0.0.1:0",
        dataset="digits:public",
        model="cnn",
        max_streams=9,
        max_streams_per_edge=2,
        max_connection_age=60.0,
        metrics_listen="0.0.0.0:9464",
        metrics_insecure=True,
    )
    assert (config.limits.max_streams, config.limits.max_streams_per_edge, config.limits.streams_for_one) == (9, 2, 2)
    options = dict(config.limits.server_options())
    assert options["grpc.max_connection_age_ms"] == 60_000
    assert options["grpc.max_connection_age_grace_ms"] == 30_000
    assert teacher_pb2.DescribeResponse(max_streams=config.limits.streams_for_one).max_streams == 2
