"""Chooses the number of shards of a run."""

from edge_student.settings.student import StudentConfig
from scheduler.policies.registry import kind_of

_MIN_ROWS = 8
"""Rows of a shard below which another shard costs more than it saves."""


def choose_shards(config: StudentConfig, policy: str, num_cores: int, former: int | None) -> int:
    """Return the number of shards: --shards, else that of the run that is resumed (`former`), else the default."""
    return config.shards or former or _default_shards(config, policy, num_cores)


def _default_shards(config: StudentConfig, policy: str, num_cores: int) -> int:
    """Return the number of shards of a run without --shards: one for each core, if every shard has 8 rows.

    The baselines of plain torch have one team of threads, and so have --torch-threads, --while-starved private and a GPU.
    """
    if (
        kind_of(policy).launch_options.has_team
        or config.torch_threads is not None
        or config.device != "cpu"
        or config.while_starved != "wait"
    ):
        return 1
    rows = (config.batch_size + config.public_batch) // _MIN_ROWS
    return max(1, min(num_cores, rows, config.batch_size, config.public_batch))
