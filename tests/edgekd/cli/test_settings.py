"""A settings dataclass is read from flags and a TOML file. Every mistake is reported in one line."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from edgekd.cli.settings import closest, parse, parse_numbers
from edgekd.wire.codec import Encoding


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Train a student."""

    teacher: str
    """Where the teacher listens, HOST:PORT."""
    out: Path
    """Folder for the results."""
    alpha: float = 0.5
    """Weight of the labels, in 0 .. 1."""
    max_wait: int | None = None
    """Seconds to wait."""
    cores: tuple[int, ...] = ()
    """Core ids."""
    encoding: Encoding = Encoding.FLOAT32
    """How logits travel."""
    level: Literal["info", "debug"] = "info"
    """What to log."""
    precompute: bool = False
    """Compute first."""
    names: list[str] = field(default_factory=list)
    """Free text."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"--alpha is {self.alpha}, must be in 0 .. 1")


REQUIRED = ("--teacher", "host:1", "--out", "there")


def read(*argv: str) -> Config:
    return parse(Config, argv, prog="edge-student train", description="Train a student.")


def refusal_of(*argv: str) -> str:
    with pytest.raises(ValueError) as refusal:
        read(*argv)
    message = str(refusal.value)
    assert "\n" not in message
    return message


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_flags_become_typed_fields() -> None:
    assert read(
        *REQUIRED,
        *("--alpha", "0.25", "--max-wait=9", "--cores", "1", "2", "--encoding", "float16"),
        *("--level", "debug", "--precompute", "--names", "a b", "c"),
    ) == Config(
        teacher="host:1",
        out=Path("there"),
        alpha=0.25,
        max_wait=9,
        cores=(1, 2),
        encoding=Encoding.FLOAT16,
        level="debug",
        precompute=True,
        names=["a b", "c"],
    )


def test_omitted_settings_keep_their_defaults() -> None:
    assert read(*REQUIRED) == Config(teacher="host:1", out=Path("there"))


def test_underscores_are_as_good_as_hyphens() -> None:
    assert read(*REQUIRED, "--max_wait", "3").max_wait == 3


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(toml: Path) -> None:
    toml.write_text('alpha = 0.75\nmax-wait = 7\nlevel = "debug"\n')
    config = read(*REQUIRED, "--config", str(toml), "--max-wait", "8")
    assert (config.alpha, config.max_wait, config.level, config.cores) == (0.75, 8, "debug", ())


def test_the_file_accepts_every_kind_of_field(toml: Path) -> None:
    toml.write_text(
        'teacher = "host:1"\nout = "there"\nalpha = 1\nmax_wait = 7\ncores = [0, 3]\nencoding = "float16"\n'
        'level = "debug"\nprecompute = true\nnames = ["a b", ""]\n'
    )
    assert read(f"--config={toml}") == Config(
        teacher="host:1",
        out=Path("there"),
        alpha=1.0,
        max_wait=7,
        cores=(0, 3),
        encoding=Encoding.FLOAT16,
        level="debug",
        precompute=True,
        names=["a b", ""],
    )


def test_a_flag_can_disable_a_setting_of_the_file(toml: Path) -> None:
    toml.write_text("precompute = true\ncores = [1]\nmax_wait = 4\n")
    config = read(*REQUIRED, "--config", str(toml), "--no-precompute", "--cores", "--max-wait", "None")
    assert (config.precompute, config.cores, config.max_wait) == (False, (), None)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "--teacher and --out are required; edge-student train --help lists all flags"),
        (("--out", "x"), "--teacher is required; edge-student train --help lists all flags"),
        (
            (*REQUIRED, "--alhpa", "1"),
            "unknown flag --alhpa (did you mean --alpha?); edge-student train --help lists all flags",
        ),
        ((*REQUIRED, "--zzz=1"), "unknown flag --zzz; edge-student train --help lists all flags"),
        ((*REQUIRED, "--alpha", "x"), "--alpha is 'x', must be a number; see edge-student train --help"),
        ((*REQUIRED, "--alpha=1.5"), "--alpha is 1.5, must be in 0 .. 1"),
        (("--teacher", "t", "--out", ""), "--out is empty, must be a path; see edge-student train --help"),
        (("--teacher", "t", "--out="), "--out is empty, must be a path; see edge-student train --help"),
        ((*REQUIRED, "--alpha"), "--alpha needs a value: a number; see edge-student train --help"),
        (
            (*REQUIRED, "--max-wait", "1.5"),
            "--max-wait is '1.5', must be a whole number; see edge-student train --help",
        ),
        (
            (*REQUIRED, "--cores", "1", "x", "--level", "info"),
            "--cores is '1 x', must be a list, each a whole number; see edge-student train --help",
        ),
        (
            (*REQUIRED, "--encoding", "int4"),
            "--encoding is 'int4', must be one of float32, float16, int8, topk; see edge-student train --help",
        ),
        (
            (*REQUIRED, "--level", "loud"),
            "--level is 'loud', must be one of info, debug; see edge-student train --help",
        ),
        (
            (*REQUIRED, "--precompute", "yes"),
            "unexpected argument 'yes': every setting is a --flag; see edge-student train --help",
        ),
        ((*REQUIRED, "--config"), "--config needs a value, the path of a TOML file"),
        ((*REQUIRED, "--config="), "--config needs a value, the path of a TOML file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_named_with_its_rule(argv: tuple[str, ...], message: str) -> None:
    assert refusal_of(*argv) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alhpa = 1", "unknown key 'alhpa' (did you mean alpha?); keys are the names of the flags"),
        ("config = 'x'", "unknown key 'config'; keys are the names of the flags"),
        ("[train]\nalpha = 1", "unknown key 'train'; keys are the names of the flags"),
        ("alpha.x = 1", "alpha is a table, must be a number"),
        ("alpha = true", "alpha is true, must be a number"),
        ("precompute = 'yes'", "precompute is 'yes', must be true or false"),
        ("max_wait = 1.5", "max_wait is '1.5', must be a whole number; see edge-student train --help"),
        ("level = 'loud'", "level is 'loud', must be one of info, debug; see edge-student train --help"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(toml: Path, content: str, message: str) -> None:
    toml.write_text(content)
    assert refusal_of(*REQUIRED, "--config", str(toml)) == f"{toml}: {message}"


def test_a_rule_that_a_setting_of_the_file_breaks_names_the_file(toml: Path) -> None:
    toml.write_text("alpha = 1.5\n")
    assert refusal_of(*REQUIRED, "--config", str(toml)) == f"--alpha is 1.5, must be in 0 .. 1 (--alpha comes from {toml})"
    assert refusal_of(*REQUIRED, "--config", str(toml), "--alpha", "2") == "--alpha is 2.0, must be in 0 .. 1"


def test_a_file_that_is_not_toml_is_named_with_the_place(toml: Path) -> None:
    toml.write_text("alpha = \n")
    assert refusal_of(*REQUIRED, "--config", str(toml)).startswith(f"{toml} is not valid TOML: ")


def test_a_file_that_is_not_text_is_named(toml: Path) -> None:
    toml.write_bytes(b"\xff\xfe")
    assert refusal_of(*REQUIRED, "--config", str(toml)).startswith(f"{toml} is not valid TOML: ")


def test_a_file_that_is_not_there_is_named_with_its_flag() -> None:
    with pytest.raises(ValueError, match=r"--config nowhere.toml: No such file"):
        read(*REQUIRED, "--config", "nowhere.toml")


def test_a_file_without_end_is_given_up_and_one_that_is_a_pipe_is_read(toml: Path) -> None:
    assert refusal_of(*REQUIRED, "--config", "/dev/zero") == "/dev/zero is not valid TOML: it has more than 65536 bytes"
    toml.write_text("a.b.c = 1\n" * 100_000)
    assert "more than 65536 bytes" in refusal_of(*REQUIRED, "--config", str(toml))
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("alpha = 0.25\n")
    assert read(*REQUIRED, "--config", f"/dev/fd/{reading}").alpha == 0.25
    os.close(reading)


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_a_mistake_reads_the_same_on_every_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    long = "x" * 200
    assert refusal_of(*REQUIRED, "--level", long).startswith(f"--level is '{long}', must be one of info, debug")


@pytest.mark.parametrize("argv", [("--help",), ("-h",), ("--alpha", "x", "--help"), ("--config", "nowhere", "-h")])
def test_help_explains_every_flag_whatever_else_is_given(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read(*argv)
    assert stop.value.code in (0, None)
    shown = capsys.readouterr()
    assert shown.err == ""
    flags = ("--teacher", "--out", "--alpha", "--max-wait", "--cores", "--encoding", "--level", "--precompute", "--config")
    for expected in ("usage: edge-student train", "Train a student.", *flags, "Weight of the labels, in 0 .. 1."):
        assert expected in shown.out


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """Shared flags of one help group."""

    help_group: ClassVar[str] = "output"

    level: Literal["info", "debug"] = "info"
    """What to log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupedConfig(OutputSettings):
    """Flags in two groups, and one without a group."""

    out: Path = field(default=Path("out"), metadata={"group": "output"})
    """Folder for the results."""
    teacher: str | None = field(default=None, metadata={"group": "receiving"})
    """Address. (default: none is used)"""
    plain: int = 3
    """A flag without a group."""


