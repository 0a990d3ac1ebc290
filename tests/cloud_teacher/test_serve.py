"""The program cloud-teacher as a process: its output and its exit status."""

import fcntl
import os
import signal
import socket
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import TINY, serve_flags, serving

from cloud_teacher.__main__ import main
from cloud_teacher.logits.teacher import Teacher
from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import to_input
from edgekd.models.build import build_model
from edgekd.v1 import teacher_pb2, teacher_pb2_grpc
from edgekd.wire.codec import Format, decode_into, from_wire
from edgekd.wire.limits import channel_options


def affinity_of_all_threads(pid: int) -> set[frozenset[int]]:
    return {frozenset(os.sched_getaffinity(int(thread))) for thread in os.listdir(f"/proc/{pid}/task")}


@pytest.mark.slow
def test_server_from_start_to_sigterm(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    flags = serve_flags(tmp_path / "store", "--precompute", "--cores", str(core), "--rate-limit", "1gbit", "--seed", "5")
    log = tmp_path / "log"
    with serving(log, flags) as (process, address), grpc.insecure_channel(address, options=channel_options()) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "edgekd.v1.Teacher"):
            status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        assert affinity_of_all_threads(process.pid) == {frozenset({core})}

        stub = teacher_pb2_grpc.TeacherStub(channel)
        described = stub.Describe(teacher_pb2.DescribeRequest(), timeout=10)
        request = teacher_pb2.StreamLogitsRequest(
            count=1, batch_size=32, teacher_digest=described.teacher_digest, dataset_digest=described.dataset_digest, encoding=1
        )
        (chunk,) = stub.StreamLogits(request, timeout=10)
        logits = np.empty((32, 4), np.float32)
        form = Format(from_wire(chunk.encoding))
        decode_into(chunk.payload, form=form, rows=32, num_classes=4, crc32=chunk.crc32, out=logits)
        model = build_model("cnn:width=4", num_classes=4, input_shape=(3, 8, 8), seed=5).eval()
        images = load_dataset(TINY).inputs[list(chunk.sample_ids)]
        assert np.allclose(logits, model(to_input(images, Preprocessing())).detach().numpy(), atol=1e-5)

        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    lines = log.read_text()
    assert "no --weights: serving the untrained initial weights of cnn:width=4" in lines
    assert "0 of" in lines
    assert "Traceback" not in lines

    with serving(log, serve_flags(tmp_path / "store", "--seed", "5", "--listen", "0.0.0.0:0", "--insecure")) as (process, address):
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    num_samples = len(load_dataset(TINY).labels)
    assert f"{num_samples} of {num_samples} rows" in log.read_text()
    assert "0.0.0.0 is reachable from other machines without TLS" in log.read_text()


def run_main(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> int:
    monkeypatch.setattr(sys, "argv", ["cloud-teacher", *flags])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_port_in_use_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_main(monkeypatch, serve_flags(tmp_path, "--listen", f"127.0.0.1:{port}")) == 1
    assert (
        capfd.readouterr().err == f"error: port {port} on 127.0.0.1 is in use; stop the other server, or listen on another port\n"
    )


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--dataset", "digit:public"], "data set 'digit' is unknown"),
        (["--model", "cnm"], "'cnm' is unknown"),
        (["--cores", "4095"], "--cores contains core 4095, but this process may only run on ["),
        (["--listen", "here"], "--listen is 'here'"),
        (["--rate-limit", "100Mbit"], "--rate-limit is '100Mbit'"),
        (["--weights", "w.txt"], "'w.txt' must end in .safetensors"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_mistake_is_one_line_and_exit_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], flags: list[str], fragment: str
) -> None:
    assert run_main(monkeypatch, serve_flags(tmp_path, *flags)) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert lines[-1].startswith("error: ")
    assert fragment in lines[-1]


def test_weights_of_another_model_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.safetensors"
    trained = ["--dataset", TINY, "--model", "cnn:width=8", "--out", str(out), "--epochs", "1"]
    assert run_main(monkeypatch, ["train", *trained]) == 0
    assert run_main(monkeypatch, serve_flags(tmp_path, "--weights", str(out))) == 2
    assert "--model is cnn:width=4, but the model card of" in capfd.readouterr().err.splitlines()[-1]


def test_missing_weights_file_is_one_line_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing.safetensors"
    assert run_main(monkeypatch, serve_flags(tmp_path, "--weights", str(missing))) == 2
    assert f"error: --weights {missing}: there is no such file" in capfd.readouterr().err.splitlines()[-1]


def precompute_flags(store: Path) -> list[str]:
    return ["precompute", "--dataset", TINY, "--model", "cnn:width=4", "--store", str(store)]


def test_precompute_fills_the_store_and_has_nothing_to_do_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    computing = Teacher.logits

    def logits(self: Teacher, ids: np.ndarray) -> np.ndarray:
        asked.extend(ids.tolist())
        return computing(self, ids)

    monkeypatch.setattr(Teacher, "logits", logits)
    assert run_main(monkeypatch, precompute_flags(tmp_path)) == 0
    num_samples = len(load_dataset(TINY).inputs)
    assert f"{num_samples} of {num_samples} rows are in {tmp_path}" in capfd.readouterr().out
    assert sorted(asked) == list(range(num_samples))
    assert run_main(monkeypatch, precompute_flags(tmp_path)) == 0
    assert len(asked) == num_samples


def test_precompute_does_not_compute_for_a_store_that_would_not_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, precompute_flags(tmp_path)) == 0
    (folder,) = tmp_path.iterdir()
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_main(monkeypatch, precompute_flags(tmp_path)) == 1
    assert "another process uses the logit store" in capfd.readouterr().err.splitlines()[-1]
