"""HOST:PORT, and files that are whole or not there."""

from pathlib import Path

import pytest

from edgekd.address import parse_address
from edgekd.files import replace_atomically


@pytest.mark.parametrize(
    ("text", "expected"), [("vm:1", ("vm", 1)), ("127.0.0.1:50051", ("127.0.0.1", 50051)), ("[::1]:65535", ("::1", 65535))]
)
def test_host_and_port_are_told_apart(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text, flag="--teacher", lowest_port=1) == expected


@pytest.mark.parametrize("text", ["vm", "vm:", ":1", "vm:0", "vm:65536", "vm:x", "::1:50051", "vm:-1", ""])
def test_anything_else_is_refused_with_its_flag(text: str) -> None:
    with pytest.raises(ValueError, match=r"--teacher is .*HOST:PORT"):
        parse_address(text, flag="--teacher", lowest_port=1)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    replace_atomically(path, lambda fresh: fresh.write_text("new"))
    assert path.read_text() == "new"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
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
