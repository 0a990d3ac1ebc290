"""The program `core-scheduler`: simulate a scenario, draw the figures, fit the cost functions. All of it is modelled time.

Its manners are those of the other two programs. A setting comes from its flag, else from `--config FILE.toml`, else it has its
default. A user's mistake ends in one line and exit status 2, a failure of the world in one line and 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any, TypeAlias

import numpy as np

from scheduler.flags import COMMANDS, MISTAKEN_PATH, MOST_MOVES_OF_DYNAMIC, closest, parse
from scheduler.model.checked_json import read_json
from scheduler.model.fit import Fit, SideFit, fit
from scheduler.model.samples import Samples
from scheduler.model.scenario import Scenario
from scheduler.policies.registry import make_policy
from scheduler.simulation.simulator import random_makespans, simulable_policies, simulate

Result: TypeAlias = dict[str, float]
"""What is known of one policy: its makespan, and for `random` the mean of them with min, max, std and runs."""

SLOW_S = 2.0
"""A policy whose simulation takes longer is named on a terminal."""


def _simulate(settings: argparse.Namespace) -> None:
    scenario = Scenario.from_text(_read(settings.scenario))
    names = _policies(settings.policies, scenario)
    bound = scenario.lower_bound()
    if not scenario.rates.is_monotone:
        print("some rates fall where a side gets more cores: adaptive may then lose to a fixed split", file=sys.stderr)
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


def _policies(given: str | None, scenario: Scenario) -> list[str]:
    """The names of the policies to simulate, as their policies spell them. ValueError for one that cannot be."""
    if given is None:
        possible = list(simulable_policies(scenario))
        if scenario.cycles**2 * scenario.cores <= MOST_MOVES_OF_DYNAMIC:
            return possible
        why = f"its plan weighs about cycles x cycles x cores moves, here {scenario.cycles**2 * scenario.cores:,}"
        print(f"dynamic is left out: {why}; name it with --policies to wait for it", file=sys.stderr)
        return [name for name in possible if name != "dynamic"]
    words = [word.strip() for word in given.split(",")]
    if not all(words):
        raise ValueError(f"--policies is {given!r}, must be names with commas between")
    policies = [make_policy(word, num_cores=scenario.cores, seed=0) for word in words]
    names = [policy.name for policy in policies]
    for policy, name in zip(policies, names, strict=True):
        if names.count(name) > 1:
            raise ValueError(f"--policies is {given!r}, names {name} twice")
        if not policy.is_work_conserving:
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
    try:
        out.mkdir(parents=True, exist_ok=True)
    except MISTAKEN_PATH as error:
        raise ValueError(f"--out: {error.filename}: {error.strerror}; name a folder that can be made") from None
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
    r2 = "" if side.r2 is None else f", R^2 of times per work {side.r2:.6f}"
    yield f"{name}: {formula}, {side.num_samples} samples at {side.num_core_counts} core counts{r2}"
    for parameter, estimate in side.parameters.items():
        if estimate is not None:
            error = "" if estimate.stderr is None else f" +- {estimate.stderr:.2g}"
            yield f"  {parameter} = {estimate.value:.6g}{error}"
    if side.note:
        yield f"  {'note' if side.identified else 'not identified'}: {side.note}"


def _read(name: str) -> str:
    """The text of a file, or of stdin for "-". ValueError if it is not UTF-8, or no file to be read."""
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            data = file.read()
    except MISTAKEN_PATH as error:
        raise ValueError(f"{name}: {error.strerror}; name a file, or - for stdin") from None
    try:
        return data.decode("utf-8-sig")  # editors of some systems put a mark before the text
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
            f"unknown command '{first}', must be one of {', '.join(COMMANDS)}{closest(first, COMMANDS)}; see core-scheduler --help"
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
