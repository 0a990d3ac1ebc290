"""What is checked before torch is loaded: the environment, and the cores of this run."""

from collections.abc import Mapping, MutableMapping

from edgekd.cli.cores import parse_cores
from scheduler.live.threads import allowed_cores, confine_process

# Each of these makes the OpenMP runtime set masks of its own, against ours.
_FORBIDDEN_VARIABLES = ("GOMP_CPU_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY")

_WAIT_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def check_environment(environ: Mapping[str, str]) -> None:
    """ValueError if a variable is set that makes OpenMP pin threads by itself."""
    for name, value in forbidden_variables(environ).items():
        raise ValueError(f"{name}={value} is set: OpenMP would pin its threads by itself; run `unset {name}` first")


def forbidden_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables with which OpenMP would pin threads by itself, those of them that are set."""
    return {name: environ[name] for name in _FORBIDDEN_VARIABLES if name in environ}


def spinning_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that say how OpenMP's threads wait, those of them that are set."""
    return {name: environ[name] for name in _WAIT_VARIABLES if name in environ}


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


def settle(environ: MutableMapping[str, str], wanted_cores: str | None, spin_count: int | None = None) -> tuple[int, ...]:
    """Check the environment, confine the process to its cores, and return them. To be called before torch is imported.

    `spin_count` is how long OpenMP's threads spin (`policies.LaunchOptions`); what the user has set himself stays.
    """
    check_environment(environ)
    if spin_count is not None and not spinning_variables(environ):
        environ["GOMP_SPINCOUNT"] = str(spin_count)
    cores = choose_cores(wanted_cores)
    confine_process(frozenset(cores))
    return cores
