"""Checks the environment and confines the process to its cores, before torch is imported."""

from collections.abc import Mapping, MutableMapping

from edgekd.cli.cores import parse_cores
from scheduler.live.threads import allowed_cores, confine_process

# Each of these makes the OpenMP runtime set affinity masks, which conflict with those of the scheduler.
_FORBIDDEN_VARIABLES = ("GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY")

_WAIT_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def check_environment(environ: Mapping[str, str]) -> None:
    """Raise ValueError if a variable is set that makes OpenMP pin its threads."""
    for name, value in forbidden_variables(environ).items():
        raise ValueError(f"{name}={value} is set, but OpenMP must not pin its own threads: run `unset {name}` first")


def forbidden_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the set variables that make OpenMP pin its threads."""
    return {name: environ[name] for name in _FORBIDDEN_VARIABLES if name in environ}


def spinning_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the set variables that control how OpenMP's idle threads wait."""
    return {name: environ[name] for name in _WAIT_VARIABLES if name in environ}


def choose_cores(requested: str | None) -> tuple[int, ...]:
    """Return the sorted cores of this run: `requested` (for example 0-3), by default all cores allowed to the process.

    Raises ValueError for a core that is not allowed.
    """
    allowed = allowed_cores()
    if requested is None:
        return tuple(sorted(allowed))
    cores = parse_cores(requested)
    missing = sorted(cores - allowed)
    if missing:
        raise ValueError(
            f"--cores {requested}: core {missing[0]} is offline or not allowed to this process, which may use {sorted(allowed)}"
        )
    return tuple(sorted(cores))


def settle(environ: MutableMapping[str, str], requested_cores: str | None, spin_count: int | None = None) -> tuple[int, ...]:
    """Check the environment, confine the process to its cores, and return the cores. Call it before torch is imported.

    `spin_count` sets how long OpenMP's idle threads spin (`LaunchOptions`); a variable set by the user has precedence.
    Raises ValueError for a forbidden variable or core.
    """
    check_environment(environ)
    if spin_count is not None and not spinning_variables(environ):
        environ["GOMP_SPINCOUNT"] = str(spin_count)
    cores = choose_cores(requested_cores)
    confine_process(frozenset(cores))
    return cores
