"""Writing output files atomically."""

import json
from pathlib import Path

import pytest

from edgekd.files import write_json, write_text


def test_a_file_is_replaced_whole_and_leaves_no_litter(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