def test_grouped_flags_are_read_like_others_and_shown_in_the_order_of_groups(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("--teacher", "host:1", "--plain", "4", "--level", "debug")
    expected = GroupedConfig(teacher="host:1", plain=4, level="debug")
    assert parse(GroupedConfig, argv, prog="it", description="") == expected
    with pytest.raises(SystemExit):
        parse(GroupedConfig, ["--help"], prog="it", description="")
    shown = capsys.readouterr().out
    order = ["--plain INT", "receiving options", "--teacher STR", "output options", "--out PATH", "--level"]
    assert sorted(order, key=shown.index) == order
    assert "(default: none is used)" in shown
    assert "None" not in shown


def test_reading_a_command_line_loads_neither_torch_nor_grpc() -> None:
    script = (
        "import sys\n"
        "from dataclasses import dataclass\n"
        "from edgekd.cli.command import parse\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Config:\n"
        "    alpha: float = 0.5\n"
        "parse(Config, ['--alpha', '1'], prog='p', description='d')\n"
        "sys.exit('torch' in sys.modules or 'grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_numbers_of_a_spec_are_read() -> None:
    assert parse_numbers("cnn", "width=8", {"width": 16}) == {"width": 8}
    assert parse_numbers("cnn", "", {"width": 16}) == {"width": 16}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zzz=3", "cnn: unknown option 'zzz', must be one of width, size"),
        ("wdith=3", "cnn: unknown option 'wdith', must be one of width, size (did you mean width?)"),
        ("width=0,size=1", "cnn: width=0 must be a positive whole number"),
        ("width=-1", "cnn: width=-1 must be a positive whole number"),
        ("width=1.5", "cnn: width=1.5 must be a positive whole number"),
        ("width", "cnn: width= must be a positive whole number"),
        ("width=\u00b2", "cnn: width=\u00b2 must be a positive whole number"),
        ("width=3", "cnn: size=... missing from 'width=3'"),
    ],
)
def test_numbers_that_break_a_rule_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_numbers("cnn", text, {"width": 16, "size": None})
    assert str(refusal.value) == message


