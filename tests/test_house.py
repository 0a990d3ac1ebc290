"""The rules of the house that no linter knows: walls, sizes, names, and what an import may drag in."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("proto/edgekd", "scheduler", "cloud_teacher", "edge_student")
MAX_FUNCTION_LINES = 60
NAMES_THAT_SAY_NOTHING = {"util", "utils", "helper", "helpers", "common", "misc", "manager"}

# What is not named here is pure: a new module of scheduler has to earn its place among these.
EFFECTS = {
    "scheduler.binding",
    "scheduler.threads",
    "scheduler.loop",
    "scheduler.comm_side",
    "scheduler.comp_side",
    "scheduler.core_count",
    "scheduler.figures",
    "scheduler.flags",
    "scheduler.__main__",
}
PURE_HALF = sorted({f"scheduler.{path.stem}" for path in (ROOT / "scheduler").glob("*.py") if path.name != "__init__.py"} - EFFECTS)
LIGHT_PROGRAM = tuple(
    f"edge_student.{name}"
    for name in (
        "comm_worker",
        "probe",
        "description",
        "connection",
        "watchdog",
        "patience",
        "receiver",
        "streams",
        "logit_source",
        "logit_cache",
        "ring",
        "messages",
    )
)
DOCTOR = (
    *(f"edge_student.{path.stem}" for path in sorted((ROOT / "edge_student").glob("doctor*.py"))),
    "edge_student.finding",
    "edge_student.certificate",
)
LIGHT_SHARED = (
    "edgekd.order",
    "edgekd.codec",
    "edgekd.layouts",
    "edgekd.chunks",
    "edgekd.inputs",
    "edgekd.wire",
    "edgekd.v1.teacher_pb2",
)

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


def test_contract_of_the_pure_half_names_every_pure_module() -> None:
    settings = tomllib.loads(text_of(ROOT / "pyproject.toml"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    guarded = [contract["source_modules"] for contract in contracts if "time" in contract["forbidden_modules"]]
    assert [sorted(modules) for modules in guarded] == [PURE_HALF]


def test_the_light_program_is_the_one_that_import_linter_guards() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (guarded,) = (
        set(wall["source_modules"]) for wall in contracts if wall["name"].startswith("the comm worker is a light program")
    )
    assert guarded >= set(LIGHT_PROGRAM)
    assert guarded - set(LIGHT_PROGRAM) <= {"edge_student.ring", "edge_student.messages"}


def test_pure_half_of_scheduler_loads_neither_torch_nor_grpc() -> None:
    loaded = modules_after_importing(*PURE_HALF)
    assert loaded >= {"scheduler.controller", *PURE_HALF}
    assert loaded & {"torch", "grpc", "psutil", "matplotlib", *EFFECTS} == set()


def test_deciding_live_needs_no_fitting_and_no_drawing() -> None:
    loaded = modules_after_importing("scheduler.loop", "scheduler.binding", "scheduler.policies")
    assert loaded & {"scipy", "matplotlib", "scheduler.fit", "scheduler.simulator", "scheduler.studies"} == set()


@pytest.mark.parametrize(
    "modules", [LIGHT_PROGRAM, LIGHT_SHARED, DOCTOR], ids=["comm worker", "schema, codec, order, wire", "doctor"]
)
def test_light_modules_never_load_torch(modules: tuple[str, ...]) -> None:
    loaded = modules_after_importing(*modules)
    assert loaded >= set(modules)
    heavy = {"torch", "torchvision", "sklearn", "scipy", "edge_student.trainer", "edge_student.runtime"}
    assert loaded & heavy == set()
