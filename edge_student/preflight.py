"""What is checked before torch is loaded: the environment, and the cores of this run."""

from collections.abc import Mapping

from edgekd.cores import parse_cores
from scheduler.binding import allowed_cores, confine_process

# Each of these makes the OpenMP runtime set masks of its own, against ours.
_FORBIDDEN_VARIABLES = ("GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY")


def check_environment(environ: Mapping[str, str]) -> None:
    """ValueError if a variable is set that makes OpenMP pin threads by itself."""
    for name in _FORBIDDEN_VARIABLES:
        if name in environ:
            raise ValueError(f"{name}={environ[name]} is set: OpenMP would pin its threads by itself; run `unset {name}` first")


def choose_cores(wanted: str | None) -> tuple[int, ...]:
    """The cores of this run, sorted: `wanted` (like 0-3), or all that the process may use. ValueError for one it may not use."""
    allowed = allowed_cores()
    if wanted is None:
        return tuple(sorted(allowed))
    cores = parse_cores(wanted)
    missing = sorted(cores - allowed)
    if missing:
        raise ValueError(
            f"--cores {wanted}: core {missing[0]} is offline or not allowed to this process, which may use {sorted(allowed)}"
        )
    return tuple(sorted(cores))


def settle(environ: Mapping[str, str], wanted_cores: str | None) -> tuple[int, ...]:
    """Check the environment, confine the process to its cores, and return them. To be called before torch is imported."""
    check_environment(environ)
    cores = choose_cores(wanted_cores)
    confine_process(frozenset(cores))
    return cores
