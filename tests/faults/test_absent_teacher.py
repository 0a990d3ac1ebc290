"""A teacher that is absent at first, or for good."""

import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import read_rest, run, student_command, teacher
from sameness import FLAGS, check_same, troubles
from warm_start import start

from edge_student.ipc.messages import Configure
from edge_student.receive.receiver import Receiver

pytestmark = [pytest.mark.slow, pytest.mark.promise(number=2)]

FIRST_PAUSE_S, JITTER_S = 0.2, 0.5


@pytest.fixture
def vacant_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as vacated:
        return int(vacated.getsockname()[1])


def test_the_edge_waits_for_its_teacher_and_logs_every_attempt(
    vacant_port: int, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    address = f"127.0.0.1:{vacant_port}"
    command = student_command(address, tmp_path / "run", *FLAGS, "--log-level", "warning")
    with start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as student:
        assert student.stderr is not None
        lines = [student.stderr.readline() for _ in range(3)]
        with teacher(tmp_path / "store", port=vacant_port):
            rest = read_rest(student)
    assert student.returncode == 0, rest
    tries = [*lines, *rest.splitlines()]
    assert [int(re.search(r"attempt (\d+) failed", line)[1]) for line in tries] == list(range(1, len(tries) + 1))  # type: ignore[index]
    assert all(f"no server listens at {address}; trying again" in line for line in lines)
    log = check_same(tmp_path / "run", undisturbed())
    assert troubles(log) == [], "to wait for a teacher is no trouble of the run"


class EnoughAttemptsError(Exception):
    """Ends a wait after enough attempts."""


def pauses_of_an_edge(address: str, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses in seconds of an edge after its first five attempts."""
    pauses: list[float] = []

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 5:
            raise EnoughAttemptsError

    monkeypatch.setattr("tenacity.nap.time.sleep", sleep)
    options = {"teacher": address, "batch_size": 4, "seed": 0, "encoding": "float32", "top_k": 0, "window": 4, "max_wait_s": 60.0}
    receiver = Receiver(Configure(**options, log_level="error", niceness=0, is_idle=False), lambda cause, attempt: None)
    with pytest.raises(EnoughAttemptsError):
        receiver.describe()
    receiver.close()
    return pauses


def test_pauses_double_and_are_not_those_of_another_edge(vacant_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all edges that lost one teacher would reconnect at the same time, repeatedly."""
    one, other = (pauses_of_an_edge(f"127.0.0.1:{vacant_port}", monkeypatch) for _ in range(2))
    for pauses in (one, other):
        jitter = [pause - FIRST_PAUSE_S * 2**number for number, pause in enumerate(pauses)]
        assert all(0 <= more <= JITTER_S for more in jitter), pauses
        assert len(set(jitter)) == len(jitter)
    assert not set(one) & set(other)


def test_a_teacher_that_never_comes_ends_the_run_with_its_name(vacant_port: int, tmp_path: Path) -> None:
    began = time.monotonic()
    finished = run(student_command(f"127.0.0.1:{vacant_port}", tmp_path, *FLAGS, "--max-wait", "2", "--log-level", "warning"))
    assert finished.returncode == 1, finished.stderr
    assert time.monotonic() - began >= 2
    *tries, last = finished.stderr.strip().splitlines()
    assert [int(re.search(r"attempt (\d+) failed", line)[1]) for line in tries] == list(range(1, len(tries) + 1))  # type: ignore[index]
    assert last.startswith("error: gave up after 2 s without success: ")
    assert f"no server listens at 127.0.0.1:{vacant_port}" in last
