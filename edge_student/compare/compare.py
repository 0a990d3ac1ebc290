"""`compare`: train under several policies, interleaved, each run in a fresh process with the same seed and batches.

Policies run in turns (A B C, C B A, ...). A machine that warms up therefore affects all policies alike. Disturbed runs are
repeated, see measure/interleaving.py. The compared value is `wall_clock_s` of each run's result.json; its clock starts after
start-up.
"""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from edge_student.compare.prediction import predict
from edge_student.host.provenance import command_line, describe_host, describe_software
from edge_student.ipc.parent_death import end_with_parent
from edge_student.ipc.ring import prefetch_limit
from edge_student.measure.interleaving import is_complete, run_turns
from edge_student.measure.local_teacher import check_models, teacher
from edge_student.report.page import write_page
from edge_student.report.table import print_disturbances, print_table
from edge_student.report.verdict import BASELINE, summarize
from edge_student.run.data import load_training_data
from edge_student.run.profile_match import load_profile
from edge_student.settings.student import CompareConfig, StudentConfig, jsonable, parse_policies
from edgekd.cli.progress import Progress
from edgekd.data.datasets import load_dataset
from edgekd.errors import WorldError
from edgekd.files import make_folder, remove_if_empty, write_json
from edgekd.models.devices import choose_device
from scheduler.model.scenario import Profile
from scheduler.policies.registry import POLICIES, kind_of, make_policy

logger = logging.getLogger(__name__)

_TIMES = ("wall_clock_s", "stall_s", "hold_s", "forward_s", "backward_s", "comm_cpu_s")
_RUN_FIELDS = (*_TIMES, "cycles", "prefetch", "accuracy", "valid", "notes", "disturbance")


def compare_policies(config: CompareConfig, cores: tuple[int, ...]) -> int:
    """Run all policies, write report.json and report.html, print the table. Return 1 if a run failed, else 0.

    Raises ValueError for a wrong setting, WorldError if the teacher or the first run fails.
    """
    policies = choose_policies(config, len(cores))
    profile = load_profile(config, cores, device=str(choose_device(config.device)), num_shards=None)
    check_data_and_model(config)
    is_new = make_folder(config.out)
    host = describe_host(cores)
    runs: list[dict[str, Any]] = []
    try:
        with teacher(config, cores[0]) as address:
            _run_all(config, address, policies, runs)
    finally:
        if runs:  # an interrupted comparison reports the runs that it has
            _report(config, host, policies, runs, predict_all(profile, policies, runs, config.cycles))
        else:
            remove_if_empty(config.out / "runs")
            if is_new:
                remove_if_empty(config.out)
    failed = [run for run in runs if not run["valid"] and not run["disturbed"]]
    for run in failed:
        logger.warning("run of %s, repeat %d, does not count: %s", run["policy"], run["repeat"], "; ".join(run["notes"]))
    return 1 if failed else 0


def _remove_old_files(out: Path, first_run: str) -> None:
    """Remove the files of an earlier comparison, all but the folder of the first run of this one."""
    for name in ("report.json", "report.html"):
        (out / name).unlink(missing_ok=True)
    for folder in (out / "runs").iterdir():
        if folder != out / first_run:
            shutil.rmtree(folder)


def check_data_and_model(config: CompareConfig) -> None:
    """Check data sets and models before a teacher is trained. Raises ValueError."""
    data = load_training_data(config)
    if config.teacher is None:
        public = data.public or load_dataset(config.public_dataset)
        if not public.is_labelled:
            raise ValueError(f"{public.name} has no labels, so no local teacher can be trained: name a trained one with --teacher")
    check_models(config, data.private, data.input_shape)


def predict_all(
    profile: Profile | None, policies: Sequence[str], runs: Sequence[dict[str, Any]], cycles: int
) -> dict[str, float | None]:
    """Return modelled seconds by policy, with the prefetch of its measured runs. Empty without a profile."""
    if profile is None:
        return {}
    predictions: dict[str, float | None] = {}
    for policy in policies:
        slots = next((run["prefetch"] for run in runs if run["policy"] == policy and run["prefetch"] is not None), None)
        try:
            if slots is None:
                predictions[policy] = None
            else:
                predictions[policy] = predict(profile, policy, cycles=cycles, prefetch=prefetch_limit(slots, cycles))
        except ValueError as error:  # a missing prediction must not prevent the report
            logger.warning("no prediction for %s: %s", policy, error)
            predictions[policy] = None
    return predictions


