"""Whole runs with a faulty teacher: wrong, duplicate or missing chunks, a hang, or a replacement in mid-run."""

import json
import subprocess
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from processes import events, read_until, student_command, teacher, train, weights
from relay import Relay
from scripted_teacher import Fault, broken, changed
from warm_start import start

from edgekd.v1 import teacher_pb2
from edgekd.wire.codec import checksum

pytestmark = pytest.mark.slow
CYCLES = 20
FEW = ("--policy", "os-default", "--cycles", str(CYCLES), "--torch-threads", "1", "--window", "6")
FEW += ("--encoding", "float16")


def poisoned(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
    payload = bytearray(chunk.payload)
    payload[:2] = np.float16(np.inf).tobytes()
    chunk.payload = bytes(payload)
    chunk.crc32 = checksum(chunk.payload)
    return [chunk]


def faults() -> dict[tuple[int, int], Fault]:
    """Return one fault of each kind by (batch, chunk); batches have four chunks."""
    seen: list[teacher_pb2.LogitsChunk] = []
    kept: list[teacher_pb2.LogitsChunk] = []

    def remember(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        seen.append(chunk)
        return [chunk]

    def keep(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        kept[:] = [chunk]
        return []

    return {
        (0, 1): lambda chunk: [chunk, chunk],
        (0, 3): lambda chunk: [chunk] * 5,
        (1, 0): remember,
        (1, 3): remember,
        (3, 1): lambda chunk: [chunk, *seen],
        (4, 2): lambda chunk: [],
        (5, 3): lambda chunk: [],
        (7, 1): keep,
        (7, 2): lambda chunk: [chunk, *kept],
        (9, 0): changed(crc32=1),
        (10, 3): changed(num_classes=11),
        (11, 1): changed(encoding=1),
        (13, 0): changed(sample_ids=[1, 2, 3, 4, 5]),
        (15, 2): poisoned,
        (17, 1): broken(grpc.StatusCode.UNAVAILABLE),
    }


@pytest.fixture(scope="module")
def sound(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sound")
    train(address, out, *FEW)
    return out


@pytest.mark.promise(number=9)
@pytest.mark.promise(number=10)
@pytest.mark.parametrize("streams", ["1", "2"])
def test_duplicates_gaps_and_lies_change_no_result_and_nothing_is_trained_on_twice(
    streams: str, sound: Path, address: str, tmp_path: Path
) -> None:
    relay = Relay(address, faults())
    with relay as relayed:
        result = train(relayed, tmp_path / "faulty", *FEW, "--streams", streams)
    assert relay.happened == relay.faults.keys()
    assert weights(tmp_path / "faulty") == weights(sound)
    log = events(tmp_path / "faulty")
    for task in ("comm", "forward", "backward"):
        assert [record["index"] for record in log if record.get("task") == task] == list(range(CYCLES)), "each exactly once"
    troubles = [record["cause"] for record in log if record["event"] == "comm-trouble"]
    rules = ("CRC-32", "num_classes is 11", "encoding is number 1", "sample ids", "NaN or an infinity", "must start at")
    for rule in (*rules, "UNAVAILABLE"):
        assert any(rule in cause for cause in troubles), (rule, troubles)
    assert len(relay.requests) > CYCLES // 6
    assert result["cycles"] == CYCLES
    assert result["num_duplicate_chunks"] == 1 + 4 + 2, "of the faults at (0, 1), (0, 3) and (3, 1)"


@pytest.mark.promise(number=17)
@pytest.mark.parametrize(
    ("other", "names"),
    [(("digits:public", "--seed", "9"), "teacher_digest"), (("digits:private",), "dataset_digest")],
    ids=["another teacher", "another data set"],
)
def test_a_teacher_that_is_replaced_by_another_in_the_middle_ends_the_run(
    other: tuple[str, ...], names: str, tmp_path: Path
) -> None:
    dataset, *more = other
    flags = (*FEW[:2], "--cycles", "40", "--torch-threads", "1", "--window", "6")
    with teacher(tmp_path / "store", "--rate-limit", "80kbit") as first:
        command = student_command(first.address, tmp_path / "run", *flags)
        with start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as student:
            output = read_until(student, "6 of 40")
            first.kill()
            output += read_until(student, "trying again")
            with teacher(tmp_path / "store", *more, dataset=dataset, port=first.port):
                assert student.stderr is not None
                output += student.stderr.read()
    assert student.returncode == 2, output
    last = output.strip().splitlines()[-1]
    assert "FAILED_PRECONDITION" in last
    assert f"{names} differs from this server's" in last
    assert "Traceback" not in output
    received = [record["index"] for record in events(tmp_path / "run") if record.get("task") == "comm"]
    trained = [record["index"] for record in events(tmp_path / "run") if record.get("task") == "backward"]
    assert received == list(range(len(received)))
    assert 6 <= len(trained) <= len(received) < 40, "nothing of the second teacher's was received, and nothing trained on"
    assert not json.loads((tmp_path / "run" / "result.json").read_text())["valid"]


@pytest.mark.promise(number=4)
def test_a_teacher_that_hangs_while_it_answers_pings_changes_no_result(sound: Path, address: str, tmp_path: Path) -> None:
    is_over = threading.Event()

    def hang(chunk: teacher_pb2.LogitsChunk) -> list[teacher_pb2.LogitsChunk]:
        is_over.wait(120)
        return []

    relay = Relay(address, {(3, 1): hang, (12, 0): hang})
    with relay as behind:
        result = train(behind, tmp_path, *FEW, "--max-silence", "1", "--streams", "1")
        is_over.set()
    assert relay.happened == {(3, 1), (12, 0)}
    assert weights(tmp_path) == weights(sound)
    for task in ("comm", "forward", "backward"):
        assert [record["index"] for record in events(tmp_path) if record.get("task") == task] == list(range(CYCLES))
    troubles = [record["cause"] for record in events(tmp_path) if record["event"] == "comm-trouble"]
    assert len(troubles) == result["num_reconnects"] == 2
    assert all("connected, but sent no data for 1 s" in cause for cause in troubles)