def test_only_near_words_are_suggested() -> None:
    assert closest("tets", ["test", "public"]) == " (did you mean test?)"
    assert closest("zzz", ["test", "public"]) == ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """Fit a curve."""

    positional: ClassVar[tuple[str, ...]] = ("samples",)
    examples: ClassVar[str] = '{"cores": 4}'

    samples: Path
    """Measured times."""
    degree: int = 1
    """Degree of the curve."""
    json: bool = False
    """Print JSON."""


def fit(*argv: str) -> FitConfig:
    return parse(FitConfig, argv, prog="fit", description="Fit a curve.")


@pytest.mark.parametrize(
    "argv",
    [
        ("--degree", "2", "m.json", "--json"),
        ("--json", "m.json", "--degree=2"),
        ("m.json", "--no-json", "--json", "--degree", "2"),
        ("--samples", "m.json", "--json", "--degree", "2"),
    ],
    ids=" ".join,
)
def test_the_flag_of_a_positional_argument_may_be_left_out(argv: tuple[str, ...]) -> None:
    assert fit(*argv) == FitConfig(samples=Path("m.json"), degree=2, json=True)


def test_a_dash_is_a_positional_argument() -> None:
    assert fit("-").samples == Path("-")


def test_a_file_may_hold_the_positional_argument(toml: Path) -> None:
    toml.write_text('samples = "a.json"\n', encoding="utf-8")
    assert fit("--config", str(toml)).samples == Path("a.json")
    assert fit("--config", str(toml), "b.json").samples == Path("b.json")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "SAMPLES is required; fit --help lists all flags"),
        (("a.json", "b.json"), "unexpected argument 'b.json'"),
        (("--samples", "a.json", "b.json"), "unexpected argument 'b.json'"),
        (("a.json", "-q"), "unexpected argument '-q'"),
    ],
)
def test_a_wrong_number_of_positional_arguments_is_an_error(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(*argv)


def test_help_shows_positional_arguments_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fit("--help")
    shown = capsys.readouterr().out
    assert "usage: fit [-h] PATH" in shown
    assert "--samples" not in shown
    assert FitConfig.examples in shown
