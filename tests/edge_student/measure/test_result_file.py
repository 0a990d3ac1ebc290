"""The result file of a benchmark."""

import json
from dataclasses import dataclass
from pathlib import Path

from edge_student.measure.result_file import write_results


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    rounds: int
    json: Path | None


def test_a_result_file_has_its_provenance_and_settings_first(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_results(path, cores=(0,), settings=Settings(rounds=2, json=path), results={"ratio": 0.5})
    written = json.loads(path.read_text())
    assert list(written) == ["command", "host", "software", "settings", "ratio"]
    assert written["host"]["cores_used"] == [0]
    assert written["settings"] == {"rounds": 2, "json": str(path)}
    assert written["ratio"] == 0.5


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    write_results(None, cores=(0,), settings=Settings(rounds=2, json=None), results={})
    assert list(tmp_path.iterdir()) == []
