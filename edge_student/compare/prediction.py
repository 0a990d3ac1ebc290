"""What the model says a run will take on a measured device: modelled wall-clock, never to be mixed with measured."""

from scheduler.model.scenario import Profile, Scenario, TaskWorks
from scheduler.policies.registry import kind_of, make_policy
from scheduler.simulation.simulator import simulate_policy

MOST_CYCLES = 1000
"""A policy that plans at every event takes a millisecond and more for a cycle. Longer runs are stretched from shorter ones."""

_SHORT_RAMP = 8


def predict(profile: Profile, policy: str, *, cycles: int, prefetch: int | None) -> float | None:
    """Modelled seconds of a run under this policy, which plans with the profile's rates as a live run does.

    `prefetch` is how many batches comm may run ahead, None: no limit; `random` draws from seed 0. None where there is nothing to
    model: a policy that leaves the cores to the kernel, or one whose mode the profile lacks. ValueError for one that cannot be on
    its cores.
    """
    kind = kind_of(policy)
    made = make_policy(policy, num_cores=profile.cores, seed=0, profile=profile)
    has_its_mode = kind.shared_mode is None or kind.shared_mode in {mode.name for mode in profile.rates.shared}
    if not (made.is_work_conserving and has_its_mode):
        return None
    if cycles <= MOST_CYCLES:
        return _simulated(profile, policy, cycles, prefetch)
    if prefetch is None or prefetch <= MOST_CYCLES // _SHORT_RAMP:
        # After a beginning that is as long in a shorter run, every further cycle takes the same.
        half, whole = (_simulated(profile, policy, n, prefetch) for n in (MOST_CYCLES // 2, MOST_CYCLES))
        return whole + (cycles - MOST_CYCLES) * (whole - half) / (MOST_CYCLES - MOST_CYCLES // 2)
    # Filling a large buffer may take most of the run: the same run in fewer and larger pieces.
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
