"""Output files: replaced atomically, and errors that name the flag or the path."""

import json
import os
from pathlib import Path

import pytest

from edgekd.files import named_by, replace_atomically, write_json, write_text


def test_a_file_is_replaced_whole_and_leaves_no_litter(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    replace_atomically(path, lambda fresh: fresh.write_text("new"))
    assert path.read_text() == "new"


def test_old_temporary_folders_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    old, young, other = tmp_path / ".a.12345678", tmp_path / ".a.abcdefgh", tmp_path / ".b.12345678"
    for folder in (old, young, other):
        folder.mkdir()
        (folder / "half").write_text("half")
    for folder in (old, other):
        os.utime(folder, (0, 0))
    replace_atomically(tmp_path / "a", lambda fresh: fresh.write_text("new"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", young.name, other.name}


def test_an_impossible_path_is_a_value_error_and_a_full_disk_is_not() -> None:
    with pytest.raises(ValueError, match="--store: /proc/nope/store: No such file or directory"):
        with named_by("--store"):
            Path("/proc/nope/store").mkdir()
    with pytest.raises(OSError, match="full"):
        with named_by("--store"):
            raise OSError(28, "full", "/store")


def test_a_failed_write_keeps_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail(fresh: Path) -> None:
        fresh.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as failed:
        replace_atomically(path, fail)
    assert failed.value.filename == str(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
