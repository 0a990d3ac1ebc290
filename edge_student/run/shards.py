"""How many shards a run has."""

from edge_student.settings.student import StudentConfig
from scheduler.policies.registry import kind_of

_MIN_ROWS = 8
"""Rows of a shard below which another shard costs more than it saves."""


def default_shards(config: StudentConfig, policy: str, num_cores: int) -> int:
    """Return the number of shards of a run without --shards: one for each core, if every shard has 8 rows.

    The baselines of plain torch have one team of threads, and so have --torch-threads and a GPU.
    """
    if kind_of(policy).launch_options.has_team or config.torch_threads is not None or config.device != "cpu":
        return 1
    rows = (config.batch_size + config.public_batch) // _MIN_ROWS
    return max(1, min(num_cores, rows, config.batch_size, config.public_batch))


def choose_shards(config: StudentConfig, policy: str, num_cores: int, former: int | None) -> int:
    """Return the number of shards: --shards, else that of the run that is resumed (`former`), else the default.

    Raises ValueError for several shards on a GPU, or more than --public-batch.
    """
    if config.shards is not None and config.shards > config.public_batch:
        raise ValueError(f"--shards is {config.shards}, must be at most {config.public_batch}: each has a row of --public-batch")
    if config.shards is not None and config.shards > 1 and config.device != "cpu":
        raise ValueError(f"--shards is {config.shards}, but --device is {config.device}: shards are for the CPU; omit it")
    return config.shards or former or default_shards(config, policy, num_cores)
