"""The rules of the house that no linter knows: walls, sizes, names, and what an import may drag in."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("proto/edgekd", "scheduler", "cloud_teacher", "edge_student")
MAX_FUNCTION_LINES = 60
STANDARD = sys.stdlib_module_names
NAMES_THAT_SAY_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}

MAX_MODULES = 15

# Folders that exist on somebody's machine only. `/usr`, `/proc` and their like are everybody's.
FOREIGN_FOLDER = re.compile(r"(?<![\w.])/(?:work|Users)/")
CLIMB = re.compile(r"(?<![\w./])(?:\.\./)+[\w-][\w./-]*")


@cache
def project_files() -> tuple[Path, ...]:
    """What is committed or about to be, but for pictures: all that git does not ignore; without git, all but .venv."""
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(listing, capture_output=True, text=True, check=False) if shutil.which("git") else None
    if git is not None and git.returncode == 0:
        paths = [ROOT / line for line in git.stdout.splitlines()]
    else:
        paths = [path for path in ROOT.rglob("*") if not {".git", ".venv", "__pycache__"} & set(path.parts)]
    return tuple(path for path in paths if path.is_file() and path.suffix != ".png")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def sources_of_rooms() -> list[Path]:
    written = [path for path in project_files() if path.suffix == ".py" and "_pb2" not in path.name]
    return [path for path in written if path.relative_to(ROOT).as_posix().startswith(ROOMS)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules_after_importing(*modules: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter that imported these modules and nothing else."""
    script = f"import sys\nfor name in {modules!r}: __import__(name)\nprint('\\n'.join(sys.modules))"
    fresh = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert fresh.returncode == 0, fresh.stderr
    return set(fresh.stdout.split())


def test_rooms_do_not_look_through_the_walls() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    linted = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_room_holds_code() -> None:
    """Without this, a moved folder would make every rule below hold for nothing."""
    empty = [room for room in ROOMS if not any(name_of(path).startswith(f"{room}/") for path in sources_of_rooms())]
    assert empty == []


def test_no_function_is_longer_than_a_screen() -> None:
    too_long = [
        f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines"
        for path in sources_of_rooms()
        for node in ast.walk(ast.parse(text_of(path)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert too_long == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [name_of(path) for path in sources_of_rooms() if path.stem in NAMES_THAT_SAY_NOTHING] == []


def test_package_files_are_a_docstring_and_nothing_else() -> None:
    more = [
        name_of(path)
        for path in sources_of_rooms()
        if path.name == "__init__.py"
        if len((module := ast.parse(text_of(path))).body) != 1 or ast.get_docstring(module) is None
    ]
    assert more == []


def test_nothing_is_left_to_be_done_in_a_comment() -> None:
    marker = re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X)\b")  # spelt so that this line is not one
    left = [
        f"{name_of(path)}:{number}"
        for path in project_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if marker.search(line)
    ]
    assert left == []


def test_no_file_names_a_place_outside_the_repository() -> None:
    named = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in project_files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if FOREIGN_FOLDER.search(line) or any(leaves_repository(path, climb) for climb in CLIMB.findall(line))
    ]
    assert named == []


def leaves_repository(path: Path, climb: str) -> bool:
    return not (path.parent / climb).resolve().is_relative_to(ROOT)


def contracts() -> list[dict[str, Any]]:
    return tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]


def modules_of(package: str) -> list[str]:
    """Every module below a package of ours, by its dotted name, but the programs' entry points."""
    folder = ROOT / ("proto" if package.startswith("edgekd") else "") / package.replace(".", "/")
    paths = [folder.with_suffix(".py")] if folder.with_suffix(".py").is_file() else sorted(folder.rglob("*.py"))
    root = ROOT / "proto" if package.startswith("edgekd") else ROOT
    names = [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith("__main__")]


def walls() -> list[tuple[str, list[str], list[str]]]:
    """Name, modules and forbidden packages of every contract that forbids a package from outside the project."""
    ours = ("edge_student", "scheduler", "cloud_teacher", "edgekd")
    return [
        (contract["name"], [module for package in contract["source_modules"] for module in modules_of(package)], foreign)
        for contract in contracts()
        if contract["type"] == "forbidden"
        if (foreign := [name for name in contract["forbidden_modules"] if not name.startswith(ours) and name not in STANDARD])
    ]


@pytest.mark.parametrize(("modules", "forbidden"), [wall[1:] for wall in walls()], ids=[wall[0] for wall in walls()])
def test_what_a_contract_forbids_is_not_loaded_at_run_time_either(modules: list[str], forbidden: list[str]) -> None:
    """import-linter sees the imports of our own modules; this sees what the packages that they import drag in."""
    loaded = modules_after_importing(*modules)
    assert len(modules) > 3
    assert loaded >= set(modules)
    assert loaded & set(forbidden) == set()


def declared(*extras: str) -> set[str]:
    """Canonical names of the declared dependencies, with those of the named extras."""
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    requirements = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonical(re.split(r"[^\w.-]", line, maxsplit=1)[0]) for line in requirements}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports_of(path: Path) -> dict[str, bool]:
    """Top-level names that a file imports from outside the standard library, and whether all these imports are inside functions."""
    module = ast.parse(text_of(path))
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    found: dict[str, bool] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        else:
            continue
        for top in {name.partition(".")[0] for name in names} - STANDARD:
            found[top] = found.get(top, True) and id(node) in inner
    return found


@cache
def distributions() -> dict[str, list[str]]:
    """Distributions by the name to import. Cached, because reading the list of files of every installed package takes seconds."""
    return dict(packages_distributions())


def undeclared(path: Path, local: set[str], required: set[str], optional: set[str]) -> list[str]:
    """Imports of a file that are neither local nor required, nor optional and inside a function."""
    return [
        f"{name_of(path)}: {top}"
        for top, is_inner in imports_of(path).items()
        if top not in local
        # A package that is not installed here is looked up under its own name.
        if not {canonical(name) for name in distributions().get(top, [top])} & (required | optional if is_inner else required)
    ]


def test_packages_import_only_declared_dependencies() -> None:
    """A dependency of a dependency may vanish with the next version of it, so each imported package is declared here."""
    ours = {Path(room).name for room in ROOMS}
    found = [line for path in sources_of_rooms() for line in undeclared(path, ours, declared(), declared("timm"))]
    assert found == []


def test_tests_and_benchmarks_import_only_declared_dependencies() -> None:
    files = [path for path in project_files() if path.suffix == ".py" and name_of(path).startswith(("tests/", "benchmarks/"))]
    local = {Path(room).name for room in ROOMS} | {path.stem for path in files}
    assert len(files) > 50
    assert [line for path in files for line in undeclared(path, local, declared("dev"), set())] == []


def test_no_folder_has_more_modules_than_a_reader_can_survey() -> None:
    folders = {path.parent for path in sources_of_rooms()}
    sizes = {name_of(folder): len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) for folder in folders}
    assert {folder: size for folder, size in sizes.items() if size > MAX_MODULES} == {}


def test_deciding_live_needs_no_fitting_and_no_drawing() -> None:
    loaded = modules_after_importing("scheduler.live.loop", "scheduler.live.binding", "scheduler.policies.registry")
    unneeded = {"scipy", "matplotlib", "scheduler.model.fit", "scheduler.simulation.simulator", "scheduler.simulation.studies"}
    assert loaded & unneeded == set()
