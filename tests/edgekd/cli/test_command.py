"""Commands, exit statuses and one-line errors, as a shell observes them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from edgekd.cli.command import Command, dispatch, run
from edgekd.errors import WorldError


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Train."""

    cycles: int = 3
    """Cycles to train."""


def statuses(config: Config) -> int | None:
    return config.cycles if config.cycles else None


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the signal handlers: `run` resets them before the exit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


COMMANDS: dict[str, Command] = {
    "train": (f"{__name__}:Config", statuses, "Train a student against a teacher."),
    "calibrate": (f"{__name__}:Config", statuses, "Measure this device."),
}


def call(*argv: str) -> int:
    return dispatch(argv, COMMANDS, prog="edge-student", description="Train at the edge.")


def fails_with(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("--alpha is 2, must be in 0 .. 1"), 2, "error: --alpha is 2, must be in 0 .. 1"),
        (ValueError("first\n  second\tthird"), 2, "error: first second third"),
        (WorldError("teacher at host:1 is unavailable"), 1, "error: teacher at host:1 is unavailable"),
        (OSError(28, "No space left on device", "out/log"), 1, "error: out/log: No space left on device"),
        (ConnectionError("link lost"), 1, "error: link lost"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("Unable to allocate 745. GiB"), 1, "error: not enough memory (Unable to allocate 745. GiB)"),
        (MemoryError(), 1, "error: not enough memory"),
        (
            ImportError("libtorch.so: failed to map segment from shared object"),
            1,
            "error: not enough memory or address space (ulimit -v): libtorch.so: failed to map segment from shared object",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            "error: not enough memory or address space (ulimit -v): DefaultCPUAllocator: can't allocate memory",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_foreseeable_failure_is_one_line_and_a_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(lambda: fails_with(error))
    shown = capsys.readouterr()
    assert (stop.value.code, shown.err, shown.out) == (status, line + "\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_the_program_ends_leaves_no_traceback(number: signal.Signals) -> None:
    script = f"""
import atexit, os, signal
from edgekd.cli.command import run
signal.signal(signal.SIGTERM, signal.default_int_handler)
atexit.register(lambda: os.kill(os.getpid(), {number:d}))
def main():
    raise KeyboardInterrupt
run(main)
"""
    program = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, check=False)
    assert (program.returncode, program.stderr) == (-number, "interrupted\n")


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(AssertionError, match="broken invariant"):
        run(lambda: fails_with(AssertionError("broken invariant")))


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (3, 3)])
def test_a_result_is_the_exit_status(result: int | None, status: int) -> None:
    with pytest.raises(SystemExit) as stop:
        run(lambda: result)
    assert stop.value.code == status


def test_a_reader_that_closes_the_pipe_causes_no_message() -> None:
    script = "from edgekd.cli.command import run\nrun(lambda: print('line\\n' * 100_000))"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        program = subprocess.run([sys.executable, "-c", script], stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (program.returncode, program.stderr) == (1, b"")


def test_a_command_gets_its_settings_and_returns_its_status() -> None:
    assert call("train", "--cycles", "5") == 5
    assert call("train", "--cycles", "0") == 0


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_each_command_with_a_sentence(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(flag) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.splitlines() == [
        "usage: edge-student COMMAND [--flags]",
        "",
        "Train at the edge.",
        "",
        "commands:",
        "  train      Train a student against a teacher.",
        "  calibrate  Measure this device.",
        "",
        "`edge-student COMMAND --help` lists the flags of a command. `edge-student --version` prints the version.",
    ]


def test_without_a_command_the_list_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "  calibrate  Measure this device." in shown.err


def test_an_unknown_command_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError) as refusal:
        call("trian")
    assert str(refusal.value) == (
        "unknown command 'trian', must be one of train, calibrate (did you mean train?); see edge-student --help"
    )


def test_the_help_of_a_command_shows_its_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("train", "--help")
    shown = capsys.readouterr().out
    assert "usage: edge-student train" in shown
    assert "Train a student against a teacher." in shown
    assert "Cycles to train." in shown


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    name, version = capsys.readouterr().out.split()
    assert name == "edge-student"
    assert version[0].isdigit()


def test_a_message_with_untrusted_text_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise WorldError("he said \x1b[2J and \u202e\nb\ud800, \u00e4")

    with pytest.raises(SystemExit):
        run(fail)
    assert capsys.readouterr().err == "error: he said \\x1b[2J and \\u202e b\\ud800, \u00e4\n"
