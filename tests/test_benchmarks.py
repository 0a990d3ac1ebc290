"""Calculations of the benchmarks: plans and summaries of measurements."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def regimes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import regimes  # type: ignore[import-not-found, unused-ignore]

    return regimes


def test_luck_makes_a_regret_that_is_gone_with_the_best_held_out(regimes: ModuleType) -> None:
    wall = {"os-default": [1.0, 1.2, 1.0, 1.2, 1.1], "os-tuned": [1.2, 1.0, 1.2, 1.0, 1.0], "adaptive": [1.1, 1.1, 1.1, 1.1, 1.1]}
    rows = regimes.regrets({"policies": wall})
    assert rows["adaptive"]["regret"] == pytest.approx(1.1)
    assert rows["os-tuned"]["regret"] == 1.0
    assert rows["adaptive"]["regret held out"] == pytest.approx(1.1 / 1.2)  # the others' best is the slow one where it is judged


def test_a_policy_that_is_worse_in_every_repeat_is_so_with_the_best_held_out_too(regimes: ModuleType) -> None:
    wall = {"os-default": [1.0, 1.1, 0.9], "adaptive": [2.0, 2.2, 1.8]}
    assert regimes.regrets({"policies": wall})["adaptive"]["regret held out"] == pytest.approx(2.0)


def test_one_repeat_holds_nothing_out(regimes: ModuleType) -> None:
    rows = regimes.regrets({"policies": {"os-default": [1.0], "adaptive": [1.5]}})
    assert rows["adaptive"]["regret"] == 1.5
    assert "regret held out" not in rows["adaptive"]


def test_one_repeat_prints_its_tables(regimes: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    cell = {"name": "small-light-unlimited", "policies": {"os-default": [2.0], "adaptive": [1.0]}}
    regimes.print_tables([{**cell, "regrets": regimes.regrets(cell)}])
    assert "| small-light-unlimited | 1.00 | 0.50 |" in capsys.readouterr().out


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import splits  # type: ignore[import-not-found, unused-ignore]

    return splits


def test_the_most_important_cells_are_measured_first(splits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "CORES", tuple(range(16)))
    jobs = [job.name for job in splits.plan(splits.Settings(cores="4,8,12", regimes="heavy,light", turns=2))]
    assert jobs == [
        *("4-heavy", "8-heavy"),
        *("4-heavy-calibration", "8-heavy-calibration", "12-heavy-calibration"),
        *("4-heavy", "8-heavy"),
        *("12-heavy", "12-heavy"),
        *(("4-light", "8-light", "12-light") * 2),
    ]


def test_one_number_of_cores_is_not_the_last_one(splits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "CORES", (0, 1))
    settings = splits.Settings(cores="2", regimes="heavy", turns=2, calibrate_s=0.0)
    assert [job.name for job in splits.plan(settings)] == ["2-heavy", "2-heavy"]


def test_more_cores_than_there_are_are_refused(splits: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "CORES", (0, 1))
    with pytest.raises(ValueError, match=r"--cores has 4, must be in 2 \.\. 2"):
        splits.Settings(cores="2,4")


def test_a_fixed_split_is_compared_once(splits: ModuleType) -> None:
    fixed = {count: [name for name in splits.policies_of(count) if name.startswith("static")] for count in (2, 4, 8, 12)}
    assert fixed == {
        2: ["static:1"],
        4: ["static:1", "static:2"],
        8: ["static:1", "static:2", "static:4"],
        12: ["static:1", "static:3", "static:6"],
    }


def test_a_mode_lasts_until_the_next_decision(splits: ModuleType, tmp_path: Path) -> None:
    def decision(time: float, comm: int, comp: int, *, pinned: bool = True) -> str:
        allocation = {"comm": comm, "comp": comp, "pinned": pinned}
        return json.dumps({"event": "decision", "time": time, "allocation": allocation})

    log = tmp_path / "events.jsonl"
    waiting = json.dumps({"event": "wait", "why": "logits", "started": 1.5, "ended": 2.0})
    lines = [decision(0.0, 4, 0), decision(1.0, 1, 3), waiting, decision(3.0, 4, 4)]
    log.write_text("\n".join([*lines, decision(3.5, 4, 4, pinned=False)]) + "\n")
    assert splits.shares_of_modes(log, 4.0) == {"1+3": 0.5, "4+0": 0.25, "4+4": 0.125, "kernel": 0.125}


def test_a_policy_without_a_run_that_counts_has_no_figures(splits: ModuleType) -> None:
    def run(policy: str, wall_clock_s: float, *, valid: bool = True) -> dict[str, object]:
        times = dict.fromkeys(("stall_s", "hold_s", "forward_s", "backward_s", "comm_cpu_s"), 0.5)
        return {"policy": policy, "repeat": 0, "valid": valid, "wall_clock_s": wall_clock_s, "modes": {"kernel": 1.0}, **times}

    rows = splits.rows_of([run("os-default", 2.0), run("static:1", 1.0), run("dynamic", 3.0, valid=False)])
    assert rows["static:1"]["regret"] == 1.0
    assert rows["os-default"]["regret"] == 2.0
    assert rows["os-default"]["modes"] == {"kernel": 1.0}
    assert rows["dynamic"]["regret"] is None


def test_every_benchmark_can_be_imported() -> None:
    """They are run by hand, and rarely: what they use may have moved meanwhile."""
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    script = f"import importlib\nfor name in {names!r}: importlib.import_module(name)"
    finished = subprocess.run([sys.executable, "-c", script], cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "overhead" in names
