"""What the documents promise exists: commands and their flags, make targets, linked files, policies."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from scheduler.policies import POLICIES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"cloud-teacher": "cloud_teacher", "edge-student": "edge_student"}
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
SHELL_BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s/])(cloud-teacher|edge-student)[ \t]+([a-z]+)\b([^\n#|&;]*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)(?:#[^)]*)?\)")


def shell_of(path: Path) -> str:
    """The shell that a file shows, with continued lines joined: a document's fenced blocks, a Makefile as it is."""
    text = path.read_text(encoding="utf-8")
    shown = text if path.name == "Makefile" else "\n".join(SHELL_BLOCK.findall(text))
    return re.sub(r"\\\n\s*", " ", shown)


def shown_commands() -> dict[tuple[str, str], set[str]]:
    """The flags shown anywhere for each program and subcommand."""
    flags: dict[tuple[str, str], set[str]] = {}
    for path in [*DOCUMENTS, ROOT / "Makefile"]:
        for program, subcommand, rest in COMMAND.findall(shell_of(path)):
            flags.setdefault((program, subcommand), set()).update(FLAG.findall(rest))
    return flags


@cache
def help_of(program: str, subcommand: str) -> str:
    command = [sys.executable, "-m", PACKAGES[program], subcommand, "--help"]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, f"{program} {subcommand} --help: {shown.stderr or shown.stdout}"
    return shown.stdout


@pytest.mark.parametrize(("program", "subcommand"), sorted(shown_commands()))
def test_every_shown_flag_exists(program: str, subcommand: str) -> None:
    shown = shown_commands()[program, subcommand]
    assert shown - set(FLAG.findall(help_of(program, subcommand))) == set()


def test_the_main_commands_are_shown() -> None:
    """Without this, a changed fence would make the test above hold for nothing."""
    expected = {
        ("cloud-teacher", "train"),
        ("cloud-teacher", "serve"),
        ("edge-student", "train"),
        ("edge-student", "compare"),
    }
    assert expected <= set(shown_commands())


def test_every_shown_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {target for path in DOCUMENTS for target in re.findall(r"^make ([a-z]+)", shell_of(path), re.MULTILINE)}
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
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    # A policy with a parameter is shown as `static:<c>`, so the closing backtick may come after a colon.
    missing = [name for name in POLICIES if not re.search(rf"`{re.escape(name)}[`:]", readme)]
    assert missing == []
