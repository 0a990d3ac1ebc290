"""Predict the wall-clock of a run from a device profile. Modelled seconds are always reported apart from measured ones."""

from scheduler.model.scenario import Profile, Scenario, TaskWorks
from scheduler.policies.registry import kind_of, make_policy
from scheduler.simulation.simulator import simulate_policy

MOST_CYCLES = 1000
"""Maximum cycles to simulate. Longer runs are extrapolated, because planning at every event takes more than 1 ms per cycle."""

_SHORT_RAMP = 8


def predict(profile: Profile, policy: str, *, cycles: int, prefetch: int | None) -> float | None:
    """Return the modelled seconds of a run. `dynamic` plans with the rates of the profile, as in a live run.

    `prefetch` is the number of batches that comm may run ahead, None for no limit. The policy `random` uses seed 0. Returns None
    if the kernel assigns the cores under this policy, if it decides otherwise in a simulation (`adaptive`), or if the profile lacks
    its shared mode. Raises ValueError if the policy is impossible on the cores of the profile.
    """
    kind = kind_of(policy)
    made = make_policy(policy, num_cores=profile.cores, seed=0, profile=profile)
    has_its_mode = kind.shared_mode is None or kind.shared_mode in {mode.name for mode in profile.rates.shared}
    if not (made.is_work_conserving and has_its_mode and kind.is_predictable):
        return None
    if cycles <= MOST_CYCLES:
        return _simulated(profile, policy, cycles, prefetch)
    if prefetch is None or prefetch <= MOST_CYCLES // _SHORT_RAMP:
        # After the ramp-up, which a shorter run has too, every cycle takes the same time.
        half, whole = (_simulated(profile, policy, n, prefetch) for n in (MOST_CYCLES // 2, MOST_CYCLES))
        return whole + (cycles - MOST_CYCLES) * (whole - half) / (MOST_CYCLES - MOST_CYCLES // 2)
    # Filling a large buffer may take most of the run, so the whole run is simulated with fewer and longer cycles.
    stretch = cycles / MOST_CYCLES
    return stretch * _simulated(profile, policy, MOST_CYCLES, max(1, round(prefetch / stretch)))


def _simulated(profile: Profile, policy: str, cycles: int, prefetch: int | None) -> float:
    scenario = Scenario(
        cores=profile.cores,
        works=TaskWorks.equal(profile.workload, cycles),
        prefetch=prefetch,
        rates=profile.rates,
        cost=None,
    )
    return simulate_policy(scenario, make_policy(policy, num_cores=profile.cores, seed=0, profile=profile)).makespan
