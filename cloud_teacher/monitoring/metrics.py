"""What a running teacher counts of itself, for Prometheus, in a registry of its own.

No label names an edge, a run or an address: there may be any number of those, and a page that anybody may scrape should not say who
is there. The log does. Counting is cheap enough to be always on; whether anybody can read it is up to metrics_server.py.

What is not here: connections, which grpc.aio does not tell. process_open_fds is near.
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
# From a write that finds room at once to an edge that is held for as long as keepalive lets it be.
_WAIT_BUCKETS_S = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0)

Compute = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]


@dataclass(slots=True)
class Sent:
    """What has been sent of one group of chunks, added up before it is counted, so that counting costs once per group."""

    chunks: int = 0
    rows: int = 0
    payload_bytes: int = 0
    waited_s: float = 0.0


class Metrics:
    """The counters of one server, and the registry that they are in."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("requests", "Calls that have ended, by method and status.", ("method", "code"))
        self._streams_open = Gauge("edgekd_streams_open", "Streams open now.", registry=self.registry)
        self._streams = self._counter("streams_started", "Streams that got a place; edgekd_requests_total has how they ended.")
        self._chunks = self._counter("chunks_sent", "Chunks sent.")
        self._rows = self._counter("rows_sent", "Rows of logits sent.")
        self._payload = self._counter("payload_sent_bytes", "Bytes of logits and inputs sent, without what gRPC adds.")
        self._computed = self._counter("rows_computed", "Rows that the teacher has computed.")
        self._computing = self._counter("computing_seconds", "Seconds in which it computed them.")
        self._waited = Histogram(
            "edgekd_group_write_seconds",
            "Seconds that it took to hand a group of chunks (256 KiB, or one chunk) to gRPC. Long where an edge reads slowly.",
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )

    def request_ended(self, method: str, code: str) -> None:
        """A call of `method` ended with the status `code`. Both must be among few."""
        self._requests.labels(method, code).inc()

    def stream_began(self) -> None:
        """A stream got its place."""
        self._streams.inc()
        self._streams_open.inc()

    def stream_ended(self) -> None:
        """A stream gave its place back."""
        self._streams_open.dec()

    def group_ended(self, sent: Sent) -> None:
        """So much of a group of chunks has been sent, all of it as a rule."""
        self._chunks.inc(sent.chunks)
        self._rows.inc(sent.rows)
        self._payload.inc(sent.payload_bytes)
        self._waited.observe(sent.waited_s)

    def timed(self, compute: Compute) -> Compute:
        """`compute`, with its rows and seconds counted."""

        def compute_and_count(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            begun = time.perf_counter()
            rows = compute(ids)
            self._computing.inc(time.perf_counter() - begun)
            self._computed.inc(len(ids))
            return rows

        return compute_and_count

    def watch(self, store: LogitStore, dataset_name: str) -> None:
        """Tell of this store from now on, and whose logits it has. Once."""
        key = store.key
        info = {
            "version": importlib.metadata.version("edgekd"),
            "teacher": key.teacher_digest[:_DIGEST_PREFIX],
            "dataset": dataset_name,
        }
        Info("edgekd_teacher", "What is served.", registry=self.registry).info(info)
        Gauge("edgekd_store_rows", "Rows in all.", registry=self.registry).set(key.num_samples)
        ready = Gauge("edgekd_store_rows_ready", "Rows that need no computing any more.", registry=self.registry)
        ready.set_function(lambda: store.num_ready)

    def _counter(self, name: str, sentence: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"edgekd_{name}", sentence, labels, registry=self.registry)
