"""Check the documents against the programs: commands, settings files, make targets, links, policies, and numbers of README."""

import json
import re
import shlex
import subprocess
import textwrap
import tomllib
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text

import cloud_teacher.settings
import edge_student.settings.doctor
import edge_student.settings.fetch
import edge_student.settings.inference
import edge_student.settings.student
import edge_student.settings.watch
import scheduler.settings
from edgekd.cli.command import parse
from edgekd.models.card import parse_card
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
    ("edge-student", "watch"): edge_student.settings.watch.WatchConfig,
    ("edge-student", "evaluate"): edge_student.settings.inference.EvaluateConfig,
    ("edge-student", "predict"): edge_student.settings.inference.PredictConfig,
    ("edge-student", "export"): edge_student.settings.inference.ExportConfig,
    ("core-scheduler", "simulate"): scheduler.settings.SimulateConfig,
    ("core-scheduler", "figures"): scheduler.settings.FiguresConfig,
    ("core-scheduler", "fit"): scheduler.settings.FitConfig,
}
FENCED_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\S*/)?(cloud-teacher|edge-student|core-scheduler) (.+)$", re.MULTILINE)
PROOF = re.compile(r"pytest\.mark\.promise\(number=(\d+)\)")
LINK = re.compile(r"(?:\]\(|<img src=\")(?!https?://)([^)#\"]*)(?:#([^)\"]*))?[)\"]")
HEADING = re.compile(r"^#{1,6} (.+?)$", re.MULTILINE)
MAX_README_LINES = 180
PHONE_PIXELS = 390  # the width of a narrow page; the README's text column is 32 pixels narrower


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language, without their indentation."""
    return [textwrap.dedent(block) for found, block in FENCED_BLOCK.findall(text) if found == language]


def shown_blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language in all documents."""
    return [block for path in DOCUMENTS for block in blocks(path.read_text(encoding="utf-8"), language)]


def shown_shell(text: str) -> str:
    """Return the fenced shell of a document, with continued lines joined."""
    return join_lines("\n".join(blocks(text, "sh")))


def join_lines(shell: str) -> str:
    return re.sub(r"\\\n\s*", " ", shell)


def shown_commands() -> list[str]:
    """Return every command line of our programs in the documents' fenced shell."""
    shells = [shown_shell(path.read_text(encoding="utf-8")) for path in DOCUMENTS]
    return [" ".join(found) for shell in shells for found in COMMAND.findall(shell)]


def check(command: str, settings: Path) -> None:
    """Parse a shown command line as its program would, with `settings` as its file. Raises ValueError if it is rejected."""
    program, subcommand, *flags = shlex.split(command, comments=True)
    if "--config" in flags:
        flags[flags.index("--config") + 1] = str(settings)
    parse(CONFIGS[program, subcommand], flags, prog=program, description="")


