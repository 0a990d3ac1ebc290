"""The logit store computes each row once, and never returns partial or mixed rows."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_teacher.logits.store import LogitStore, StoreInterruptedError, StoreKey, open_store


@pytest.fixture
def teacher(make_teacher: Any, key: StoreKey) -> Any:
    return make_teacher(key)


def expected(teacher: Any, ids: np.ndarray) -> np.ndarray:
    return np.stack([teacher.row(sample) for sample in ids.tolist()])


def test_rows_are_the_teachers_and_each_is_computed_once(tmp_path: Path, key: StoreKey, teacher: Any) -> None:
    store = open_store(tmp_path, key, teacher.logits)
    for ids in (np.array([7, 3, 7, 49, 0]), np.array([3, 4]), np.array([7])):
        rows = store.rows(ids)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, expected(teacher, ids))
    assert teacher.asked == [0, 3, 7, 49, 4]
    assert store.num_ready == 5
    assert store.missing(np.array([9, 3, 8, 9])).tolist() == [8, 9]
    store.close()


def test_store_survives_reopening(tmp_path: Path, key: StoreKey, teacher: Any) -> None:
    ids = np.arange(0, 50, 3)
    store = open_store(tmp_path, key, teacher.logits)
    store.fill(ids)
    store.close()
    asked = len(teacher.asked)
    again = open_store(tmp_path, key, teacher.logits)
    assert again.num_ready == len(ids)
    assert np.array_equal(again.rows(ids), expected(teacher, ids))
    assert len(teacher.asked) == asked
    again.close()


def test_closing_twice_is_closing_once_and_rows_that_were_read_stay(tmp_path: Path, key: StoreKey, teacher: Any) -> None:
    store = open_store(tmp_path, key, teacher.logits)
    rows = store.rows(np.array([1]))
    store.close()
    store.close()
    assert np.array_equal(rows, expected(teacher, np.array([1])))


def filled(folder: Path, key: StoreKey, teacher: Any) -> Path:
    """Fill and close a store. Returns its folder."""
    store = open_store(folder, key, teacher.logits)
    store.fill(np.arange(key.num_samples))
    store.close()
    teacher.asked.clear()
    return folder / key.folder


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (lambda f: os.truncate(f / "logits.f32", 100), "logits.f32 has 100 bytes, must have 1400"),
        (lambda f: os.truncate(f / "have", 3), "have has 3 bytes, must have 7"),
        (lambda f: (f / "have").unlink(), "have is missing"),
        (lambda f: (f / "meta.json").unlink(), "meta.json is missing"),
        (lambda f: (f / "meta.json").write_bytes(b'{"teacher_digest": "\xff'), "meta.json is damaged"),
        (lambda f: (f / "meta.json").write_text("[]"), "meta.json is of another"),
    ],
)
def test_damaged_store_is_created_again_with_a_warning(
    tmp_path: Path, key: StoreKey, teacher: Any, caplog: pytest.LogCaptureFixture, damage: Any, flaw: str
) -> None:
    damage(filled(tmp_path, key, teacher))
    store = open_store(tmp_path, key, teacher.logits)
    assert flaw in caplog.text
    assert store.num_ready == 0
    assert np.array_equal(store.rows(np.array([5])), expected(teacher, np.array([5])))
    store.close()


def test_foreign_digest_in_the_same_folder_is_never_mixed(
    tmp_path: Path, key: StoreKey, teacher: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The digests are equal in the 16 characters of the folder's name only."""
    filled(tmp_path, key, teacher)
    other = replace(key, teacher_digest=key.teacher_digest[:16] + "0" * 48)
    assert other.folder == key.folder
    store = open_store(tmp_path, other, teacher.logits)
    assert store.num_ready == 0
    assert "another teacher" in caplog.text
    store.close()
    assert json.loads((tmp_path / key.folder / "meta.json").read_text())["teacher_digest"] == other.teacher_digest


