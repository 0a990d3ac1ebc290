"""Prometheus metrics of a running teacher, in a registry of their own.

No label names an edge, a run or an address: their number is unbounded, and the page must not reveal who is connected. The log
names them. Counting is cheap and always on; http_server.py publishes the page only if --metrics-listen is given.

There is no metric of connections, because grpc.aio does not report them. process_open_fds is an approximation.
"""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from cloud_teacher.logits.store import LogitStore

_DIGEST_PREFIX = 16
# From a write that returns at once to an edge that reads nothing until keepalive closes its connection.
_WAIT_BUCKETS_S = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0)

Compute = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]


@dataclass(slots=True)
class Sent:
    """Totals of one group of chunks, so that the metrics are updated once per group."""

    chunks: int = 0
    rows: int = 0
    payload_bytes: int = 0
    waited_s: float = 0.0


class Metrics:
    """The metrics of one server, and their registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("requests", "Calls that have ended, by method and status.", ("method", "code"))
        self._streams_open = Gauge("edgekd_streams_open", "Streams open now.", registry=self.registry)
        self._streams = self._counter("streams_started", "Streams that got a slot; edgekd_requests_total counts their statuses.")
        self._chunks = self._counter("chunks_sent", "Chunks sent.")
        self._rows = self._counter("rows_sent", "Rows of logits sent.")
        self._payload = self._counter("payload_sent_bytes", "Bytes of logits and inputs sent, without the overhead of gRPC.")
        self._computed = self._counter("rows_computed", "Rows computed by the teacher.")
        self._computing = self._counter("computing_seconds", "Seconds spent computing rows.")
        self._waited = Histogram(
            "edgekd_group_write_seconds",
            "Seconds to hand a group of chunks (256 KiB, or one chunk) to gRPC. Long if an edge reads slowly.",
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )

    def request_ended(self, method: str, code: str) -> None:
        """Count a call of `method` that ended with status `code`. Both must come from a small fixed set."""
        self._requests.labels(method, code).inc()

    def stream_started(self) -> None:
        """Count a stream that got a slot."""
        self._streams.inc()
        self._streams_open.inc()

    def stream_ended(self) -> None:
        """Count a stream that freed its slot."""
        self._streams_open.dec()

    def group_ended(self, sent: Sent) -> None:
        """Add the totals of one group of chunks, which is incomplete if its stream ended early."""
        self._chunks.inc(sent.chunks)
        self._rows.inc(sent.rows)
        self._payload.inc(sent.payload_bytes)
        self._waited.observe(sent.waited_s)

    def timed(self, compute: Compute) -> Compute:
        """Wrap `compute` so that its rows and seconds are counted."""

        def compute_and_count(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            started = time.perf_counter()
            rows = compute(ids)
            self._computing.inc(time.perf_counter() - started)
            self._computed.inc(len(ids))
            return rows

        return compute_and_count

    def watch(self, store: LogitStore, dataset_name: str) -> None:
        """Add the metrics of this store and the identity of its logits. Call once."""
        key = store.key
        info = {
            "version": importlib.metadata.version("edgekd"),
            "teacher": key.teacher_digest[:_DIGEST_PREFIX],
            "dataset": dataset_name,
        }
        Info("edgekd_teacher", "Version, teacher and data set of this server.", registry=self.registry).info(info)
        Gauge("edgekd_store_rows", "Rows of the data set.", registry=self.registry).set(key.num_samples)
        ready = Gauge("edgekd_store_rows_ready", "Rows that are computed.", registry=self.registry)
        ready.set_function(lambda: store.num_ready)

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"edgekd_{name}", documentation, labels, registry=self.registry)
