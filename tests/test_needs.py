"""The tests need no network and only packages from pip, except tests with the marker `needs`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from needs import NEEDS, hide_commands

DOWNLOAD = """
from edgekd.data import sources
from edgekd.data.datasets import load_dataset
from pathlib import Path

sources.DEBIAN_FASHION_MNIST = Path("/nonexistent")
for name in ("fashion-mnist", "cifar10"):  # over http, over https
    try:
        load_dataset(f"{name}:public")
    except Exception as error:
        print(" ".join(str(error).split()))
"""


@pytest.mark.slow
def test_a_program_that_a_test_starts_can_download_nothing() -> None:
    tried = subprocess.run([sys.executable, "-c", DOWNLOAD], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr
    assert [("cannot download data set" in line, "Connection refused" in line) for line in tried.stdout.splitlines()] == [
        (True, True),
        (True, True),
    ], tried.stdout


def test_hidden_commands_are_not_found_and_all_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {command for command in ("sh", "env", "python3") if shutil.which(command)}
    monkeypatch.setenv("PATH", hide_commands(tmp_path))
    assert {command for command in others if shutil.which(command)} == others
    assert [command for need in NEEDS.values() for command in need.commands if shutil.which(command)] == []
    assert os.get_exec_path() == [str(tmp_path)]


def test_every_need_has_a_remedy() -> None:
    assert [name for name, need in NEEDS.items() if not need.remedy] == []


def test_ci_installs_every_package_that_is_needed() -> None:
    script = (Path(__file__).parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    (line,) = [line for line in script.splitlines() if line.startswith("packages=(")]
    assert set(line.removeprefix("packages=(").removesuffix(")").split()) == {need.package for need in NEEDS.values()} - {""}
