"""A module of the user's own with the name of one of our packages is reported in one line."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "command", [["-m", "edge_student", "--help"], ["-c", "from edgekd.cli.shadow import core_scheduler; core_scheduler()"]]
)
def test_a_module_that_shadows_a_package_is_named(tmp_path: Path, command: list[str]) -> None:
    name = "scheduler"
    (tmp_path / f"{name}.py").write_text("x = 1\n")
    finished = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr == (
        f"error: {tmp_path / name}.py has the name of EdgeKD's package {name}: rename it, uninstall it, or remove its folder from "
        "PYTHONPATH\n"
    )


def test_other_modules_in_the_current_folder_are_no_obstacle(tmp_path: Path) -> None:
    """`python -m` searches the current folder first; the programs do so for the user's own modules only, and last."""
    (tmp_path / "PIL.py").write_text("raise SystemExit(9)\n")
    code = "import sys; sys.path.pop(0); from edgekd.data.user_modules import import_attribute as i; import PIL; "
    code += "i('own', 'f', what='x', forms='y')(); print(sys.path[-1])"
    (tmp_path / "own.py").write_text("import PIL.Image\ndef f(): pass\n")
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert finished.stdout.strip() == str(tmp_path)
    assert finished.returncode == 0
