"""The program `core-scheduler`: simulate a scenario, draw the figures, fit the cost functions. All of it is modelled time.

Its manners are those of the other two programs. A setting comes from its flag, else from `--config FILE.toml`, else it has its
default. A user's mistake ends in one line and exit status 2, a failure of the world in one line and 1.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any, NoReturn, TypeAlias

import numpy as np

from scheduler.fit import Fit, Samples, SideFit, fit
from scheduler.plan import lower_bound
from scheduler.policies import make_policy
from scheduler.scenario import Scenario, read_json
from scheduler.simulator import random_makespans, simulable_policies, simulate

Result: TypeAlias = dict[str, float]
"""What is known of one policy: its makespan, and for `random` the mean of them with min, max, std and runs."""

MOST_CYCLES_OF_DYNAMIC = 1_000
"""Its plan takes time quadratic in the cycles, so above this it is simulated only if it is named."""

MOST_WORK = 1e100
"""Work in all, and seconds that it takes, beyond which figures are no longer honest."""

SLOW_S = 2.0
"""A policy whose simulation takes longer is named on a terminal."""

MAX_RUNS, MAX_SEED = 1_000_000, 2**32 - 1

EXAMPLE_SCENARIO = """\
{"cores": 4, "cycles": 6, "forward": 1, "backward": [2, 2, 2, 3, 2, 2], "comm": 8, "prefetch": 2,
 "cost": {"a1": 0.5, "a2": 0.2, "b1": 1.0, "b2": 2.0, "b3": 3.0}}"""

EXAMPLE_SAMPLES = """\
{"cores": 4,
 "comp": [{"work": 1, "comm_cores": 0, "seconds": 0.50}, {"work": 1, "comm_cores": 1, "seconds": 0.62},
          {"work": 2, "comm_cores": 2, "seconds": 1.67}, {"work": 2, "comm_cores": 3, "seconds": 2.51}],
 "comm": [{"work": 8, "comm_cores": 1, "seconds": 2.50}, {"work": 8, "comm_cores": 2, "seconds": 1.43},
          {"work": 9, "comm_cores": 3, "seconds": 1.22}, {"work": 9, "comm_cores": 4, "seconds": 1.00}]}"""


def _simulate_flags(parser: argparse.ArgumentParser) -> None:
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--scenario", required=True, metavar="FILE.json", help="Scenario to simulate; - reads it from stdin.")
    without = f"all that can be simulated, `dynamic` up to {MOST_CYCLES_OF_DYNAMIC} cycles"
    parser.add_argument("--policies", metavar="A,B,C", help=f"Policies, with commas between; without it, {without}.")
    _add_number(parser, "--random-runs", 1000, 1, MAX_RUNS, "Runs of the policy `random`.")
    _add_number(parser, "--seed", 0, 0, MAX_SEED, "Seed of the policy `random`.")
    parser.add_argument(
        "--json", action=switch, default=False, help="Print JSON: the lower bound, and the makespan of each policy."
    )


def _figures_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="Folder for the figures; it is made, and old ones are replaced."
    )
    _add_number(parser, "--runs", 1000, 1, MAX_RUNS, "Runs of the policy `random` that are averaged.")
    _add_number(parser, "--seed", 0, 0, MAX_SEED, "Seed of the policy `random` and of the example samples.")
    samples = "Measured times to fit, as `fit` reads them; without it, an example that says it is one."
    parser.add_argument("--samples", metavar="FILE.json", help=samples)


def _fit_flags(parser: argparse.ArgumentParser) -> None:
    switch = argparse.BooleanOptionalAction
    parser.add_argument("samples", metavar="SAMPLES.json", help="Measured times; - reads them from stdin.")
    parser.add_argument("--json", action=switch, default=False, help='Print JSON; its "cost" can be pasted into a scenario.')


def _add_number(parser: argparse.ArgumentParser, flag: str, default: int, least: int, most: int, text: str) -> None:
    def read(word: str) -> int:
        if not (word.isascii() and word.isdigit() and len(word) <= 20 and least <= int(word) <= most):
            raise argparse.ArgumentTypeError(f"'{word:.40}' is not a whole number in {least} .. {most}")
        return int(word)

    parser.add_argument(flag, type=read, default=default, metavar="N", help=f"{text} (default: {default})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One sentence on a command, more for its help, and its flags."""

    summary: str
    more: str
    add_flags: Callable[[argparse.ArgumentParser], None]


