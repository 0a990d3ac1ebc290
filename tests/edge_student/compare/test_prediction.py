"""Predictions equal the simulator's makespans with the rates of the profile, and are None without a model."""

from typing import Any

import pytest

from edge_student.compare import prediction
from edge_student.compare.prediction import predict
from scheduler.model.scenario import Profile, Scenario
from scheduler.policies.registry import make_policy
from scheduler.simulation.simulator import simulate_policy


def profile(*, cores: int = 4, shared: bool = False, **works: float) -> Profile:
    names = ["comp-only", *(f"split:{c}" for c in range(1, cores)), "comm-only"]
    modes = [{"name": name, "comm_rate": c**0.7, "comp_rate": (cores - c) ** 0.9} for c, name in enumerate(names)]
    if shared:
        modes.append({"name": "compute-first", "comm_rate": 0.5, "comp_rate": 0.9 * cores**0.9})
    return Profile.from_json({"cores": cores, "forward": 0.4, "backward": 0.6, "comm": 0.8, "modes": modes} | works)


@pytest.mark.parametrize("policy", ["static:1", "static:3", "random", "comm-priority", "comp-priority", "dynamic"])
@pytest.mark.parametrize("prefetch", [None, 3])
def test_a_prediction_is_the_simulators_makespan(policy: str, prefetch: int | None) -> None:
    known = profile()
    rows = [{"name": mode.name, "comm_rate": mode.comm_rate, "comp_rate": mode.comp_rate} for mode in known.rates.modes()]
    data: dict[str, Any] = {"cores": 4, "cycles": 30, "forward": 0.4, "backward": 0.6, "comm": 0.8, "modes": rows}
    scenario = Scenario.from_json(data | ({} if prefetch is None else {"prefetch": prefetch}))
    expected = simulate_policy(scenario, make_policy(policy, num_cores=4, seed=0, profile=known)).makespan
    assert predict(known, policy, cycles=30, prefetch=prefetch) == expected


@pytest.mark.parametrize("policy", ["os-default", "os-tuned", "elastic", "adaptive"])
def test_the_kernel_and_the_level_of_the_buffer_are_not_modelled(policy: str) -> None:
    assert predict(profile(shared=True), policy, cycles=10, prefetch=None) is None


def test_a_shared_mode_is_predicted_if_it_was_measured() -> None:
    assert predict(profile(), "compute-first", cycles=10, prefetch=None) is None
    assert predict(profile(shared=True), "compute-first", cycles=10, prefetch=None) is not None


def test_an_impossible_policy_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"must lie in 1\.\.3"):
        predict(profile(), "static:9", cycles=10, prefetch=None)


@pytest.mark.parametrize("policy", ["static:1", "static:3", "comm-priority", "dynamic"])
@pytest.mark.parametrize("prefetch", [None, 2, 5, 60])
@pytest.mark.parametrize("comm", [0.2, 0.8, 3.0])
def test_a_long_run_is_stretched_from_a_short_one(
    policy: str, prefetch: int | None, comm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = profile(comm=comm)
    whole = predict(known, policy, cycles=150, prefetch=prefetch)
    monkeypatch.setattr(prediction, "MOST_CYCLES", 50)
    assert predict(known, policy, cycles=150, prefetch=prefetch) == pytest.approx(whole, rel=0.02)
