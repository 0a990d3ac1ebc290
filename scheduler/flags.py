"""The flags of `core-scheduler`: what each command may be told, by whom, and how its help teaches it.

A setting comes from its flag, else from `--config FILE.toml`, else it has its default. What cannot be is a ValueError in one line.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MOST_MOVES_OF_DYNAMIC = 12_000_000
"""Its plan weighs about cycles x cycles x cores moves; if they are more, it is simulated only when it is named."""

MAX_RUNS, MAX_SEED = 1_000_000, 2**32 - 1

MISTAKEN_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)
"""What the system says of a path that the user named wrongly; a disk that is full or broken is not his mistake."""

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
    without = f"all that can be simulated, `dynamic` only if cycles x cycles x cores is at most {MOST_MOVES_OF_DYNAMIC:,}"
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
            raise ValueError(f"unknown flag {flag}{closest(flag, known)}; {prog} --help explains them all")
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
    except MISTAKEN_PATH as error:
        raise ValueError(f"{path}: {error.strerror}; name a file with --config") from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for key, value in document.items():
        action = flags.get(key.replace("-", "_"))
        if action is None:
            raise ValueError(f"{path}: unknown key '{key}'{closest(key, flags)}; keys are the names of the flags")
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


def closest(word: str, known: Iterable[str]) -> str:
    """What the user may have meant, as the end of an error message; empty if nothing is near."""
    matches = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""