COMMANDS: dict[str, Command] = {
    "simulate": Command(
        summary="Simulate a scenario under every policy, and tell how far each is from the least time there is.",
        more=f"""\
A scenario, for example, with one work for all cycles or one for each:

{EXAMPLE_SCENARIO}

f and g of "cost" give the rates: f(x, c) = a1 x / (1 - a2 c) and g(y, c) = y / (b1 c + b2 ln(b3 c)) are the
seconds of work x of comp and y of comm, when comm has c cores and comp the rest. "prefetch" is how many batches
comm may run ahead; leave it out for no limit. Instead of "cost", "modes" can list measured rates:
[{{"name": "comp-only" | "split:<c>" | "comm-only" | ..., "comm_rate": R, "comp_rate": R}}, ...].""",
        add_flags=_simulate_flags,
    ),
    "figures": Command(
        summary="Draw the figures of the model: fits, costs, a timeline, and the policies compared.",
        more=f"""\
Every figure is written as PNG, as SVG, and as JSON with the numbers in it. The paths are printed.
Samples, for example (`core-scheduler fit --help` explains them):

{EXAMPLE_SAMPLES}""",
        add_flags=_figures_flags,
    ),
    "fit": Command(
        summary="Fit the cost functions f and g to measured times, with standard errors.",
        more=f"""\
Samples, for example:

{EXAMPLE_SAMPLES}

Each says that so much work took so many seconds while comm had "comm_cores" cores and comp the rest: 0..3 in
"comp" and 1..4 in "comm". f needs samples at 2 distinct core counts, g at 3, and both more samples than that.
What the samples do not tell is not made up: a note says what is missing.""",
        add_flags=_fit_flags,
    ),
}


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises its errors, in one line, and does not swallow those of stdout."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", flush=True)


def parse(name: str, argv: Sequence[str]) -> argparse.Namespace:
    """The settings of a command: explicit flag > file > default. ValueError, in one line, for whatever cannot be."""
    command, prog = COMMANDS[name], f"core-scheduler {name}"
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog=prog, description=command.summary, epilog=command.more, formatter_class=raw, allow_abbrev=False)
    command.add_flags(parser)
    flags = {action.dest: action for action in parser._actions if action.dest != "help"}
    config_help = "Read settings from this file. Its keys are the names of the flags; a flag given here wins."
    parser.add_argument("--config", metavar="FILE.toml", help=config_help)
    known = [option for action in parser._actions for option in action.option_strings]
    for flag in (word.partition("=")[0] for word in argv if word.startswith("--")):
        if flag not in known:
            raise ValueError(f"unknown flag {flag}{_closest(flag, known)}; {prog} --help explains them all")
    config = _Parser(prog=prog, add_help=False, allow_abbrev=False)
    config.add_argument("--config")
    if path := config.parse_known_args(argv)[0].config:
        _read_config(path, flags)
    settings, unexpected = parser.parse_known_args(argv)
    if unexpected:
        raise ValueError(f"unexpected argument '{unexpected[0]}'; see {prog} --help")
    for dest, value in vars(settings).items():
        if value == "":
            raise ValueError(f"{dest} is empty; see {prog} --help")
    return settings


def _read_config(path: str, flags: Mapping[str, argparse.Action]) -> None:
    """Make the settings of a TOML file the defaults. ValueError for a key that is no flag or a value of the wrong kind."""
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for key, value in document.items():
        action = flags.get(key.replace("-", "_"))
        if action is None:
            raise ValueError(f"{path}: unknown key '{key}'{_closest(key, flags)}; keys are the names of the flags")
        kind: type[Any] = str if action.type is None else int
        if isinstance(action, argparse.BooleanOptionalAction):
            kind = bool
        if type(value) is not kind:
            must = {str: "text", int: "a whole number", bool: "true or false"}[kind]
            raise ValueError(f"{path}: {key} is {value!r:.60}, must be {must}")
        action.default = value if kind is bool else str(value)  # text is read as if it were given
        action.required = False
        if not action.option_strings:
            action.nargs = "?"


