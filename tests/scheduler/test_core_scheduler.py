"""The program `core-scheduler`: it prints the results of the model, and every error is one line and an exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scheduler.__main__ as program
from edgekd.cli.command import parse
from scheduler import figures
from scheduler import simulate as simulate_command
from scheduler.model.fit import fit
from scheduler.model.optimum import lower_bound
from scheduler.model.samples import Samples
from scheduler.model.scenario import Scenario
from scheduler.settings import EXAMPLE_SAMPLES, EXAMPLE_SCENARIO, SimulateConfig
from scheduler.simulation.simulator import random_makespans, simulable_policies, simulate

ROOT = Path(__file__).resolve().parents[2]
COST = {"a1": 0.5, "a2": 0.2, "b1": 1.0, "b2": 2.0, "b3": 3.0}
SCENARIO = {"cores": 4, "cycles": 5, "forward": 1, "backward": [2, 2, 3, 2, 2], "comm": 8, "prefetch": 2, "cost": COST}
SAMPLES = json.loads(EXAMPLE_SAMPLES)

Write = Callable[..., str]


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Restore the signal handlers of pytest: a program that ends resets its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return `write(name, text, bytes or JSON data)`, which writes a file into the working folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: Any) -> str:
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        else:
            Path(name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return name

    return write


def status_of(*argv: str) -> int:
    """The exit status of a call."""
    with pytest.raises(SystemExit) as stop:
        program.main(argv)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The output of a call that succeeds and prints nothing to stderr."""
    status = status_of(*argv)
    shown = capsys.readouterr()
    assert (status, shown.err) == (0, "")
    return shown.out


def refusal(capsys: pytest.CaptureFixture[str], status: int, *argv: str) -> str:
    """The one line of a call that fails with this status."""
    assert status_of(*argv) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.endswith("\n")
    assert shown.err.count("\n") == 1
    assert shown.err.startswith("error: ")
    return shown.err.removeprefix("error: ").rstrip("\n")


