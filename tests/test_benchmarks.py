"""Calculations of the benchmarks: plans and summaries of measurements."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def regimes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import regimes  # type: ignore[import-not-found, unused-ignore]

    return regimes


@pytest.fixture
def regime_report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import regime_report  # type: ignore[import-not-found, unused-ignore]

    return regime_report


@pytest.fixture
def contestants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import contestants  # type: ignore[import-not-found, unused-ignore]

    return contestants


def cell_of(name: str, neighbours: int, policies: dict[str, list[float]], plain: list[float] | None = None) -> dict[str, Any]:
    others = {} if plain is None else {"plain": plain}
    return {"name": name, "settings": {"neighbours": neighbours}, "policies": policies, "others": others}


def test_luck_makes_a_regret_that_is_gone_with_the_best_held_out(regime_report: ModuleType) -> None:
    wall = {"os-default": [1.0, 1.2, 1.0, 1.2, 1.1], "os-tuned": [1.2, 1.0, 1.2, 1.0, 1.0], "adaptive": [1.1, 1.1, 1.1, 1.1, 1.1]}
    rows = regime_report.rows_of(cell_of("a", 0, wall))
    assert rows["adaptive"]["regret"] == pytest.approx(1.1)
    assert rows["os-tuned"]["regret"] == 1.0
    assert rows["adaptive"]["regret held out"] == pytest.approx(1.1 / 1.2)  # the others' best is the slow one where it is judged


def test_a_policy_that_is_worse_in_every_repeat_is_so_with_the_best_held_out_too(regime_report: ModuleType) -> None:
    cell = cell_of("a", 0, {"os-default": [1.0, 1.1, 0.9], "adaptive": [2.0, 2.2, 1.8]})
    assert regime_report.rows_of(cell)["adaptive"]["regret held out"] == pytest.approx(2.0)


def test_one_repeat_holds_nothing_out(regime_report: ModuleType) -> None:
    rows = regime_report.rows_of(cell_of("a", 0, {"os-default": [1.0], "adaptive": [1.5]}))
    assert rows["adaptive"]["regret"] == 1.5
    assert "regret held out" not in rows["adaptive"]


def test_a_plain_program_is_a_baseline_and_no_policy(regime_report: ModuleType) -> None:
    rows = regime_report.rows_of(cell_of("a", 0, {"os-default": [2.0, 2.0], "adaptive": [1.0, 3.0]}, plain=[0.5, 1.0]))
    assert rows["adaptive"]["vs plain"] == pytest.approx(2.5)
    assert rows["plain"]["vs os-default"] == pytest.approx(0.375)
    assert rows["os-default"]["regret"] == 1.0
    assert "regret" not in rows["plain"]


def test_a_run_beside_a_neighbour_is_compared_with_the_quiet_median(regime_report: ModuleType) -> None:
    quiet = cell_of("a", 0, {"os-default": [1.0, 2.0, 3.0]}, plain=[1.0, 1.0, 1.0])
    busy = cell_of("a+1", 1, {"os-default": [3.0, 8.0, 4.0]}, plain=[2.0, 2.0, 5.0])
    rows = regime_report.rows_of(busy, quiet)
    assert rows["os-default"]["slowest vs quiet"] == 4.0
    assert rows["plain"]["slowest vs quiet"] == 5.0
    assert "slowest vs quiet" not in regime_report.rows_of(busy)["plain"]


def test_cells_with_neighbours_have_their_own_means(regime_report: ModuleType) -> None:
    cells = [
        cell_of(name, busy, {"os-default": [1.0], "adaptive": [wall]})
        for name, busy, wall in (("a", 0, 1), ("b", 0, 4), ("b+1", 1, 3))
    ]
    summary = regime_report.summarize([{**cell, "rows": regime_report.rows_of(cell)} for cell in cells])
    assert summary["quiet"]["adaptive"]["vs os-default"] == {"geometric_mean": pytest.approx(2.0), "worst": 4.0, "worst_cell": "b"}
    assert summary["with neighbours"]["adaptive"]["vs os-default"]["worst_cell"] == "b+1"


def test_one_repeat_prints_its_tables(regime_report: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    cell = cell_of("cnn-light-unlimited", 0, {"os-default": [2.0], "adaptive": [1.0]}, plain=[4.0])
    regime_report.print_tables([{**cell, "rows": regime_report.rows_of(cell)}])
    printed = capsys.readouterr().out
    assert "| cnn-light-unlimited | 0.50 | 0.25 | 1.00 |" in printed
    assert "| cnn-light-unlimited | 1.00 | 0.50 | 2.00 |" in printed


@pytest.mark.parametrize("student", ["cnn", "mobilenet_v3_small", "resnet18", "timm:resnet10t"])
@pytest.mark.parametrize(("comm", "expected"), [("1MB", 1e6), ("5MB", 5e6)])
def test_the_classes_of_a_regime_follow_from_its_bytes(regimes: ModuleType, student: str, comm: str, expected: float) -> None:
    cell = regimes.Cell(student=student, comm=comm)
    assert cell.batch_bytes == pytest.approx(expected, rel=1e-3)
    assert f"classes={cell.classes}," in cell.dataset


def test_the_probe_of_a_regime_takes_its_least_duration(regimes: ModuleType) -> None:
    asked: list[int] = []

    def seconds_of(cycles: int) -> float:
        asked.append(cycles)
        return 0.01 * cycles

    assert regimes.long_enough(seconds_of, 1.5) == (225, 2.25)
    assert asked == [10, 100, 225]


def test_another_checkout_is_a_contestant(contestants: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "edge_student").mkdir()
    found = contestants.contestants("os-default,static:1", f"before={tmp_path}:static:1")
    assert [(contestant.name, contestant.policy) for contestant in found] == [
        ("plain", None),
        ("os-default", "os-default"),
        ("static:1", "static:1"),
        ("before", "static:1"),
    ]
    assert [contestant.tree == tmp_path for contestant in found] == [False, False, False, True]


@pytest.mark.parametrize(
    ("other", "message"),
    [("before=x", "must be NAME=PATH:POLICY"), ("before=gone:dynamic", "gone has no folder edge_student")],
)
def test_a_wrong_checkout_is_refused(contestants: ModuleType, other: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contestants.contestants("os-default", other)


def test_two_contestants_of_one_name_are_refused(contestants: ModuleType) -> None:
    with pytest.raises(ValueError, match="two contestants are named dynamic"):
        contestants.contestants("dynamic,os-default,dynamic", None)


def test_neighbours_end_with_their_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from neighbours import neighbours  # type: ignore[import-not-found, unused-ignore]

    before = set(psutil.Process().children())
    with neighbours(2):
        assert len(set(psutil.Process().children()) - before) == 2
    assert set(psutil.Process().children()) == before


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


def test_the_plain_script_has_the_settings_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import plain_script  # type: ignore[import-not-found, unused-ignore]

    settings = plain_script.Settings(teacher="127.0.0.1:1")
    used = set(re.findall(r"\bsettings\.(\w+)", (BENCHMARKS / "plain_script.py").read_text(encoding="utf-8"))) - {"shared"}
    assert {"lr", "momentum"} <= used
    assert {name for name in used if not hasattr(settings, name)} == set()
