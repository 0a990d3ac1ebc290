"""Whole runs with a logit cache: the same weights as without it, also after a kill, and no traffic once it is full."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from processes import TINY, events, read_until, run, student_command, teacher, train, weights
from warm_start import start

pytestmark = pytest.mark.slow
FLAGS = ("--policy", "os-default", "--cycles", "24", "--public-batch", "128", "--torch-threads", "1", "--encoding", "float16")


STREAMED = ("--public-inputs", "stream")


@pytest.fixture(scope="module")
def online(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("online")
    train(address, out, *FLAGS)
    return out


def wire_bytes(out: Path) -> list[int]:
    return [record["num_bytes"] for record in events(out) if record.get("task") == "comm"]


def fetch(address: str, cache: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_student", "fetch", "--teacher", address, "--cache", str(cache)]
    return run([*command, "--encoding", "float16", *flags])


def offline(out: Path, cache: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_student", "train", "--out", str(out), *TINY, *FLAGS]
    return run([*command, "--logits", "offline", "--cache", str(cache), *flags])


def test_from_the_second_epoch_nothing_crosses_the_wire_and_nothing_changes(address: str, online: Path, tmp_path: Path) -> None:
    cached = ("--logits", "hybrid", "--cache", str(tmp_path / "cache"))
    first = train(address, tmp_path / "first", *FLAGS, *cached)
    assert weights(tmp_path / "first") == weights(online)
    num_epoch = -(-json.loads(next((tmp_path / "cache").glob("*/meta.json")).read_text())["num_samples"] // 128)
    assert num_epoch < 20, "the run is to have a second epoch"
    assert all(wire_bytes(tmp_path / "first")[:num_epoch])
    assert sum(wire_bytes(tmp_path / "first")[num_epoch:]) == 0
    assert first["num_cached_batches"] == 24 - num_epoch
    second = train(address, tmp_path / "second", *FLAGS, *cached)
    assert weights(tmp_path / "second") == weights(online)
    assert (second["comm_num_bytes"], second["num_cached_batches"]) == (0, 24)


def test_a_worker_that_is_killed_while_it_writes_leaves_a_usable_cache(online: Path, tmp_path: Path) -> None:
    cached = ("--logits", "hybrid", "--cache", str(tmp_path / "cache"))
    with teacher(tmp_path / "store", "--rate-limit", "160kbit") as slow:
        command = student_command(slow.address, tmp_path / "killed", *FLAGS, *cached)
        with start(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as student:
            read_until(student, "3 of 24")
            for process in (*psutil.Process(student.pid).children(), psutil.Process(student.pid)):
                process.kill()
    with teacher(tmp_path / "store") as fast:
        result = train(fast.address, tmp_path / "again", *FLAGS, *cached)
    assert weights(tmp_path / "again") == weights(online)
    assert 3 <= result["num_cached_batches"] <= 24
    assert wire_bytes(tmp_path / "again")[:2] == [0, 0]


def test_a_full_cache_trains_without_a_teacher(address: str, online: Path, tmp_path: Path) -> None:
    filled = fetch(address, tmp_path / "cache", "--public", "digits:public")
    assert filled.returncode == 0, filled.stderr
    assert "MB received" in filled.stdout
    finished = offline(tmp_path / "run", tmp_path / "cache")
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path / "run") == weights(online)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["comm_num_bytes"], result["num_cached_batches"], result["valid"]) == (0, 24, True)
    again = fetch(address, tmp_path / "cache")
    assert "0.00 MB received" in again.stdout


def test_missing_rows_of_a_cache_are_reported_before_training(address: str, tmp_path: Path) -> None:
    empty = offline(tmp_path / "run", tmp_path / "cache")
    assert empty.returncode == 2, empty.stderr
    assert "there is no logit cache of this data set with encoding float16" in empty.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "student.safetensors").exists()
    train(address, tmp_path / "short", *FLAGS, "--cycles", "2", "--logits", "hybrid", "--cache", str(tmp_path / "cache"))
    partly = offline(tmp_path / "run", tmp_path / "cache")
    assert partly.returncode == 2, partly.stderr
    assert "samples of this run: fill it with `edge-student fetch`" in partly.stderr
    assert offline(tmp_path / "run", tmp_path / "cache", "--cycles", "2").returncode == 0, "two batches are there"


@pytest.mark.parametrize(
    ("flags", "output"),
    [
        (("--logits", "offline", "--teacher", "127.0.0.1:1"), "--logits offline uses no teacher"),
        (("--logits", "hybrid"), "--teacher is missing"),
        (("--top-k", "3", "--teacher", "127.0.0.1:1"), "use it with --encoding topk"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: tuple[str, ...], output: str, tmp_path: Path) -> None:
    finished = run([sys.executable, "-m", "edge_student", "train", "--out", str(tmp_path), "--private", "digits:private", *flags])
    assert finished.returncode == 2
    assert output in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


def test_a_teacher_of_another_data_set_is_not_fetched_from(address: str, tmp_path: Path) -> None:
    finished = fetch(address, tmp_path / "cache", "--public", "digits:private")
    assert finished.returncode == 2
    assert "--public is digits:private" in finished.stderr


@pytest.mark.parametrize("streams", ["2", "4"])
def test_streams_that_divide_the_batches_leave_the_link_silent_too(
    streams: str, address: str, online: Path, tmp_path: Path
) -> None:
    cached = ("--logits", "hybrid", "--cache", str(tmp_path / "cache"), "--streams", streams)
    result = train(address, tmp_path / "run", *FLAGS, *cached)
    assert weights(tmp_path / "run") == weights(online)
    num_epoch = -(-result["teacher"]["num_samples"] // 128)
    assert all(wire_bytes(tmp_path / "run")[:num_epoch])
    assert sum(wire_bytes(tmp_path / "run")[num_epoch:]) == 0


def photographs(folder: Path) -> str:
    """Create an image folder of JPEG and PNG files in several sizes, some of them grey; return its data set name."""
    random = np.random.RandomState(0)
    for number in range(200):
        place = folder / f"class{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        height, width = random.randint(8, 24, 2)
        image = Image.fromarray(random.randint(0, 256, (height, width, 3), dtype=np.uint8))
        image.convert("L" if number % 7 == 0 else "RGB").save(place / f"{number}.{'jpg' if number % 2 else 'png'}")
    return f"imagefolder:{folder},size=8"


def test_files_as_stored_and_pixels_give_the_weights_of_a_local_copy(tmp_path: Path) -> None:
    dataset = photographs(tmp_path / "photographs")
    few = ("--private", f"{dataset}:private", "--policy", "os-default", "--cycles", "12", "--torch-threads", "1")
    with teacher(tmp_path / "store", dataset=f"{dataset}:public") as serving:
        for name, flags in (
            ("local", ()),
            ("stream", ("--public-inputs", "stream")),
            ("stored", ("--public-inputs", "stored", "--streams", "2")),
            ("kept", ("--public-inputs", "stored", "--logits", "hybrid", "--cache", str(tmp_path / "cache"))),
        ):
            train(serving.address, tmp_path / name, *few, *flags)
            assert weights(tmp_path / name) == weights(tmp_path / "local"), name


def test_edges_share_fewer_streams_than_they_want(tmp_path: Path) -> None:
    wants = (*FLAGS, "--streams", "2", "--prefetch", "4", "--max-wait", "50")
    with teacher(tmp_path / "store", "--max-streams", "1") as one:
        assert train(one.address, tmp_path / "alone", *wants)["num_reconnects"] == 0
    with teacher(tmp_path / "store", "--max-streams", "3") as three:
        students = [start(student_command(three.address, tmp_path / name, *wants)) for name in ("a", "b")]
        assert [student.wait(120) for student in students] == [0, 0]
    assert weights(tmp_path / "a") == weights(tmp_path / "b") == weights(tmp_path / "alone")


def test_inputs_that_travelled_are_read_from_the_cache_as_well(address: str, online: Path, tmp_path: Path) -> None:
    cached = ("--cache", str(tmp_path / "cache"), *STREAMED)
    first = train(address, tmp_path / "first", *FLAGS, *cached, "--logits", "hybrid")
    assert weights(tmp_path / "first") == weights(online)
    num_epoch = -(-first["teacher"]["num_samples"] // 128)
    assert first["comm_num_bytes"] == num_epoch * 128 * (2 * 10 + 64)
    without = offline(tmp_path / "second", tmp_path / "cache", *STREAMED)
    assert without.returncode == 0, without.stderr
    assert weights(tmp_path / "second") == weights(online)
    assert fetch(address, tmp_path / "other", *STREAMED).returncode == 0
    assert offline(tmp_path / "third", tmp_path / "other", *STREAMED).returncode == 0
    assert weights(tmp_path / "third") == weights(online)


def test_a_rejected_fetch_creates_no_cache(address: str, tmp_path: Path) -> None:
    refused = fetch(address, tmp_path / "cache", "--public", "digits:private")
    assert (refused.returncode, "--public is digits:private" in refused.stderr) == (2, True)
    assert not (tmp_path / "cache").exists()


@pytest.mark.promise(number=14)
@pytest.mark.parametrize("logits", ["online", "hybrid", "offline"])
def test_a_run_that_was_killed_after_its_last_cycle_is_saved_when_it_goes_on(
    logits: str, address: str, online: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "edge_student", "train", "--out", str(tmp_path / "out"), *TINY, *FLAGS, "--logits", logits]
    command += ["--cache", str(tmp_path / "cache")]
    if logits == "offline":
        assert fetch(address, tmp_path / "cache").returncode == 0
    else:
        command += ["--teacher", address]
    assert run(command).returncode == 0
    for name in ("result.json", "student.safetensors"):
        (tmp_path / "out" / name).unlink()
    finished = run([*command, "--resume"])
    assert finished.returncode == 0, finished.stderr
    assert weights(tmp_path / "out") == weights(online)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["cycles"], result["resumed_at"]) == (24, [24])
    assert result["accuracy"] is not None