def _closest(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def _simulate(settings: argparse.Namespace) -> None:
    scenario = Scenario.from_text(_read(settings.scenario))
    _check_size(scenario)
    names = _policies(settings.policies, scenario)
    works = scenario.works
    bound = lower_bound(
        modes=scenario.modes, forward=works.forward, backward=works.backward, comm=works.comm, prefetch=scenario.prefetch
    )
    results: dict[str, Result] = {}
    for name in names:
        with _told_if_slow(f"simulating {name}, {len(results) + 1} of {len(names)}"):
            results[name] = _result(scenario, name, settings)
    if settings.json:
        print(json.dumps({"lower_bound": bound, "policies": results}, indent=2, allow_nan=False))
    else:
        print("\n".join(_table(scenario, bound, results)))


@contextmanager
def _told_if_slow(words: str) -> Iterator[None]:
    timer = Timer(SLOW_S, print, [words], {"file": sys.stderr})
    if sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _check_size(scenario: Scenario) -> None:
    """ValueError where products of works or seconds could be too large for a float."""
    works, rates = scenario.works, scenario.rates
    for side, tasks, speeds in (("comm", [works.comm], rates.comm[1:]), ("comp", [works.forward, works.backward], rates.comp[:-1])):
        work = sum(float(task.max()) for task in tasks) * scenario.cycles
        if not max(work, work / min(speeds)) < MOST_WORK:
            raise ValueError(
                f"scenario: work {work:g} of {side} at rates from {min(speeds):g} is too much; choose other units of work"
            )


def _policies(given: str | None, scenario: Scenario) -> list[str]:
    """The names of the policies to simulate, as their policies spell them. ValueError for one that cannot be."""
    possible = simulable_policies(scenario)
    if given is None:
        if scenario.cycles <= MOST_CYCLES_OF_DYNAMIC or "dynamic" not in possible:
            return list(possible)
        why = f"its plan takes time quadratic in the cycles, and there are {scenario.cycles:,}"
        print(f"dynamic is left out: {why}; name it with --policies to wait for it", file=sys.stderr)
        return [name for name in possible if name != "dynamic"]
    words = [word.strip() for word in given.split(",")]
    if not all(words):
        raise ValueError(f"--policies is {given!r}, must be names with commas between")
    names = [make_policy(word, num_cores=scenario.cores, seed=0).name for word in words]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--policies is {given!r}, names {name} twice")
        if name not in possible:
            raise ValueError(f"policy '{name}' leaves the cores to a kernel and can only be measured: see edge-student compare")
    return names


def _result(scenario: Scenario, name: str, settings: argparse.Namespace) -> Result:
    if name != "random":
        return {"makespan": simulate(scenario, name, seed=settings.seed).makespan}
    makespans = random_makespans(scenario, runs=settings.random_runs, seed=settings.seed)
    least, most = float(makespans.min()), float(makespans.max())
    # A mean of equal numbers may be rounded out of their range.
    mean = min(max(float(makespans.mean()), least), most)
    return {"makespan": mean, "min": least, "max": most, "std": float(makespans.std()), "runs": len(makespans)}


def _table(scenario: Scenario, bound: float, results: Mapping[str, Result]) -> Iterable[str]:
    """The scenario in words, the lower bound, a line for each policy, and the best static split."""
    works = scenario.works
    ahead = "as far as it likes" if scenario.prefetch is None else f"up to {scenario.prefetch} batches"
    rates = "by the cost functions" if scenario.cost is not None else f"of {len(scenario.modes)} measured modes"
    yield (
        f"{scenario.cores} cores, {scenario.cycles} cycles of forward {_span(works.forward)}, backward {_span(works.backward)}"
        f" and comm {_span(works.comm)}; comm may run ahead {ahead}; rates {rates}"
    )
    yield f"lower bound {bound:.6g} s; every makespan is modelled, not measured"
    yield ""
    width = max(len(name) for name in ["policy", *results])
    yield f"{'policy':<{width}}  {'makespan':>12}  {'/ bound':>8}"
    for name, result in results.items():
        ratio = f"{result['makespan'] / bound:.4f}" if bound > 0 else "-"
        of_runs = "  mean of {runs}, +- {std:.3g}, {min:.6g} .. {max:.6g}".format(**result) if "runs" in result else ""
        yield f"{name:<{width}}  {result['makespan']:>10.6g} s  {ratio:>8}{of_runs}"
    splits = {name: result["makespan"] for name, result in results.items() if name.startswith("static:")}
    if splits:
        best = min(splits, key=lambda name: splits[name])
        yield f"\nbest static split: {best}, {splits[best]:.6g} s"


def _span(works: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    least, most = works.min(), works.max()
    return f"{least:g}" if least == most else f"{least:g} .. {most:g}"


def _figures(settings: argparse.Namespace) -> None:
    samples = None
    if settings.samples is not None:
        samples = read_json(_read(settings.samples), "samples")
        Samples.from_json(samples)
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    # matplotlib takes a second to import, which no other command should pay for.
    from scheduler.figures import write_figures

    for path in write_figures(out, runs=settings.runs, seed=settings.seed, samples=samples):
        print(path)


def _fit(settings: argparse.Namespace) -> None:
    found = fit(Samples.from_text(_read(settings.samples)))
    if not (found.comp.identified or found.comm.identified):
        raise ValueError(f"these samples tell neither f nor g: {found.comp.note}; {found.comm.note}")
    print(json.dumps(found.to_json(), indent=2, allow_nan=False) if settings.json else "\n".join(_fit_lines(found)))


def _fit_lines(found: Fit) -> Iterable[str]:
    yield from _side_lines("comp", "f(x, c) = a1 x / (1 - a2 c)", found.comp)
    yield from _side_lines("comm", "g(y, c) = y / (b1 c + b2 ln(b3 c))", found.comm)
    if found.cost is not None:
        yield f'for a scenario: "cost": {json.dumps(found.to_json()["cost"])}'


def _side_lines(name: str, formula: str, side: SideFit) -> Iterable[str]:
    r2 = "" if side.r2 is None else f", R^2 of times {side.r2:.6f}"
    yield f"{name}: {formula}, {side.num_samples} samples at {side.num_core_counts} core counts{r2}"
    for parameter, estimate in side.parameters.items():
        if estimate is not None:
            yield f"  {parameter} = {estimate.value:.6g} +- {estimate.stderr:.2g}"
    if not side.identified:
        yield f"  not identified: {side.note}"


def _read(name: str) -> str:
    """The text of a file, or of stdin for "-". ValueError if it is not UTF-8, OSError if it cannot be read."""
    with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
        data = file.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{'stdin' if name == '-' else name}: byte {error.start} is not UTF-8, so this is no JSON") from None


_RUN: dict[str, Callable[[argparse.Namespace], None]] = {"simulate": _simulate, "figures": _figures, "fit": _fit}


def _dispatch(argv: Sequence[str]) -> int:
    first = argv[0] if argv else ""
    if first in ("", "-h", "--help", "help"):
        print(_overview(), file=sys.stdout if first else sys.stderr)
        return 0 if first else 2
    if first == "--version":
        print(f"core-scheduler {importlib.metadata.version('edgekd')}")
        return 0
    if first not in COMMANDS:
        raise ValueError(
            f"unknown command '{first}', must be one of {', '.join(COMMANDS)}{_closest(first, COMMANDS)}; see core-scheduler --help"
        )
    _RUN[first](parse(first, argv[1:]))
    return 0


def _overview() -> str:
    commands = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: core-scheduler COMMAND [--flags]",
            "",
            "The scheduling model of EdgeKD without a device: every time it prints is modelled.",
            "",
            "commands:",
            *commands,
            "",
            "`core-scheduler COMMAND --help` explains a command's flags, `core-scheduler --version` names this version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `core-scheduler`: the exit status. Every foreseeable failure ends in one line on stderr."""
    try:
        status = _dispatch(sys.argv[1:] if argv is None else argv)
        print(end="", flush=True)
        return status
    except ValueError as error:
        return _report(f"error: {error}", 2)
    except BrokenPipeError:
        _forget_stdout()  # whoever read it, `head` for example, has seen enough
        return 1
    except OSError as error:
        if error.filename is None:
            _forget_stdout()  # it may be what cannot be written
            return _report(f"error: {error.strerror or error}", 1)
        return _report(f"error: {error.filename}: {error.strerror}", 1)
    except KeyboardInterrupt:
        return _report("interrupted", 130)


def _forget_stdout() -> None:
    """Python would write what is left once more when it exits, and complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(message: str, status: int) -> int:
    print(" ".join(message.split()), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
