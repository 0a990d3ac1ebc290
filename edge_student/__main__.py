"""The program edge-student. Each command imports torch only after environment and cores are settled."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from edgekd.cli.shadow import check_packages

check_packages("edge_student", "scheduler")  # before the first import of a package that another module may shadow

from edge_student.host.environment import settle
from edge_student.run.signals import SignalHandler, Terminated
from edgekd.cli.command import Command, dispatch, run, start_logging
from edgekd.cli.logs import set_log_context

if TYPE_CHECKING:
    from edge_student.settings.doctor import DoctorConfig
    from edge_student.settings.fetch import FetchConfig
    from edge_student.settings.inference import EvaluateConfig, ExportConfig, PredictConfig
    from edge_student.settings.student import CalibrateConfig, CompareConfig, StudentConfig, TrainConfig
    from edge_student.settings.watch import WatchConfig

logger = logging.getLogger(__name__)

_DESCRIPTION = "The edge side of EdgeKD: train a student on private data with the logits of a cloud teacher."


def train(config: TrainConfig) -> int:
    """Train one student under one policy."""
    start_logging(config.log_level, config.log_format, fields={"edge": config.edge_id})
    signals = SignalHandler()
    from scheduler.policies.registry import kind_of

    try:
        signals.install()
        config.check_secrets()
        cores = settle(os.environ, config.cores, kind_of(config.policy).launch_options.spin_count)
        _prepare_workers(config, config.policy, len(cores))
        # This import loads torch, which reads environment variables and the core mask when it is loaded.
        from edge_student.run.run import Run

        with Run(config, cores, signals) as training:
            set_log_context(run=training.run_id, policy=config.policy)
            logger.info("run %s of edge %s under policy %s", training.run_id, config.edge_id, config.policy)
            result = training.execute()
    except Terminated:
        logger.warning("terminated by a signal; to resume from the last checkpoint, run the same command with --resume")
        return 0
    accuracy = "not measured" if result["accuracy"] is None else f"{result['accuracy']:.4f}"
    print(
        f"{result['policy']}: {result['cycles']} cycles in {result['wall_clock_s']:.2f} s, "
        f"accuracy {accuracy}, stalled {result['stall_s']:.2f} s, held {result['hold_s']:.2f} s; see {config.out}"
    )
    return 0


def _prepare_workers(config: StudentConfig, policy: str, num_cores: int) -> None:
    """Let compute workers import torch, which takes a second, while this process does."""
    from edge_student.run.shards import choose_shards

    if choose_shards(config, policy, num_cores, former=None) > 1:
        from edge_student.workers.server import start_server

        start_server(config.model)


def compare(config: CompareConfig) -> int:
    """Train the same student under several policies and compare their wall-clock."""
    start_logging(config.log_level, config.log_format, fields={"edge": config.edge_id})
    config.check_secrets()
    cores = settle(os.environ, config.cores)
    from edge_student.compare.compare import compare_policies

    return compare_policies(config, cores)


def calibrate(config: CalibrateConfig) -> int:
    """Measure this device's rates in each mode and save a device profile."""
    start_logging(config.log_level, config.log_format, fields={"edge": config.edge_id})
    config.check_secrets()
    from scheduler.policies.registry import SHORT_SPIN

    cores = settle(os.environ, config.cores, SHORT_SPIN)
    _prepare_workers(config, "adaptive", len(cores))
    from edge_student.calibrate.calibrate import calibrate as measure_and_save

    return measure_and_save(config, cores)


def fetch(config: FetchConfig) -> int:
    """Download all logits of a teacher into the cache of this edge."""
    start_logging(config.log_level, config.log_format, fields={"edge": config.edge_id})
    config.check_secrets()
    from edge_student.fetch import fetch as receive_and_keep

    return receive_and_keep(config)


def doctor(config: DoctorConfig) -> int:
    """Check this device and the connection to its teacher."""
    start_logging(config.log_level, config.log_format)
    # A wrong variable, core or file is an error for the other commands and a finding here. So nothing is checked in advance.
    from edge_student.doctor.doctor import check_device

    return check_device(config)


def evaluate(config: EvaluateConfig) -> int:
    """Measure the accuracy of a trained student."""
    from edge_student.inference.evaluate import evaluate as measure

    return measure(config)


def predict(config: PredictConfig) -> int:
    """Predict the classes of files."""
    from edge_student.inference.predict import predict as predict_files

    return predict_files(config)


def export(config: ExportConfig) -> int:
    """Export a trained student, and check the file."""
    from edge_student.inference.export import export as write

    return write(config)


def watch(config: WatchConfig) -> int:
    """Show a running training."""
    from edge_student.watch import watch as show

    return show(config)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


COMMANDS: dict[str, Command] = {
    "train": (
        "edge_student.settings.student:TrainConfig",
        train,
        "Train a student with a teacher's logits under one scheduling policy.",
    ),
    "calibrate": (
        "edge_student.settings.student:CalibrateConfig",
        calibrate,
        "Measure this device's rates in each mode and save a device profile.",
    ),
    "fetch": ("edge_student.settings.fetch:FetchConfig", fetch, "Download all logits of a teacher into the cache of this edge."),
    "compare": (
        "edge_student.settings.student:CompareConfig",
        compare,
        "Train the same student under several policies and compare wall-clock.",
    ),
    "watch": ("edge_student.settings.watch:WatchConfig", watch, "Show a running training in another shell."),
    "evaluate": (
        "edge_student.settings.inference:EvaluateConfig",
        evaluate,
        "Measure the accuracy of a trained student, by class.",
    ),
    "predict": ("edge_student.settings.inference:PredictConfig", predict, "Predict the classes of files with a trained student."),
    "export": (
        "edge_student.settings.inference:ExportConfig",
        export,
        "Export a trained student to ONNX, torch.export or ExecuTorch.",
    ),
    "doctor": (
        "edge_student.settings.doctor:DoctorConfig",
        doctor,
        "Check this device and the connection to its teacher before measuring.",
    ),
}


def main() -> NoReturn:
    """Run the command in sys.argv and exit with its status."""
    # SIGTERM ends a command like Ctrl-C. `train` installs its own handler; before that there is nothing to save.
    if sys.argv[1:2] != ["train"]:
        signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores SIGHUP; a closed terminal sends it
        signal.signal(signal.SIGHUP, _interrupt)
    run(lambda: dispatch(sys.argv[1:], COMMANDS, prog="edge-student", description=_DESCRIPTION))


if __name__ == "__main__":
    main()
