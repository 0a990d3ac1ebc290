"""Training that stops while the teacher can send: how far the teacher runs ahead, and the memory that it costs the edge."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import TeacherProcess, comm_worker_of, events, read_rest, read_until, student_command, teacher
from proxy import Proxy
from resources import read_holding
from sameness import started_at
from warm_start import start

pytestmark = [pytest.mark.slow, pytest.mark.promise(number=8)]

DATASET = "synthetic:classes=1000,size=8,samples=512"
BATCH, CYCLES, PREFETCH, WINDOW = 64, 100, 4, 8
BATCH_BYTES = BATCH * 1000 * 4
FRAMING = 1.02  # sample ids, headers of messages and of frames, and pings
QUIET_S = 1.0  # a teacher that may send more does so within milliseconds


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherProcess]:
    with teacher(tmp_path_factory.mktemp("store"), dataset=f"{DATASET}:public") as running:
        yield running


@pytest.mark.parametrize("num_streams", [1, 2])
def test_a_teacher_runs_ahead_of_slow_training_as_far_as_ring_and_window_allow(
    num_streams: int, serving: TeacherProcess, tmp_path: Path
) -> None:
    flags = ["--private", f"{DATASET}:private", "--public-batch", str(BATCH), "--cycles", str(CYCLES), "--policy", "os-default"]
    flags += ["--prefetch", str(PREFETCH), "--window", str(WINDOW), "--streams", str(num_streams), "--torch-threads", "1"]
    with Proxy(serving.port) as proxy:
        proxy.pause()
        command = student_command(proxy.address, tmp_path, *flags)
        with start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as student:
            worker = comm_worker_of(student)
            proxy.wait_until(lambda counts: counts.connections == 1)
            before = read_holding(worker).private_kib  # all is loaded, and nothing has been received
            proxy.resume()
            read_until(student, f"10 of {CYCLES}")
            student.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            sent = sent_until_quiet(proxy)
            held = read_holding(worker).private_kib
            student.send_signal(signal.SIGCONT)
            output = read_rest(student)
    assert student.returncode == 0, output
    log = events(tmp_path)
    began = started_at(log)
    consumed = sum(record.get("task") == "backward" and began + record["ended"] < stopped for record in log)
    assert 10 <= consumed < CYCLES
    # The ring was full. One batch more was consumed than training could say before it was stopped.
    assert (consumed + PREFETCH) * BATCH_BYTES <= sent
    assert sent <= (consumed + 1 + PREFETCH + num_streams * WINDOW) * BATCH_BYTES * FRAMING
    budget = num_streams * (WINDOW * BATCH_BYTES + (1 << 20))
    assert (held - before) << 10 < budget, "outside of the ring: what a window may hold, and a thread with its connection"


def sent_until_quiet(proxy: Proxy) -> int:
    """Wait until the teacher has no more data to send. Returns the total number of sent bytes."""
    while True:
        sent = proxy.counts.bytes_taken
        try:
            proxy.wait_until(lambda counts, sent=sent: counts.bytes_taken > sent, QUIET_S)
        except AssertionError:
            return sent
