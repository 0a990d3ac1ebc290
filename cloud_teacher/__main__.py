"""The program cloud-teacher: `train` makes a teacher, `precompute` computes its logits, `serve` streams them.

torch is imported by the command that runs, after --cores has taken effect: threads keep the cores they were born with.
"""

import logging
import os
import sys

from cloud_teacher.settings import PrecomputeConfig, ServeConfig, TeacherConfig, TrainConfig
from edgekd.cli.command import Command, dispatch, run, start_logging
from edgekd.cli.cores import parse_cores

logger = logging.getLogger(__name__)


def main() -> None:
    """Run the command that sys.argv names and exit with its status."""
    run(lambda: dispatch(sys.argv[1:], COMMANDS, prog="cloud-teacher", description="The cloud side of EdgeKD."))


def _train(config: TrainConfig) -> int:
    start_logging(config.log_level, config.log_format)
    from cloud_teacher.train import train

    return train(config)


def _serve(config: ServeConfig) -> int:
    _settle(config)
    config.check_secrets()
    from cloud_teacher.serve import serve

    return serve(config)


def _precompute(config: PrecomputeConfig) -> int:
    _settle(config)
    from cloud_teacher.serve import precompute

    return precompute(config)


def _settle(config: TeacherConfig) -> None:
    start_logging(config.log_level, config.log_format)
    if config.cores is not None:
        pin_process(parse_cores(config.cores))


COMMANDS: dict[str, Command] = {
    "train": (TrainConfig, _train, "Train a teacher on public data and save its weights."),
    "precompute": (PrecomputeConfig, _precompute, "Compute all logits of a teacher into its store. Resumes where it stopped."),
    "serve": (ServeConfig, _serve, "Stream a teacher's logits of a public data set to edges."),
}


def pin_process(cores: frozenset[int]) -> None:
    """Restrict every thread of this process, and all that it starts later, to `cores`.

    Raises ValueError naming core and allowed set if this process may not run on one of them; Linux would silently ignore it.
    """
    allowed = os.sched_getaffinity(0)
    foreign = sorted(cores - allowed)
    if foreign:
        raise ValueError(f"--cores names core {foreign[0]}, but this process may only run on {sorted(allowed)}")
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)
    logger.info("pinned to cores %s", sorted(cores))


if __name__ == "__main__":
    main()