def _report(
    config: CompareConfig,
    host: dict[str, Any],
    policies: Sequence[str],
    runs: Sequence[dict[str, Any]],
    predictions: Mapping[str, float | None],
) -> None:
    """Write report.json and report.html, and print the table."""
    summary = summarize(runs, policies, predictions)
    report = {
        "host": host,
        "software": describe_software(),
        "config": jsonable(dataclasses.asdict(config)),
        "command": command_line(sys.argv),
        "is_complete": is_complete(policies, config.repeats, runs),
        "runs": runs,
        "summary": [dataclasses.asdict(row) for row in summary],
    }
    path = config.out / "report.json"
    write_json(path, report)
    print_table(summary, runs, report)
    print_disturbances(runs)
    page = write_page(config.out)
    print(f"Report: {path}. Page: {page}. Logs of each run: {config.out / 'runs'}.")


def choose_policies(config: CompareConfig, num_cores: int) -> tuple[str, ...]:
    """Return the requested policies, by default all that `num_cores` allow. Raises ValueError for an impossible policy."""
    if config.policies is not None:
        names = parse_policies(config.policies)
        for name in names:
            make_policy(name, num_cores=num_cores, seed=config.seed)
        return names
    names = tuple(kind.names(max(num_cores, 2))[0] for kind in POLICIES.values())
    possible = tuple(name for name in names if num_cores > 1 or not splits_cores(name))
    if num_cores == 2:
        drawn = [name for name in names if kind_of(name).is_random]
        for name in drawn:
            logger.info("%s is skipped: with 2 cores there is one split, so it equals static:1; request it with --policies", name)
        return tuple(name for name in names if name not in drawn)
    if possible != names:
        logger.warning(
            "a run has %d core, so policies that split cores are skipped: %s", num_cores, ", ".join(set(names) - set(possible))
        )
    return possible


def splits_cores(name: str) -> bool:
    """Return whether a policy needs at least two cores."""
    try:
        make_policy(name, num_cores=1, seed=0)
    except ValueError:
        return True
    return False


def _run_all(config: CompareConfig, address: str | None, policies: Sequence[str], runs: list[dict[str, Any]]) -> None:
    """Run every policy in every turn, with a progress bar. Repeated attempts do not advance the bar."""
    with Progress("runs", len(policies) * config.repeats) as progress:

        def run_once(policy: str, repeat: int, attempt: int) -> dict[str, Any]:
            progress.describe(policy if attempt == 1 else f"{policy}, attempt {attempt}")
            run = _run_once(config, address, policy, repeat, attempt)
            if not runs:  # not earlier, so that a comparison that cannot run leaves the files of the last one
                _remove_old_files(config.out, run["folder"])
            if attempt == 1:
                progress.advance()
            return run

        run_turns(policies, config.repeats, run_once, runs)


def _run_once(config: CompareConfig, address: str | None, policy: str, repeat: int, attempt: int) -> dict[str, Any]:
    """Run one fresh process. Return its result, or a note with its last error line if it failed.

    Raises ValueError or WorldError if the very first run fails, because the cause would fail every other run.
    """
    name = f"{policy.replace(':', '-')}-{repeat}" + ("" if attempt == 1 else f"-attempt-{attempt}")
    out = config.out / "runs" / name
    # The run logs as text in any case, because its last line goes into the report as the cause of a failure.
    command = [sys.executable, "-P", "-m", "edge_student", "train", *shared_flags(dataclasses.replace(config, log_format="text"))]
    command += ["--policy", policy, "--out", str(out), "--checkpoint-every", "0"]
    command += [] if address is None else ["--teacher", address]
    # In hybrid mode each run fills its own cache. A shared cache would make the first run slower than the others.
    with tempfile.TemporaryDirectory(prefix="edgekd-") if config.logits == "hybrid" else nullcontext() as cache:
        command += [] if cache is None else ["--cache", cache]
        process = subprocess.run(
            command,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            preexec_fn=end_with_parent,
        )
    run: dict[str, Any] = {"policy": policy, "repeat": repeat, "folder": f"runs/{name}", **dict.fromkeys(_RUN_FIELDS)}
    if process.returncode != 0:
        error_lines = process.stderr.strip().splitlines() or ["no message on stderr"]
        if repeat == 0 and policy == BASELINE and attempt == 1:
            cause = error_lines[-1].removeprefix("error: ")
            raise ValueError(cause) if process.returncode == 2 else WorldError(f"the first run failed: {cause}")
        return {**run, "valid": False, "notes": [f"exit status {process.returncode}: {error_lines[-1]}"]}
    result = json.loads((out / "result.json").read_text())
    logger.debug("%s: %s", policy, process.stdout.strip())
    return {**run, **{name: result[name] for name in _RUN_FIELDS}}


def shared_flags(config: StudentConfig) -> list[str]:
    """Return the settings shared by `train` and `compare` as command-line flags of `train`."""
    flags = []
    for field in dataclasses.fields(StudentConfig):
        value = getattr(config, field.name)
        if value is not None:
            flag = f"--{field.name.replace('_', '-')}"
            flags += ([flag] if value else []) if isinstance(value, bool) else [flag, str(value)]
    return flags