def test_stores_of_two_teachers_live_side_by_side(tmp_path: Path, key: StoreKey, teacher: Any) -> None:
    filled(tmp_path, key, teacher)
    other = open_store(tmp_path, replace(key, teacher_digest="0" * 64), teacher.logits)
    assert (other.num_ready, other.is_private) == (0, False)
    other.close()
    again = open_store(tmp_path, key, teacher.logits)
    assert again.num_ready == key.num_samples
    again.close()


def test_second_opener_gets_a_private_store_that_is_removed(
    tmp_path: Path, key: StoreKey, teacher: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    first = open_store(tmp_path, key, teacher.logits)
    second = open_store(tmp_path, key, teacher.logits)
    assert (first.is_private, second.is_private) == (False, True)
    assert "another server uses the logit store" in caplog.text
    ids = np.array([1, 2])
    assert np.array_equal(second.rows(ids), expected(teacher, ids))
    assert first.num_ready == 0
    assert list(scratch.iterdir()) == []
    first.close()
    second.close()
    third = open_store(tmp_path, key, teacher.logits)
    assert not third.is_private
    third.close()


KILLED = """
import os, sys, numpy as np
from pathlib import Path
from cloud_teacher.logits.store import StoreKey, open_store

def compute(ids):
    if ids[0] >= 256:
        os.kill(os.getpid(), 9)
    return np.repeat(ids[:, None], 3, axis=1).astype(np.float32)

key = StoreKey(teacher_digest="a" * 64, dataset_digest="b" * 64, num_samples=1000, num_classes=3)
open_store(Path(sys.argv[1]), key, compute).fill(np.arange(1000))
"""


def test_server_that_was_killed_leaves_a_usable_store(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -9
    key = StoreKey(teacher_digest="a" * 64, dataset_digest="b" * 64, num_samples=1000, num_classes=3)
    store = open_store(tmp_path, key, lambda ids: pytest.fail("nothing is to be computed"))
    assert not store.is_private
    assert store.num_ready == 256
    assert np.array_equal(store.rows(np.arange(256))[:, 1], np.arange(256))
    store.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_the_sample(
    tmp_path: Path, key: StoreKey, teacher: Any, bad: float
) -> None:
    teacher.answer[33] = np.array([0, 0, 0, bad, 0, 0, 0], np.float32)
    store = open_store(tmp_path, key, teacher.logits)
    with pytest.raises(ValueError, match="logits of sample 33 contain NaN or infinity"):
        store.rows(np.arange(30, 40))
    assert store.num_ready == 0
    store.close()


def test_full_disk_is_an_error_and_marks_nothing(
    tmp_path: Path, key: StoreKey, teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path, key, teacher.logits)

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            store.rows(np.array([1]))
    assert store.num_ready == 0
    assert np.array_equal(store.rows(np.array([1])), expected(teacher, np.array([1])))
    store.close()


def test_interrupt_ends_a_fill_in_another_thread_and_keeps_finished_rows(tmp_path: Path, key: StoreKey, teacher: Any) -> None:
    key = replace(key, num_samples=600)
    store = open_store(tmp_path, key, teacher.logits)
    progress: list[int] = []
    outcome: list[BaseException] = []

    def fill() -> None:
        try:
            store.fill(np.arange(600), on_progress=lambda rows: (progress.append(rows), store.interrupt()))
        except StoreInterruptedError as interrupted:
            outcome.append(interrupted)

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
    assert len(outcome) == 1
    assert progress == [256]
    assert store.num_ready == 256
    store.close()


def test_files_are_sparse_until_rows_come(tmp_path: Path, key: StoreKey, teacher: Any) -> None:
    store: LogitStore = open_store(tmp_path, replace(key, num_samples=1_000_000, num_classes=1000), teacher.logits)
    stat = (tmp_path / key.folder / "logits.f32").stat()
    assert stat.st_size == 4_000_000_000
    assert stat.st_blocks * 512 < 1_000_000
    store.close()
