"""Checkpoint files: atomic, in two generations, and rejected if damaged or hostile (promises 15 and 16)."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edge_student.run import checkpoint_file
from edge_student.run.checkpoint_file import DAMAGED, NEWEST, PREVIOUS, Checkpoint, CheckpointError

WRITER = """
import os, sys
from pathlib import Path
import torch
from edge_student.run import checkpoint_file
from edge_student.run.checkpoint_file import Checkpoint

fatal_step = steps = 0

def mortal(call):
    def step(*args, **kwargs):
        global steps
        steps += 1
        if steps == fatal_step:
            os._exit(77)  # no finally, no flush: like SIGKILL
        return call(*args, **kwargs)
    return step

for owner, names in ((os, ("fsync", "link", "open", "close")), (Path, ("open", "unlink", "replace"))):
    for name in names:
        setattr(owner, name, mortal(getattr(owner, name)))
new = Checkpoint(facts={"num_cycles": 3}, tensors={"student.w": torch.full((1000,), 3.0)})
for folder in sys.argv[1:]:
    fatal_step += 1
    writer = os.fork()  # one process per folder; torch is loaded once
    if not writer:
        checkpoint_file.save(Path(folder), new)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]), flush=True)
"""


def made(number: int) -> Checkpoint:
    return Checkpoint(facts={"num_cycles": number}, tensors={"student.w": torch.full((1000,), float(number))})


def number_of(found: Checkpoint | None) -> int | None:
    """Return the number of a checkpoint; facts and tensors must agree."""
    if found is None:
        return None
    assert set(found.tensors["student.w"].tolist()) == {float(found.facts["num_cycles"])}
    return int(found.facts["num_cycles"])


def killed_at_every_step(base: Path, tmp_path: Path) -> list[Path]:
    """Return copies of a folder whose writers were killed at their 1st, 2nd, ... step; the last writer was not killed."""
    folders = [tmp_path / f"step {step}" for step in range(1, 50)]
    for folder in folders:
        shutil.copytree(base, folder)
    written = subprocess.run([sys.executable, "-c", WRITER, *map(str, folders)], check=True, capture_output=True, text=True)
    ends = written.stdout.split()
    num_killed = ends.count("77")
    assert ends == ["77"] * num_killed + ["0"] * (49 - num_killed), "it came to its end when it was not killed"
    assert 5 < num_killed < 49, "it was killed at too few places to tell, or never came to its end"
    return folders[: num_killed + 1]


def test_a_saved_checkpoint_is_loaded_and_two_generations_are_kept(tmp_path: Path) -> None:
    assert checkpoint_file.load(tmp_path) is None
    for number in (1, 2, 3):
        assert checkpoint_file.save(tmp_path, made(number)) == (tmp_path / NEWEST).stat().st_size
        assert number_of(checkpoint_file.load(tmp_path)) == number
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NEWEST]
    (tmp_path / NEWEST).unlink()
    assert number_of(checkpoint_file.load(tmp_path)) == 2


def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(4, 3),
        "turned": torch.randn(4, 3).t(),
        "half": torch.randn(5).half(),
        "count": torch.tensor(7),
        "none": torch.empty(0, 3),
        "random": torch.get_rng_state(),
        "not numbers": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    checkpoint_file.save(tmp_path, Checkpoint(facts={}, tensors=tensors))
    found = checkpoint_file.load(tmp_path)
    assert found is not None
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].shape == tensor.shape
        assert found.tensors[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes()


@pytest.mark.promise(number=15)
def test_a_writer_killed_at_any_step_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for number in (1, 2):
        checkpoint_file.save(base, made(number))
    seen = []
    for folder in killed_at_every_step(base, tmp_path):
        seen.append(number_of(checkpoint_file.load(folder)))
        assert {path.name for path in folder.iterdir()} == {NEWEST, PREVIOUS}, "nothing else lies about once it was loaded"
        checkpoint_file.save(folder, made(4))  # the next checkpoint can be written
        assert {path.name for path in folder.iterdir()} == {NEWEST, PREVIOUS}, "nor once the next one was written"
        assert number_of(checkpoint_file.load(folder)) == 4
    assert set(seen) == {2, 3}
    assert seen[-1] == 3
    assert len(seen) > 8, "it was killed at too few places to tell"


@pytest.mark.promise(number=15)
def test_a_writer_killed_at_any_step_after_a_damaged_one_leaves_the_good_one_or_the_new(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for number in (1, 2):
        checkpoint_file.save(base, made(number))
    (base / NEWEST).write_bytes(b"EDGEKDC1 and nothing of use")
    assert number_of(checkpoint_file.load(base)) == 1
    assert number_of(checkpoint_file.load(base)) == 1, "and it can be gone on from more than once"
    seen = []
    for folder in killed_at_every_step(base, tmp_path):
        seen.append(number_of(checkpoint_file.load(folder)))
        assert {path.name for path in folder.iterdir()} <= {NEWEST, PREVIOUS, DAMAGED}
    assert set(seen) == {1, 3}
    assert seen[-1] == 3


@pytest.mark.promise(number=15)
def test_a_state_that_cannot_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint_file.save(tmp_path, made(1))
    monkeypatch.setattr(checkpoint_file, "MAX_BYTES", 4000)
    with pytest.raises(OSError, match="must have at most 4000") as refused:
        checkpoint_file.save(tmp_path, made(2))
    assert refused.value.filename == str(tmp_path / NEWEST)
    assert {path.name for path in tmp_path.iterdir()} == {NEWEST}


@pytest.mark.promise(number=15)
@pytest.mark.parametrize("where", ["magic", "digest", "length", "json", "tensors", "last byte"])
def test_an_altered_file_is_left_for_the_one_before_it(where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        checkpoint_file.save(tmp_path, made(number))
    data = bytearray((tmp_path / NEWEST).read_bytes())
    place = {"magic": 3, "digest": 20, "length": 41, "json": 52, "tensors": len(data) // 2, "last byte": len(data) - 1}[where]
    data[place] ^= 0x10
    (tmp_path / NEWEST).write_bytes(data)
    assert number_of(checkpoint_file.load(tmp_path)) == 1
    assert NEWEST in caplog.text
    assert "resuming from the previous checkpoint" in caplog.text


@pytest.mark.promise(number=15)
def test_a_truncated_file_of_any_length_is_left_for_the_one_before_it(tmp_path: Path) -> None:
    for number in (1, 2):
        checkpoint_file.save(tmp_path, made(number))
    data = (tmp_path / NEWEST).read_bytes()
    for length in [*range(0, 60), *range(60, len(data), 397)]:
        (tmp_path / NEWEST).write_bytes(data[:length])
        assert number_of(checkpoint_file.load(tmp_path)) == 1, length
        assert (tmp_path / DAMAGED).read_bytes() == data[:length]


def test_without_a_usable_checkpoint_the_error_names_the_remedy(tmp_path: Path) -> None:
    for number in (1, 2):
        checkpoint_file.save(tmp_path, made(number))
    (tmp_path / NEWEST).write_bytes(b"x" * 100)
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used .*not a checkpoint of this version.*omit --resume"):
        checkpoint_file.load(tmp_path)


@pytest.mark.promise(number=15)
def test_a_full_disk_keeps_the_old_files_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    """A file size limit simulates the full disk: the kernel stops the write in its middle with EFBIG."""
    checkpoint_file.save(tmp_path, made(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="large") as refused:
            checkpoint_file.save(tmp_path, made(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.filename == str(tmp_path / NEWEST)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.promise(number=15)
def test_a_special_or_oversized_file_is_skipped_for_the_previous_checkpoint(tmp_path: Path) -> None:
    for number in (1, 2):
        checkpoint_file.save(tmp_path, made(number))
    newest, damaged = tmp_path / NEWEST, tmp_path / DAMAGED

    def is_passed_over() -> bool:
        """Return whether the file was skipped and moved aside, so that the next one can be written."""
        found = number_of(checkpoint_file.load(tmp_path))
        return found == 1 and not os.path.lexists(newest) and os.path.lexists(damaged)

    newest.unlink()
    os.mkfifo(newest)  # reading it would block forever
    assert is_passed_over()
    newest.mkdir()
    assert is_passed_over()
    newest.symlink_to("/dev/zero")  # reading it would use all memory
    assert is_passed_over()
    for num_bytes in (checkpoint_file.MAX_BYTES + 1, checkpoint_file.MAX_BYTES):  # of the second, only the magic word is read
        with newest.open("wb") as sparse:
            sparse.truncate(num_bytes)
        assert is_passed_over()


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def with_checksum(payload: bytes) -> bytes:
    import hashlib

    return b"EDGEKDC1" + hashlib.sha256(payload).digest() + payload


def body_of(facts: bytes, tensors: bytes) -> bytes:
    return with_checksum(struct.pack("<Q", len(facts)) + facts + tensors)


def hostile_header(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def hostile_files(trap: Path) -> dict[str, bytes]:
    tensors = io.BytesIO()
    torch.save({"student.w": Payload(trap)}, tensors)
    fine = hostile_header({})
    return {
        "a pickle": pickle.dumps(Payload(trap)),
        "a pickle behind a good checksum": with_checksum(pickle.dumps(Payload(trap))),
        "a pickle for tensors": body_of(b"{}", tensors.getvalue()),
        "a length of JSON beyond the file": with_checksum(struct.pack("<Q", 1 << 63) + b"{}"),
        "JSON that is none": body_of(b"{", fine),
        "JSON that is no object": body_of(b"[1]", fine),
        "JSON nested too deeply": body_of(b"[" * 100_000, fine),
        "a header beyond the file": body_of(b"{}", struct.pack("<Q", 1 << 62)),
        "tensors beyond the file": body_of(b"{}", hostile_header({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})),
        "a shape that overflows": body_of(
            b"{}", hostile_header({"w": {"dtype": "F32", "shape": [1 << 62, 8], "data_offsets": [0, 4]}}, b"1234")
        ),
        "overlapping tensors": body_of(
            b"{}",
            hostile_header(
                {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")},
                b"1234",
            ),
        ),
    }


@pytest.mark.promise(number=16)
@pytest.mark.parametrize("kind", hostile_files(Path("unused")))
def test_a_hostile_file_is_refused_and_nothing_in_it_runs(kind: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / NEWEST).write_bytes(hostile_files(trap)[kind])
    with pytest.raises(CheckpointError, match="no checkpoint can be used"):
        checkpoint_file.load(folder)
    assert not trap.exists()