def start(*argv: str, unbuffered: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program as a process."""
    command = [sys.executable, "-m", "scheduler", *argv]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, check=False, **streams)


def test_json_is_the_lower_bound_and_the_makespan_of_every_policy(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("simulate", "--scenario", write("s.json", SCENARIO), "--json", "--random-runs", "20", "--seed", "3")
    found = json.loads(output(capsys, *argv))
    scenario = Scenario.from_json(SCENARIO)
    works = scenario.works
    makespans = random_makespans(scenario, runs=20, seed=3)
    assert found == {
        "lower_bound": lower_bound(
            modes=scenario.modes, forward=works.forward, backward=works.backward, comm=works.comm, prefetch=scenario.prefetch
        ),
        "policies": {name: {"makespan": simulate(scenario, name).makespan} for name in simulable_policies(scenario)}
        | {
            "random": {
                "makespan": makespans.mean(),
                "min": makespans.min(),
                "max": makespans.max(),
                "std": makespans.std(),
                "runs": 20,
            }
        },
    }
    assert {"static:1", "static:3", "dynamic", "adaptive"} <= set(found["policies"])
    assert all(result["makespan"] >= found["lower_bound"] * (1 - 1e-12) for result in found["policies"].values())


def test_the_table_has_scenario_bound_policies_and_best_split(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    name = write("s.json", SCENARIO)
    lines = output(capsys, "simulate", "--scenario", name, "--random-runs", "20").splitlines()
    assert lines[0] == (
        "4 cores, 5 cycles of forward 1, backward 2 .. 3 and comm 8; comm may run ahead by up to 2 batches;"
        " rates from the cost functions"
    )
    assert lines[1].startswith("lower bound ")
    found = json.loads(output(capsys, "simulate", "--scenario", name, "--random-runs", "20", "--json"))
    rows = {line.split()[0]: line.split() for line in lines[4:] if line and not line.startswith("best")}
    assert set(rows) == set(found["policies"])
    for policy, result in found["policies"].items():
        assert float(rows[policy][1]) == pytest.approx(result["makespan"], rel=1e-5)
        assert float(rows[policy][3]) == pytest.approx(result["makespan"] / found["lower_bound"], abs=1e-4)
    assert " ".join(rows["random"][4:9]).startswith("mean of 20, +- ")
    splits = {policy: result["makespan"] for policy, result in found["policies"].items() if policy.startswith("static:")}
    assert lines[-1].startswith(f"best static split: {min(splits, key=lambda policy: splits[policy])}, ")


def test_a_table_of_measured_modes_and_of_no_work_at_all(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"comp-only": (0, 2), "split:1": (3, 1), "comm-only": (5, 0), "compute-first": (1, 1.9)}
    modes = [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, (comm, comp) in rates.items()]
    idle = {"cores": 2, "cycles": 3, "forward": 0, "backward": 0, "comm": 0, "modes": modes}
    shown = output(capsys, "simulate", "--scenario", write("s.json", idle), "--policies", "dynamic, random")
    assert "comm may run ahead without a limit; rates of 4 measured modes\n" in shown
    assert [line.split()[:4] for line in shown.splitlines()[4:]] == [["dynamic", "0", "s", "-"], ["random", "0", "s", "-"]]


def test_named_policies_are_simulated_in_their_order(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("simulate", "--scenario", write("s.json", SCENARIO), "--json", "--policies", "dynamic, static:03,comm-priority")
    assert list(json.loads(output(capsys, *argv))["policies"]) == ["dynamic", "static:3", "comm-priority"]


def test_the_seed_feeds_random(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("simulate", "--scenario", write("s.json", SCENARIO), "--policies", "random", "--random-runs", "5")
    one, other = (output(capsys, *argv, "--seed", seed) for seed in ("1", "2"))
    assert one != other
    assert one == output(capsys, *argv, "--seed=1")


def test_dynamic_is_left_out_of_long_runs_unless_it_is_named(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate_command, "MAX_PLANNED_MOVES", 99)
    argv = ("simulate", "--scenario", write("s.json", SCENARIO), "--random-runs", "5", "--json")
    assert status_of(*argv) == 0
    shown = capsys.readouterr()
    assert shown.err == (
        "dynamic is left out: its plan evaluates about cycles x cycles x cores moves, here 100;"
        " name it with --policies to simulate it\n"
    )
    assert "dynamic" not in json.loads(shown.out)["policies"]
    assert "dynamic" in json.loads(output(capsys, *argv, "--policies", "dynamic"))["policies"]


class InstantTimer:
    """Fires at once, so that every block counts as slow."""

    def __init__(self, seconds: float, function: Callable[..., None], args: list[Any], kwargs: dict[str, Any]) -> None:
        self.start = lambda: function(*args, **kwargs)
        self.cancel = lambda: None


def test_a_terminal_shows_the_name_of_a_slow_policy(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate_command, "Timer", InstantTimer)
    argv = ("simulate", "--scenario", write("s.json", SCENARIO), "--policies", "static:1,static:2", "--json")
    output(capsys, *argv)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert status_of(*argv) == 0
    assert capsys.readouterr().err == "simulating static:1, 1 of 2\nsimulating static:2, 2 of 2\n"


def test_fit_prints_parameters_with_errors_and_the_cost_of_a_scenario(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "fit", write("m.json", SAMPLES))
    found = fit(Samples.from_json(SAMPLES))
    for side in (found.comp, found.comm):
        for name, estimate in side.parameters.items():
            assert estimate is not None
            assert f"  {name} = {estimate.value:.6g} +- {estimate.stderr:.2g}\n" in shown
    assert "4 samples at 4 core counts, R^2 of times per work 0.9999" in shown
    pasted = json.loads("{" + shown.splitlines()[-1].removeprefix("for a scenario: ") + "}")
    assert Scenario.from_json(SCENARIO | pasted).rates == found.cost.rates(4) if found.cost else False
    assert json.loads(output(capsys, "fit", "m.json", "--json")) == found.to_json()


def test_fit_prints_the_identified_side_and_the_reason_for_the_other(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "fit", write("m.json", SAMPLES | {"comm": SAMPLES["comm"][:2]}))
    assert "  a2 = 0.2" in shown
    assert "  not identified: g needs samples at 3 distinct core counts, and these have 2\n" in shown
    assert "for a scenario" not in shown
    assert json.loads(output(capsys, "fit", "m.json", "--json"))["cost"] is None


def test_samples_that_identify_neither_side_are_an_error(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    name = write("m.json", SAMPLES | {"comp": SAMPLES["comp"][:1], "comm": SAMPLES["comm"][:1]})
    words = "these samples identify neither f nor g: f needs samples at 2 distinct core counts, and these have 1; g needs"
    assert refusal(capsys, 2, "fit", name).startswith(words)
    assert refusal(capsys, 2, "fit", name, "--json").startswith(words)


def test_figures_are_written_and_named(write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/scheduler/test_figures.py draws them."""
    asked: dict[str, Any] = {}

    def write_figures(out: Path, **options: Any) -> list[Path]:
        asked.update(options)
        return [out / "fig2.json", out / "fig2.png"]

    monkeypatch.setattr(figures, "write_figures", write_figures)
    shown = output(capsys, "figures", "--out", "new/figures", "--runs", "2", "--samples", write("m.json", SAMPLES))
    assert shown.splitlines() == ["new/figures/fig2.json", "new/figures/fig2.png"]
    assert asked == {"runs": 2, "seed": 0, "samples": SAMPLES}
    assert Path("new/figures").is_dir()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cores": 1}, "scenario: 'cores' is 1; with one core there is nothing to split"),
        ({"forward": -1}, "scenario: 'forward' is -1; work cannot be negative"),
        ({"backward": [1, 2]}, "scenario: 'backward' lists 2 works for 5 cycles"),
        ({"comm": float("nan")}, "scenario: 'comm' is nan; it must be finite"),
        ({"cost": COST | {"a2": 0.5}}, "the comp rate at c=2 comm cores of 4 is 0; it must be positive and finite"),
        ({"colour": "red"}, "scenario: unknown colour; the keys are cores, cycles"),
        ({"modes": []}, "scenario: give 'cost' or 'modes', not both"),
        ({"comm": 1e200}, "scenario: a work of comm is 1e+200; choose units in which it is 0 or in 1e-30 .. 1e+30"),
        ({"forward": 1e308}, "scenario: a work of forward is 1e+308; choose units"),
    ],
)
def test_an_invalid_scenario_is_an_error(
    changes: dict[str, Any], words: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(capsys, 2, "simulate", "--scenario", write("s.json", SCENARIO | changes)).startswith(words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "this is not JSON"),
        ('{"cores": 4,', "this is not JSON"),
        ("[1, 2]", "expected an object with"),
        ('{"cores": 4, "cores": 4}', "the key 'cores' is given twice"),
        ('{"cores": ' + "9" * 5000 + "}", "a number has too many digits"),
        ("[" * 100_000, "this JSON is nested too deeply"),
        (b"\x7fELF\x02\x01\x01\x00\xff\xfe", "file.json: byte 8 is not UTF-8"),
        (bytes(range(256)), "file.json: byte 128 is not UTF-8"),
    ],
    ids=["empty", "broken", "list", "twice", "digits", "deep", "binary", "bytes"],
)
@pytest.mark.parametrize(
    "argv", [("simulate", "--scenario"), ("fit",), ("figures", "--out", "figures", "--samples")], ids=lambda a: a[0]
)
def test_a_file_with_other_content_is_an_error(
    argv: tuple[str, ...], content: Any, words: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(capsys, 2, *argv, write("file.json", content))
    assert not Path("figures").exists()


@pytest.mark.parametrize("argv", [("simulate", "--scenario"), ("fit",), ("simulate", "--config")], ids=" ".join)
def test_a_file_that_cannot_be_read_exits_with_2(argv: tuple[str, ...], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder").mkdir()
    assert refusal(capsys, 2, *argv, "away.json").endswith("away.json: No such file or directory")
    assert refusal(capsys, 2, *argv, "folder").endswith("folder: Is a directory")
    assert refusal(capsys, 2, *argv, "x" * 300).endswith("x: File name too long")


def test_a_folder_that_cannot_be_created_exits_with_2(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("taken", "")
    for folder in ("taken", "taken/below", "x" * 300):
        assert refusal(capsys, 2, "figures", "--out", folder).startswith(f"--out: {folder}")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["simulat"], "unknown command 'simulat', must be one of simulate, figures, fit (did you mean simulate?)"),
        (["--seed"], "unknown command '--seed', must be one of simulate, figures, fit; see core-scheduler --help"),
        (["simulate"], "--scenario is required; core-scheduler simulate --help lists all flags"),
        (["figures"], "--out is required; core-scheduler figures --help lists all flags"),
        (["fit"], "SAMPLES is required; core-scheduler fit --help lists all flags"),
        (["fit", "a.json", "b.json"], "unexpected argument 'b.json'"),
        (["simulate", "--scenaro", "s.json"], "unknown flag --scenaro (did you mean --scenario?); core-scheduler simulate --help"),
        (["simulate", "--scenario", "s.json", "--pol", "random"], "unknown flag --pol"),
        (["simulate", "--scenario", "s.json", "more"], "unexpected argument 'more'"),
        (["simulate", "--scenario", "s.json", "-q"], "unexpected argument '-q'"),
        (["simulate", "--scenario", "s.json", "--seed", "x"], "--seed is 'x', must be a whole number; see core-scheduler simulate"),
        (["simulate", "--scenario", "s.json", "--seed", "-1"], "--seed is -1, must be in 0 .. 4294967295"),
        (["simulate", "--scenario", "s.json", "--seed", "1.5"], "--seed is '1.5', must be a whole number"),
        (["simulate", "--scenario", "s.json", "--seed", "9" * 40], "--seed is 9999"),
        (["simulate", "--scenario", "s.json", "--seed"], "--seed needs a value: a whole number; see core-scheduler simulate"),
        (["simulate", "--scenario", "s.json", "--shards", "0"], "--shards is 0, must be in 1 .. 4096"),
        (["simulate", "--scenario", "s.json", "--random-runs=0"], "--random-runs is 0, must be in 1 .. 1000000"),
        (["figures", "--out", "f", "--runs", "many"], "--runs is 'many', must be a whole number"),
        (["simulate", "--scenario", "s.json", "--policies", "fast"], "policy 'fast' is unknown; the policies are "),
        (["simulate", "--scenario", "s.json", "--policies", "random,,dynamic"], "--policies is 'random,,dynamic', must be names"),
        (
            ["simulate", "--scenario", "s.json", "--policies", "static:1,static:01"],
            "--policies is 'static:1,static:01', names static:1",
        ),
        (["simulate", "--scenario", "s.json", "--policies", "static:4"], "policy 'static:4': the comm cores must lie in 1..3"),
        (
            ["simulate", "--scenario", "s.json", "--policies", "random,os-default"],
            "policy 'os-default' leaves the cores to the kernel",
        ),
        (["fit", "m.json", "--json=yes"], "unexpected argument 'yes'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_an_error_on_the_command_line_is_one_line(
    argv: list[str], words: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write("s.json", SCENARIO)
    write("m.json", SAMPLES)
    line = refusal(capsys, 2, *argv)
    assert line.startswith(words)
    assert len(line) < 250


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sed = 3", "c.toml: unknown key 'sed' (did you mean seed?); keys are the names of the flags"),
        ("config = 'c.toml'", "c.toml: unknown key 'config'"),
        ("seed = 'three'", "c.toml: seed is 'three', must be a whole number"),
        ("seed = true", "c.toml: seed is true, must be a whole number"),
        ("seed = -3", "--seed is -3, must be in 0 .. "),
        ("json = 1", "c.toml: json is 1, must be true or false"),
        ("[seed]\nvalue = 1", "c.toml: seed is a table, must be a whole number"),
        ("seed = ", "c.toml is not valid TOML: "),
        (b"seed = 1 # \xff", "c.toml is not valid TOML: "),
    ],
)
def test_an_error_in_a_settings_file_is_one_line(
    text: str | bytes, words: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("simulate", "--scenario", write("s.json", SCENARIO), "--config", write("c.toml", text))
    assert refusal(capsys, 2, *argv).startswith(words)


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(write: Write) -> None:
    name = write("c.toml", 'scenario = "a.json"\nrandom-runs = 7\nseed = 8\njson = true\n')
    settings = settings_of("--config", name, "--seed", "9", "--no-json")
    assert settings == SimulateConfig(scenario=Path("a.json"), random_runs=7, seed=9, json=False)
    assert settings_of(f"--config={name}", "--scenario", "b.json").scenario == Path("b.json")
    assert settings_of("--config", name).json is True
    assert settings_of("--scenario", "b.json").random_runs == 1000


def settings_of(*argv: str) -> SimulateConfig:
    return parse(SimulateConfig, argv, prog="core-scheduler simulate", description="")


def test_a_settings_file_may_name_the_samples(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("m.json", SAMPLES)
    write("away.toml", 'samples = "away.json"\n')
    assert output(capsys, "fit", "--config", write("c.toml", 'samples = "m.json"\n')) == output(capsys, "fit", "m.json")
    assert output(capsys, "fit", "m.json", "--config", "away.toml") == output(capsys, "fit", "m.json")


@pytest.mark.parametrize("command", program.COMMANDS)
def test_help_explains_every_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(output(capsys, command, "--help").split())
    assert "--config" in shown
    assert program.COMMANDS[command][2] in shown
    assert " ".join((EXAMPLE_SCENARIO if command == "simulate" else EXAMPLE_SAMPLES).split()) in shown


def test_the_examples_of_the_help_work(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert "best static split" in output(capsys, "simulate", "--scenario", write("s.json", EXAMPLE_SCENARIO))
    assert "for a scenario" in output(capsys, "fit", write("m.json", EXAMPLE_SAMPLES))


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = output(capsys, "--help")
    assert all(f"\n  {name} " in listed for name in program.COMMANDS)
    assert status_of() == 2
    assert capsys.readouterr().err == listed


def test_ctrl_c_is_one_line(write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate_command, "simulate", interrupted)
    assert status_of("simulate", "--scenario", write("s.json", SCENARIO)) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_scenario_comes_from_stdin_too() -> None:
    argv = ("simulate", "--scenario", "-", "--policies", "static:1", "--json")
    simulated = start(*argv, input=json.dumps(SCENARIO))
    assert (simulated.returncode, simulated.stderr) == (0, "")
    expected = simulate(Scenario.from_json(SCENARIO), "static:1").makespan
    assert json.loads(simulated.stdout)["policies"] == {"static:1": {"makespan": expected}}
    broken = start(*argv, input="{")
    assert (broken.returncode, broken.stdout, broken.stderr.count("\n")) == (2, "", 1)


def test_the_program_has_a_version_and_a_name() -> None:
    script = Path(sys.executable).with_name("core-scheduler")
    named = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert named.stdout == start("--version").stdout
    assert named.stdout.startswith("core-scheduler ")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("argv", [("fit", "-"), ("fit", "--help"), ("--help",)], ids=" ".join)
def test_a_closed_pipe_prints_no_error(argv: tuple[str, ...], unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        ended = start(*argv, unbuffered=unbuffered, input=json.dumps(SAMPLES), stdout=closed)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_exits_with_1() -> None:
    with open("/dev/full", "w") as full:
        ended = start("fit", "-", input=json.dumps(SAMPLES), stdout=full)
    assert (ended.returncode, ended.stderr) == (1, "error: No space left on device\n")


def test_help_loads_neither_numpy_nor_tyro() -> None:
    script = "import sys, scheduler.__main__; sys.exit(not {'numpy', 'scipy', 'matplotlib', 'tyro'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_only_figures_waits_for_matplotlib() -> None:
    script = "import sys, scheduler.simulate, scheduler.fit; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_the_bound_depends_on_the_prefetch_limit(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Light batches around a heavy one: without a limit comm would start the heavy batch much earlier."""
    data = SCENARIO | {"comm": [1, 1, 1, 60, 1], "forward": 4, "backward": 4}
    bounds = []
    for prefetch in (1, None):
        name = write("s.json", data | {"prefetch": prefetch})
        bounds.append(json.loads(output(capsys, "simulate", "--scenario", name, "--policies", "static:1", "--json"))["lower_bound"])
    assert bounds[0] > 1.01 * bounds[1]
    assert bounds[0] == pytest.approx(Scenario.from_json(data | {"prefetch": 1}).lower_bound())


def test_in_shards_a_backward_begins_before_its_batch_is_whole(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """One slot, and comm as fast as Backward on one core each: the batch is received and used half by half."""
    modes = [
        {"name": "comp-only", "comm_rate": 0, "comp_rate": 1},
        {"name": "split:1", "comm_rate": 1, "comp_rate": 1},
        {"name": "comm-only", "comm_rate": 1, "comp_rate": 0},
    ]
    data = {"cores": 2, "cycles": 3, "forward": 0, "backward": 2, "comm": 2, "prefetch": 1, "modes": modes}
    argv = ("simulate", "--scenario", write("s.json", data), "--policies", "static:1")
    whole, halves = (json.loads(output(capsys, *argv, "--json", *shards)) for shards in ((), ("--shards", "2")))
    assert whole["policies"]["static:1"]["makespan"] == whole["lower_bound"] == 12.0
    assert halves["policies"]["static:1"]["makespan"] == halves["lower_bound"] == 7.0
    first = output(capsys, *argv, "--shards", "2").splitlines()[0]
    assert first.startswith("2 cores, 3 cycles of forward 0, backward 2 and comm 2, in 2 shards; comm may run ahead by up to 1 ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cycles": 2_442}, "2442 cycles in 4096 shards are too many parts, must be at most 10000000"),
        ({"comm": 1e-29}, "scenario: a work of comm is 2.44141e-33; choose units in which it is 0 or in 1e-30 .. 1e+30"),
    ],
)
def test_a_scenario_that_cannot_be_cut_is_an_error(
    changes: dict[str, Any], words: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    data = SCENARIO | {"backward": 2} | changes
    assert refusal(capsys, 2, "simulate", "--shards", "4096", "--scenario", write("s.json", data)) == words


def test_the_mean_of_equal_runs_lies_between_the_least_and_the_most(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of three tenths is more than 0.3."""
    monkeypatch.setattr(simulate_command, "random_makespans", lambda scenario, *, runs, seed: np.full(3, 0.1))
    argv = ("simulate", "--scenario", write("s.json", SCENARIO), "--policies", "random", "--json")
    found = json.loads(output(capsys, *argv))["policies"]["random"]
    assert np.full(3, 0.1).mean() > 0.1
    assert found["min"] <= found["makespan"] <= found["max"]


def test_rates_that_fall_with_more_cores_give_a_warning(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("comp-only", 0.0, 1.0), ("split:1", 1.0, 3.0), ("comm-only", 2.0, 0.0)]
    modes = [{"name": name, "comm_rate": comm, "comp_rate": comp} for name, comm, comp in rows]
    data = {"cores": 2, "cycles": 2, "forward": 1, "backward": 1, "comm": 1, "modes": modes}
    assert status_of("simulate", "--scenario", write("s.json", data), "--policies", "static:1") == 0
    assert capsys.readouterr().err == "some rates fall where a side gets more cores: adaptive may then lose to a fixed split\n"


def test_the_figures_get_the_samples_and_the_seed(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {}
    monkeypatch.setattr("scheduler.figures.write_figures", lambda out, **given: options.update(given) or [])
    argv = ("figures", "--out", "f", "--runs", "7", "--seed", "3", "--samples", write("samples.json", SAMPLES))
    assert status_of(*argv) == 0
    assert options == {"runs": 7, "seed": 3, "samples": SAMPLES}
