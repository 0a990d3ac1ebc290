"""The programs in examples/ run to their end, and learn."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import teacher

pytestmark = pytest.mark.slow
EXAMPLES = Path("examples").resolve()


def run_example(name: str, address: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / name), address]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=cwd)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def train_teacher(folder: Path, dataset: str, model: str) -> str:
    """Return the path of the weights."""
    weights = str(folder / "teacher.safetensors")
    command = [sys.executable, "-m", "cloud_teacher", "train", "--dataset", dataset, "--model", model, "--epochs", "15"]
    subprocess.run([*command, "--out", weights], check=True, capture_output=True, timeout=120)
    return weights


def accuracy_in(text: str) -> float:
    return float(re.search(r"accuracy (\S+)", text.replace(",", " "))[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def trained_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a teacher of digits that has learnt."""
    folder = tmp_path_factory.mktemp("teacher")
    weights = train_teacher(folder, "digits:public", "cnn:width=32")
    with teacher(folder / "store", "--model", "cnn:width=32", "--weights", weights) as running:
        yield running.address


@pytest.mark.parametrize("name", ["quickstart.py", "own_loop.py"])
def test_examples_of_digits_learn(name: str, trained_teacher: str, tmp_path: Path) -> None:
    assert accuracy_in(run_example(name, trained_teacher, tmp_path)) > 0.8


def test_tensorboard_has_files(trained_teacher: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert accuracy_in(run_example("tensorboard_logging.py", trained_teacher, tmp_path)) > 0.8
    assert list((tmp_path / "runs" / "board").glob("events.out.tfevents.*"))


def test_own_data_set_of_a_sensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    weights = train_teacher(tmp_path, "own_dataset:Windows:public", "own_dataset:network")
    flags = ("--model", "own_dataset:network", "--weights", weights)
    with teacher(tmp_path / "store", *flags, dataset="own_dataset:Windows:public", is_warm=False) as running:
        assert accuracy_in(run_example("own_dataset.py", running.address, tmp_path)) > 0.8


def test_a_pretrained_teacher_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*map(str, range(10)), *map(chr, range(ord("a"), ord("z") + 1))]
    (tmp_path / "names.txt").write_text("\n".join(names))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    flags = (
        "--model",
        "pretrained_teacher:network",
        "--classes",
        str(tmp_path / "names.txt"),
        "--keep-classes",
        "0,1,2,3,4,5,6,7,8,9",
    )
    with teacher(tmp_path / "store", *flags, is_warm=False) as running:
        assert accuracy_in(run_example("pretrained_teacher.py", running.address, tmp_path)) > 0.5


def test_examples_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) == 5
    assert max(lengths.values()) <= 40, lengths
