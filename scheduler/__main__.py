"""The program `core-scheduler`: simulate a scenario, draw the figures, fit the cost functions. All times are modelled.

Each command imports its module when it runs: numpy and scipy take most of a second to load, and help needs neither.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from edgekd.cli.command import Command, dispatch, run
from edgekd.files import make_folder, named_by
from scheduler.settings import FiguresConfig, FitConfig, SimulateConfig

_DESCRIPTION = "The scheduling model of EdgeKD without a device: every time it prints is modelled."


def _simulate(config: SimulateConfig) -> None:
    text = _read("--scenario", config.scenario)
    from scheduler.simulate import simulate_policies

    simulate_policies(text, config)


def _figures(config: FiguresConfig) -> None:
    from scheduler.model.checked_json import read_json
    from scheduler.model.samples import Samples

    samples = None
    if config.samples is not None:
        samples = read_json(_read("--samples", config.samples), "samples")
        Samples.from_json(samples)  # a mistake in them must be found before the folder exists
    make_folder(config.out)
    from scheduler.figures import write_figures

    for path in write_figures(config.out, runs=config.runs, seed=config.seed, samples=samples):
        print(path)


def _fit(config: FitConfig) -> None:
    text = _read("--samples", config.samples)
    from scheduler.fit import fit_samples

    fit_samples(text, config)


COMMANDS: dict[str, Command] = {
    "simulate": (
        "scheduler.settings:SimulateConfig",
        _simulate,
        "Simulate a scenario under several policies, and compare each makespan with the lower bound.",
    ),
    "figures": (
        "scheduler.settings:FiguresConfig",
        _figures,
        "Draw the figures of the model: fits, costs, a timeline, and compared policies.",
    ),
    "fit": ("scheduler.settings:FitConfig", _fit, "Fit the cost functions f and g to measured times, with standard errors."),
}


def _read(flag: str, path: Path) -> str:
    """Read a UTF-8 file, or stdin for "-". Raises ValueError, naming the flag, for a path or bytes that cannot be read."""
    is_stdin = str(path) == "-"
    with named_by(flag), open(0 if is_stdin else path, "rb", closefd=not is_stdin) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as error:
        source = "stdin" if is_stdin else path
        raise ValueError(f"{flag}: {source}: byte {error.start} is not UTF-8, must be JSON in UTF-8") from None


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `core-scheduler`: run the command that `argv` (default: sys.argv) names, and exit with its status."""
    run(lambda: dispatch(sys.argv[1:] if argv is None else argv, COMMANDS, prog="core-scheduler", description=_DESCRIPTION))


if __name__ == "__main__":
    main()
