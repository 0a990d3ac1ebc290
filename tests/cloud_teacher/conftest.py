"""A tiny deterministic teacher, and a real server for it on its own thread."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from cloud_teacher.logits.public_inputs import PublicInputs
from cloud_teacher.logits.store import LogitStore, StoreKey, open_store
from cloud_teacher.monitoring.metrics import Metrics
from cloud_teacher.service.limits import Limits
from cloud_teacher.service.rate_limit import RateLimiter
from cloud_teacher.service.server import TeacherServer
from cloud_teacher.service.service import TeacherService
from edgekd.v1 import teacher_pb2, teacher_pb2_grpc
from edgekd.wire.limits import channel_options

KEY = StoreKey(teacher_digest="ab" * 32, dataset_digest="cd" * 32, num_samples=50, num_classes=7)


class TinyTeacher:
    """A teacher whose row i is a fixed function of i. Records the requested ids; tests can block it or make it fail."""

    def __init__(self, key: StoreKey) -> None:
        self.key = key
        self.asked: list[int] = []
        self.answer: dict[int, np.ndarray] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def row(self, sample: int) -> np.ndarray:
        return self.answer.get(sample, np.sin(np.arange(self.key.num_classes) + sample * 10.0).astype(np.float32))

    def logits(self, ids: np.ndarray) -> np.ndarray:
        assert self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        self.asked += ids.tolist()
        return np.stack([self.row(sample) for sample in ids.tolist()])


class Harness:
    """A server on a free port of loopback, with a client."""

    def __init__(
        self,
        folder: Path,
        *,
        key: StoreKey = KEY,
        rate_limiter: RateLimiter | None = None,
        inputs: PublicInputs | None = None,
        **limits: Any,
    ) -> None:
        self.key = key
        self._inputs = inputs
        self.teacher = TinyTeacher(key)
        self.metrics = Metrics()
        self.store: LogitStore = open_store(folder, key, self.metrics.timed(self.teacher.logits))
        self.metrics.watch(self.store, "tiny:public")
        self._computing = ThreadPoolExecutor(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = self._make(Limits(**({"max_streams": 4} | limits)), rate_limiter)
        self.port = self.on_loop(self.server.start("127.0.0.1", 0))
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", options=channel_options())
        self.stub = teacher_pb2_grpc.TeacherStub(self.channel)
        self._is_stopped = False

    def _make(self, limits: Limits, rate_limiter: RateLimiter | None) -> TeacherServer:
        async def make() -> TeacherServer:
            service = TeacherService(
                self.store,
                dataset_name="tiny:public",
                limits=limits,
                metrics=self.metrics,
                rate_limiter=rate_limiter,
                computing=self._computing,
                inputs=self._inputs,
            )
            return TeacherServer(service)

        return self.on_loop(make())

    def on_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def stop_server(self) -> None:
        if not self._is_stopped:
            self._is_stopped = True
            self.on_loop(self.server.stop())

    def close(self) -> None:
        self.channel.close()
        self.teacher.gate.set()
        self.stop_server()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._computing.shutdown()
        self.store.close()

    def request(self, **changes: object) -> teacher_pb2.StreamLogitsRequest:
        fields: dict[str, object] = {
            "start": 0,
            "count": 3,
            "batch_size": 8,
            "seed": 1,
            "teacher_digest": self.key.teacher_digest,
            "dataset_digest": self.key.dataset_digest,
            "encoding": teacher_pb2.ENCODING_FLOAT32,
        }
        return teacher_pb2.StreamLogitsRequest(**(fields | changes))

    def stream(self, **changes: object) -> list[teacher_pb2.LogitsChunk]:
        return list(self.stub.StreamLogits(self.request(**changes), timeout=30))

    def refusal(self, **changes: object) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as refused:
            self.stream(**changes)
        return refused.value


@pytest.fixture
def make_harness(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    made: list[Harness] = []

    def make(**settings: object) -> Harness:
        made.append(Harness(tmp_path / "store", **settings))
        return made[-1]

    yield make
    for harness in made:
        harness.close()


@pytest.fixture
def harness(make_harness: Callable[..., Harness]) -> Harness:
    return make_harness()


@pytest.fixture
def key() -> StoreKey:
    return KEY


@pytest.fixture
def make_teacher() -> type[TinyTeacher]:
    return TinyTeacher
