"""The --help of every command: complete, short sentences, and each default shown once."""

import pkgutil
import re
from pathlib import Path

import pytest

import cloud_teacher.__main__ as cloud
import edge_student.__main__ as edge
from edge_student.settings.fetch import FetchConfig
from edgekd.cli.command import parse
from edgekd.cli.flags import GROUPS, fields_of, group_of, help_texts, print_help

COMMANDS = {
    f"{program} {name}": (pkgutil.resolve_name(config_class), summary)
    for program, commands in (("edge-student", edge.COMMANDS), ("cloud-teacher", cloud.COMMANDS))
    for name, (config_class, _, summary) in commands.items()
}
each_command = pytest.mark.parametrize("command", COMMANDS)
MAX_WORDS = 25


def shown(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int) -> str:
    config_class, summary = COMMANDS[command]
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        print_help(config_class, prog=command, description=summary)
    return capsys.readouterr().out


@each_command
def test_every_flag_has_a_group_and_short_sentences(command: str) -> None:
    config_class, _ = COMMANDS[command]
    texts = help_texts(config_class)
    for field in fields_of(config_class):
        assert group_of(config_class, field) in GROUPS, field.name
        sentences = re.split(r"(?<=\.)\s", re.sub(r"\(default: [^)]*\)", "", texts[field.name]).strip())
        assert all(len(sentence.split()) <= MAX_WORDS for sentence in sentences), field.name
        assert texts[field.name].endswith((".", ")")), field.name


@each_command
def test_a_default_is_shown_once_and_never_as_none(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    help_text = shown(command, monkeypatch, capsys, 300)
    assert "None" not in help_text
    config_class, _ = COMMANDS[command]
    texts = help_texts(config_class)
    for field in fields_of(config_class):
        assert "(default: " not in texts[field.name] or field.default is None, field.name


@each_command
def test_help_fits_80_columns_in_groups_of_a_fixed_order(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(command, monkeypatch, capsys, 80).splitlines()
    assert max(map(len, lines[1:])) <= 80  # a terminal wraps the usage
    titles = [match[1] for line in lines if (match := re.search(r"(\w+) options \W+$", line))]
    assert titles == [group for group in GROUPS if group in titles]
    assert len(titles) >= 1


def test_fetch_reads_a_settings_file_of_the_other_commands(tmp_path: Path) -> None:
    path = tmp_path / "pi.toml"
    path.write_text('teacher = "127.0.0.1:1"\nprivate = "digits:private"\nprivate_samples = 10\nmodel = "cnn"\n', encoding="utf-8")
    config = parse(FetchConfig, ["--config", str(path)], prog="edge-student fetch", description="")
    assert config.teacher == "127.0.0.1:1"
    path.write_text('teacher = "127.0.0.1:1"\nprivat = "digits:private"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="unknown key 'privat'"):
        parse(FetchConfig, ["--config", str(path)], prog="edge-student fetch", description="")
