"""What the documents promise exists: commands with their flags, settings files, make targets, linked files, policies."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

import cloud_teacher.settings
import edge_student.settings.doctor
import edge_student.settings.fetch
import edge_student.settings.student
from edgekd.cli.command import parse
from scheduler.flags import COMMANDS
from scheduler.flags import parse as parse_core_scheduler
from scheduler.model.samples import Samples
from scheduler.model.scenario import Scenario
from scheduler.policies.registry import POLICIES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS: dict[tuple[str, str], type[Any]] = {
    ("cloud-teacher", "train"): cloud_teacher.settings.TrainConfig,
    ("cloud-teacher", "serve"): cloud_teacher.settings.ServeConfig,
    ("cloud-teacher", "precompute"): cloud_teacher.settings.PrecomputeConfig,
    ("edge-student", "train"): edge_student.settings.student.TrainConfig,
    ("edge-student", "compare"): edge_student.settings.student.CompareConfig,
    ("edge-student", "calibrate"): edge_student.settings.student.CalibrateConfig,
    ("edge-student", "fetch"): edge_student.settings.fetch.FetchConfig,
    ("edge-student", "doctor"): edge_student.settings.doctor.DoctorConfig,
}
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
JSON_BLOCK = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)
TOML_BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\S*/)?(cloud-teacher|edge-student|core-scheduler) (.+)$", re.MULTILINE)
PROOF = re.compile(r"pytest\.mark\.promise\(number=(\d+)\)")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")


def shown_shell(text: str) -> str:
    """The fenced shell of a document, with continued lines joined."""
    return join_lines("\n".join(SHELL_BLOCK.findall(text)))


def join_lines(shell: str) -> str:
    return re.sub(r"\\\n\s*", " ", shell)


def shown_commands() -> list[str]:
    """Every command line of our programs in the documents' fenced shell."""
    shells = [shown_shell(path.read_text(encoding="utf-8")) for path in DOCUMENTS]
    return [" ".join(found) for shell in shells for found in COMMAND.findall(shell)]


def check(command: str, settings: Path) -> None:
    """Parse a shown command line as its program would, with `settings` for the file it names. ValueError if it is refused."""
    program, subcommand, *flags = shlex.split(command, comments=True)
    if "--config" in flags:
        flags[flags.index("--config") + 1] = str(settings)
    if program == "core-scheduler":
        parse_core_scheduler(subcommand, flags)
    else:
        parse(CONFIGS[program, subcommand], flags, prog=program, description="")


def test_every_shown_document_is_accepted() -> None:
    shown = [json.loads(block) for block in JSON_BLOCK.findall(README)]
    assert len(shown) == 2
    for document in shown:
        (Samples if "seconds" in json.dumps(document) else Scenario).from_json(document)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """README's example of a settings file."""
    (block,) = TOML_BLOCK.findall(README)
    path = tmp_path / "pi.toml"
    path.write_text(block, encoding="utf-8")
    return path


@pytest.mark.parametrize("command", shown_commands())
def test_every_shown_command_is_accepted(command: str, settings: Path) -> None:
    check(command, settings)


def test_the_main_commands_are_shown() -> None:
    """Without this, a changed fence would make the test above hold for nothing."""
    shown = {tuple(command.split()[:2]) for command in shown_commands()}
    assert shown == {*CONFIGS, *(("core-scheduler", command) for command in COMMANDS)}
    assert any("--config" in command for command in shown_commands())


def test_a_wrong_flag_in_a_document_would_be_noticed(settings: Path) -> None:
    with pytest.raises(ValueError, match="--cyles"):
        check("edge-student train --config pi.toml --cyles 3", settings)


def test_demo_of_the_makefile_is_accepted(settings: Path) -> None:
    planned = subprocess.run(["make", "--dry-run", "demo"], cwd=ROOT, capture_output=True, text=True, check=True)
    (demo,) = COMMAND.findall(join_lines(planned.stdout))
    check(" ".join(demo), settings)
    assert edge_student.settings.student.CompareConfig().private == "digits:private", "the demo downloads nothing"
    assert "--policies" not in demo[1], "the demo compares every policy that the machine's cores allow"


def test_every_shown_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shells = [shown_shell(path.read_text(encoding="utf-8")) for path in DOCUMENTS]
    shown = {target for shell in shells for target in re.findall(r"^make ([a-z]+)", shell, re.MULTILINE)}
    assert {"demo", "test"} <= shown <= targets


def test_every_link_leads_to_a_file() -> None:
    dead = [
        f"{path.relative_to(ROOT)}: {target}"
        for path in DOCUMENTS
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert dead == []


def test_readme_names_every_policy() -> None:
    # A policy with a parameter is shown as `static:<c>`, so what follows the name may be a colon.
    assert [name for name in POLICIES if not re.search(rf"^\| `{re.escape(name)}[`:]", README, re.MULTILINE)] == []


def proofs() -> dict[int, set[str]]:
    """The test files that have a proof of each promise, by its number."""
    found: dict[int, set[str]] = {}
    for path in sorted(ROOT.glob("tests/**/*.py")):
        for number in PROOF.findall(path.read_text(encoding="utf-8")):
            found.setdefault(int(number), set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_every_promise_names_the_tests_that_prove_it() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = {int(number): rest for number, rest in re.findall(r"^\| (\d+) \|(.*)$", text, re.MULTILINE)}
    named = {number: {link.removeprefix("../") for link in LINK.findall(rest)} for number, rest in rows.items()}
    assert sorted(named) == list(range(1, 27))
    assert named == proofs()


def test_changelog_has_a_place_for_the_version_in_the_making() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
