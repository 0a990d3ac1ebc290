"""A teacher process that gets SIGTERM: it ends its streams cleanly, and its edges resume at the same batch."""

import json
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from processes import TeacherProcess, teacher

from edge_student.ipc.messages import Configure
from edge_student.ipc.ring import RingShape, Slot
from edge_student.receive.receiver import Receiver

pytestmark = pytest.mark.slow
BATCH, CYCLES = 64, 12


def configure(address: str) -> Configure:
    return Configure(
        teacher=address,
        batch_size=BATCH,
        seed=7,
        encoding="float32",
        top_k=0,
        window=64,
        max_wait_s=60.0,
        log_level="info",
        niceness=0,
        is_idle=False,
        edge_id="pi-1",
        run_id="0123456789ab",
    )


class Edge:
    """Receives batches and keeps them."""

    def __init__(self, address: str) -> None:
        self.troubles: list[str] = []
        self.receiver = Receiver(configure(address), lambda cause, attempt: self.troubles.append(cause))
        self.receiver.describe()
        self._slot = Slot.empty(RingShape(num_slots=1, batch_size=BATCH, num_classes=10, logit_bytes=4))
        self.batches: list[np.ndarray] = []

    def receive_until(self, num_batches: int) -> None:
        while len(self.batches) < num_batches:
            self.receiver.receive(len(self.batches), CYCLES, self._slot, lambda: None)
            self.batches.append(self._slot.logits.copy())


def health(metrics: str) -> int:
    try:
        with urllib.request.urlopen(metrics.replace("/metrics", "/healthz"), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def stopped(serving: TeacherProcess) -> int:
    serving.process.send_signal(signal.SIGTERM)
    return serving.process.wait(20)


@pytest.mark.promise(number=24)
def test_streams_of_a_stopping_teacher_end_cleanly_and_resume_at_the_next_teacher(tmp_path: Path) -> None:
    log = tmp_path / "log"
    flags = ("--log-level", "debug", "--log-format", "json", "--metrics-listen", "127.0.0.1:0")
    # A batch of 2,560 bytes takes half a second, so that the stop and its grace period end in the middle of a stream.
    with teacher(tmp_path / "store", "--rate-limit", "40kbit", *flags, log=log) as first:
        edge = Edge(first.address)
        edge.receive_until(2)
        (metrics,) = re.findall(r"http://[^\"]+/metrics", log.read_text())
        assert health(metrics) == 200
        first.process.send_signal(signal.SIGTERM)
        while health(metrics) != 503:  # the stream continues for its grace period of 1.5 s
            assert first.process.poll() is None
        assert first.process.wait(20) == 0
        with teacher(tmp_path / "store", port=first.port) as second:
            edge.receive_until(CYCLES)
            undisturbed = Edge(second.address)
            undisturbed.receive_until(CYCLES)
            assert stopped(second) == 0, "idle connections do not delay the exit"
    assert np.array_equal(edge.batches, undisturbed.batches)
    assert edge.receiver.num_reconnects >= 1
    assert "UNAVAILABLE: the teacher is shutting down; retry from the first incomplete batch" in edge.troubles[0]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (refused,) = [line for line in lines if "shutting down" in line["message"]]
    assert (refused["edge"], refused["run"], refused["level"]) == ("pi-1", "0123456789ab", "info")
    assert not any("exception" in line for line in lines)
    for one in (edge, undisturbed):
        one.receiver.close()
