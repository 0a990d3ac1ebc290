"""Check rules of the code that no linter checks: import contracts, sizes, names, and the modules that an import loads."""

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
PACKAGES = ("proto/edgekd", "scheduler", "cloud_teacher", "edge_student")
MAX_FUNCTION_LINES = 60
STANDARD = sys.stdlib_module_names
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}

MAX_MODULES = 15

# Folders that exist on some machines only. Folders such as `/usr` and `/proc` exist on every machine.
FOREIGN_FOLDER = re.compile(r"(?<![\w.])/(?:work|Users)/")
CLIMB = re.compile(r"(?<![\w./])(?:\.\./)+[\w-][\w./-]*")


@cache
def project_files() -> tuple[Path, ...]:
    """Return all files that git does not ignore, except pictures; without git, all files outside .venv."""
    listing = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(listing, capture_output=True, text=True, check=False) if shutil.which("git") else None
    if git is not None and git.returncode == 0:
        paths = [ROOT / line for line in git.stdout.splitlines()]
    else:
        paths = [path for path in ROOT.rglob("*") if not {".git", ".venv", "__pycache__"} & set(path.parts)]
    return tuple(path for path in paths if path.is_file() and path.suffix != ".png")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def package_sources() -> list[Path]:
    modules = [path for path in project_files() if path.suffix == ".py" and "_pb2" not in path.name]
    return [path for path in modules if path.relative_to(ROOT).as_posix().startswith(PACKAGES)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules_after_importing(*modules: str) -> set[str]:
    """Return the names in sys.modules of a new interpreter that imported only these modules."""
    script = f"import sys\nfor name in {modules!r}: __import__(name)\nprint('\\n'.join(sys.modules))"
    fresh = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert fresh.returncode == 0, fresh.stderr
    return set(fresh.stdout.split())


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    linted = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_every_package_has_code() -> None:
    """Guard the tests below: without code in a package they would check nothing."""
    empty = [package for package in PACKAGES if not any(name_of(path).startswith(f"{package}/") for path in package_sources())]
    assert empty == []


def test_no_function_is_too_long() -> None:
    too_long = [
        f"{name_of(path)}:{node.lineno} {node.name}: {lines} lines"
        for path in package_sources()
        for node in ast.walk(ast.parse(text_of(path)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert too_long == []


def test_no_module_has_a_vague_name() -> None:
    assert [name_of(path) for path in package_sources() if path.stem in VAGUE_NAMES] == []


def test_package_files_are_only_a_docstring() -> None:
    more = [
        name_of(path)
        for path in package_sources()
        if path.name == "__init__.py" and name_of(path) != "edge_student/__init__.py"  # it has the Python interface
        if len((module := ast.parse(text_of(path))).body) != 1 or ast.get_docstring(module) is None
    ]
    assert more == []


def test_no_comment_has_open_work() -> None:
    marker = re.compile(r"\b(?:TO[D]O|FIX[M]E|X[X]X)\b")  # spelt so that this line does not match
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
    """Return the dotted names of all modules below one of our packages, except the entry points of the programs."""
    folder = ROOT / ("proto" if package.startswith("edgekd") else "") / package.replace(".", "/")
    paths = [folder.with_suffix(".py")] if folder.with_suffix(".py").is_file() else sorted(folder.rglob("*.py"))
    root = ROOT / "proto" if package.startswith("edgekd") else ROOT
    names = [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not name.endswith("__main__")]


def walls() -> list[tuple[str, list[str], list[str]]]:
    """Return name, modules and forbidden packages of every contract that forbids a third-party package."""
    ours = ("edge_student", "scheduler", "cloud_teacher", "edgekd")
    return [
        (contract["name"], [module for package in contract["source_modules"] for module in modules_of(package)], foreign)
        for contract in contracts()
        if contract["type"] == "forbidden"
        if (foreign := [name for name in contract["forbidden_modules"] if not name.startswith(ours) and name not in STANDARD])
    ]


@pytest.mark.parametrize(("modules", "forbidden"), [wall[1:] for wall in walls()], ids=[wall[0] for wall in walls()])
def test_forbidden_packages_are_not_loaded_at_run_time(modules: list[str], forbidden: list[str]) -> None:
    """import-linter checks the imports of our own modules. This checks all modules that the imported packages load."""
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
    ours = {Path(package).name for package in PACKAGES}
    found = [
        line
        for path in package_sources()
        for line in undeclared(path, ours, declared(), declared("timm", "hf", "onnx", "executorch", "tensorboard"))
    ]
    assert found == []


def test_tests_and_benchmarks_import_only_declared_dependencies() -> None:
    files = [path for path in project_files() if path.suffix == ".py" and name_of(path).startswith(("tests/", "benchmarks/"))]
    local = {Path(package).name for package in PACKAGES} | {path.stem for path in files}
    assert len(files) > 50
    assert [line for path in files for line in undeclared(path, local, declared("dev"), set())] == []


def test_no_folder_has_too_many_modules() -> None:
    folders = {path.parent for path in package_sources()}
    sizes = {name_of(folder): len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) for folder in folders}
    assert {folder: size for folder, size in sizes.items() if size > MAX_MODULES} == {}


def test_the_live_loop_loads_no_fitting_and_no_plotting() -> None:
    loaded = modules_after_importing("scheduler.live.loop", "scheduler.live.binding", "scheduler.policies.registry")
    unneeded = {"scipy", "matplotlib", "scheduler.model.fit", "scheduler.simulation.simulator", "scheduler.simulation.studies"}
    assert loaded & unneeded == set()