def test_every_shown_document_is_accepted() -> None:
    shown = [json.loads(block) for block in shown_blocks("json")]
    cards = [document for document in shown if "normalize" in document]
    kinds = [Samples if "seconds" in json.dumps(document) else Scenario for document in shown if document not in cards]
    assert set(kinds) == {Samples, Scenario}
    for kind, document in zip(kinds, (document for document in shown if document not in cards), strict=True):
        kind.from_json(document)
    assert cards
    for card in cards:
        parse_card(card, "shown")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Write the one settings file that the documents show, and return its path."""
    (block,) = shown_blocks("toml")
    path = tmp_path / "pi.toml"
    path.write_text(block, encoding="utf-8")
    return path


@pytest.mark.parametrize("command", shown_commands())
def test_every_shown_command_is_accepted(command: str, settings: Path) -> None:
    check(command, settings)


def test_the_main_commands_are_shown() -> None:
    """Guard the test above: a changed fence would leave it without commands."""
    shown = {tuple(command.split()[:2]) for command in shown_commands()}
    assert shown == set(CONFIGS)
    assert any("--config" in command for command in shown_commands())


def test_every_command_is_shown_in_a_block_that_is_parsed() -> None:
    """Guard the test above: a command in a block of another language would not be parsed."""
    hidden = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in DOCUMENTS
        for language, block in FENCED_BLOCK.findall(path.read_text(encoding="utf-8"))
        if language != "sh"
        if (found := COMMAND.search(textwrap.dedent(block)))
    ]
    assert hidden == []


def test_every_fence_is_closed() -> None:
    """Guard the tests above: one unclosed fence would swap text and blocks."""
    fences = {
        path.relative_to(ROOT): len(re.findall(r"^ *```", path.read_text(encoding="utf-8"), re.MULTILINE)) for path in DOCUMENTS
    }
    found = {path.relative_to(ROOT): len(FENCED_BLOCK.findall(path.read_text(encoding="utf-8"))) for path in DOCUMENTS}
    assert {path: count for path, count in fences.items() if count != 2 * found[path]} == {}


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


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in HEADING.findall(FENCED_BLOCK.sub("", text)):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip())
        anchor = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def dead_links(path: Path, text: str) -> list[str]:
    """Return the links of a document whose file or heading does not exist."""
    dead = []
    for target, anchor in LINK.findall(FENCED_BLOCK.sub("", text)):
        file = path.parent / target if target else path
        if target and not file.exists():
            dead.append(f"{path.relative_to(ROOT)}: {target}")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8") if target else text):
            dead.append(f"{path.relative_to(ROOT)}: {target}#{anchor}")
    return dead


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    assert [link for path, text in texts.items() for link in dead_links(path, text)] == []
    assert sum(bool(anchor) for text in texts.values() for _, anchor in LINK.findall(text)) >= 5


def test_a_dead_link_is_noticed() -> None:
    text = '# A `b`: c\n[1](#a-b-c) [2](#a) [3](gone.md) [4](README.md#gone) <img src="gone.png"> [5](README.md)'
    assert [link.partition(": ")[2] for link in dead_links(ROOT / "X.md", text)] == ["#a", "gone.md", "README.md#gone", "gone.png"]


def test_every_page_is_listed_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert len(pages) >= 10
    assert pages == {target for target, _ in LINK.findall(index) if target.endswith(".md") and "/" not in target}


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES


def cells_of(name: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((ROOT / "docs" / "results" / name).read_text(encoding="utf-8"))["cells"]
    return cells


def test_the_ratios_of_readme_are_those_of_the_plain_script() -> None:
    readme = README.replace("\n", " ")
    in_shards = [cell for name in ("", "-1mb") for cell in cells_of(f"workers-quiet{name}.json")]
    shown = [cell for cell in in_shards if cell["settings"]["student"] != "resnet18"] + cells_of("workers-resnet18.json")
    quiet = [cell["rows"]["adaptive"]["vs plain"] for cell in shown]
    assert f"it takes {min(quiet):.2f} to {max(quiet):.2f} of the script's time" in readme
    beside = [cell["rows"] for cell in cells_of("workers-neighbour.json") if cell["name"].endswith("+1")]
    ratios = [rows["adaptive"]["vs plain"] for rows in beside]
    assert f"training takes {min(ratios):.2f} to {max(ratios):.2f} of the time of a plain" in readme
    for name, words in (("adaptive", "It takes {} to {} times its own quiet time"), ("plain", "the script {} to {} times")):
        slowest = [rows[name]["slowest vs quiet"] for rows in beside]
        assert words.format(f"{min(slowest):.1f}", f"{max(slowest):.1f}") in readme


def test_the_pictures_of_readme_are_readable_on_a_phone() -> None:
    spec = spec_from_file_location("readme_charts", ROOT / "docs" / "figures" / "readme_charts.py")
    assert spec is not None
    assert spec.loader is not None
    charts = module_from_spec(spec)
    spec.loader.exec_module(charts)
    for name in ("regimes", "timeline"):
        figure = charts.figure_of(name)
        texts = [text for text in figure.findobj(Text) if text.get_text()]
        pixels_per_point = (PHONE_PIXELS - 32) / (72 * figure.get_size_inches()[0])
        assert len(texts) > 10
        assert min(text.get_fontsize() for text in texts) * pixels_per_point >= 11
        assert (ROOT / "docs" / "figures" / f"readme_{name}.png").is_file()


def test_readme_names_every_policy() -> None:
    # A policy with a parameter is shown as `static:<c>`, so a colon may follow the name.
    assert [name for name in POLICIES if not re.search(rf"^\| `{re.escape(name)}[`:]", README, re.MULTILINE)] == []


def test_the_help_of_train_names_every_policy() -> None:
    source = (ROOT / "edge_student" / "settings" / "student.py").read_text(encoding="utf-8")
    (text,) = re.findall(r'^    policy: str = [^\n]*\n    """(.*?)"""', source, re.MULTILINE | re.DOTALL)
    assert set(re.split(r", | or ", " ".join(text.split()).removeprefix("Scheduling policy: ").rstrip("."))) == {
        kind.usage for kind in POLICIES.values()
    }


def proofs() -> dict[int, set[str]]:
    """Return the test files that prove each promise, by its number."""
    found: dict[int, set[str]] = {}
    for path in sorted(ROOT.glob("tests/**/*.py")):
        for number in PROOF.findall(path.read_text(encoding="utf-8")):
            found.setdefault(int(number), set()).add(path.relative_to(ROOT).as_posix())
    return found


def test_every_promise_names_the_tests_that_prove_it() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = {int(number): rest for number, rest in re.findall(r"^\| (\d+) \|(.*)$", text, re.MULTILINE)}
    named = {number: {link.removeprefix("../") for link, _ in LINK.findall(rest)} for number, rest in rows.items()}
    assert sorted(named) == [*range(1, 30), 34]
    assert named == proofs()


def test_changelog_has_a_place_for_the_version_in_the_making() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert version in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
