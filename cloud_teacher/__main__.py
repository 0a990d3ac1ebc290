"""The program cloud-teacher: `train` trains a teacher, `precompute` computes its logits, `serve` streams them.

Each command imports torch after --cores has taken effect, because threads inherit the core mask when they start.
"""

import logging
import os
import sys

from edgekd.cli.shadow import check_packages

check_packages("cloud_teacher")  # before the first import of a package that another module may shadow

from cloud_teacher.settings import PrecomputeConfig, ServeConfig, TeacherConfig, TrainConfig
from edgekd.cli.command import Command, dispatch, run, start_logging
from edgekd.cli.cores import parse_cores

logger = logging.getLogger(__name__)

_DESCRIPTION = "The cloud side of EdgeKD: train a teacher and serve its logits."


def main() -> None:
    """Run the command in sys.argv and exit with its status."""
    run(lambda: dispatch(sys.argv[1:], COMMANDS, prog="cloud-teacher", description=_DESCRIPTION))


def _train(config: TrainConfig) -> int:
    start_logging(config.log_level, config.log_format)
    from cloud_teacher.train import train

    return train(config)


def _serve(config: ServeConfig) -> int:
    _start(config)
    config.check_secrets()
    from cloud_teacher.serve import serve

    return serve(config)


def _precompute(config: PrecomputeConfig) -> int:
    _start(config)
    from cloud_teacher.serve import precompute

    return precompute(config)


def _start(config: TeacherConfig) -> None:
    start_logging(config.log_level, config.log_format)
    if config.cores is not None:
        pin_process(parse_cores(config.cores))


COMMANDS: dict[str, Command] = {
    "train": ("cloud_teacher.settings:TrainConfig", _train, "Train a teacher on public data and save its weights."),
    "precompute": (
        "cloud_teacher.settings:PrecomputeConfig",
        _precompute,
        "Compute all logits of a teacher into its store. Resumes where it stopped.",
    ),
    "serve": ("cloud_teacher.settings:ServeConfig", _serve, "Stream a teacher's logits of a public data set to edges."),
}


def pin_process(cores: frozenset[int]) -> None:
    """Restrict all threads of this process, and all threads it starts later, to `cores`.

    Raises ValueError with core and allowed set if this process may not run on a core. Linux would silently ignore such a core.
    """
    allowed = os.sched_getaffinity(0)
    forbidden = sorted(cores - allowed)
    if forbidden:
        raise ValueError(f"--cores contains core {forbidden[0]}, but this process may only run on {sorted(allowed)}")
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)
    logger.info("pinned to cores %s", sorted(cores))


if __name__ == "__main__":
    main()
