"""What the benchmarks compute from their measurements."""

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
