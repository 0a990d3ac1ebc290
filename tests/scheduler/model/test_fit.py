"""Fitting: true parameters are found, standard errors are right, and unidentifiable parameters get no value."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.model.cost import CostModel
from scheduler.model.fit import fit
from scheduler.model.fit_result import Estimate, Fit, SideFit
from scheduler.model.samples import Sample, Samples
from scheduler.model.scenario import Scenario

CONCAVE = CostModel(a1=2.0, a2=0.1, b1=0.5, b2=1.0, b3=3.0)
CONVEX = CostModel(a1=0.003, a2=0.12, b1=50.0, b2=-30.0, b3=0.9)
SLOWED = CostModel(a1=2.0, a2=-0.05, b1=0.12, b2=0.08, b3=math.e)


def measure(
    model: CostModel, cores: int, *, noise: float = 0.0, seed: int = 0, repeats: int = 1, splits: Sequence[int] | None = None
) -> Samples:
    """Times of the model, each with a factor exp(noise * normal), at every core count or at the `splits` of both sides."""
    generator = random.Random(seed)

    def samples(time: Any, possible: range) -> tuple[Sample, ...]:
        made = []
        for c in possible if splits is None else splits:
            for _ in range(repeats):
                work = math.exp(generator.uniform(-5.0, 5.0))
                made.append(Sample(work=work, comm_cores=c, seconds=time(work, c) * math.exp(generator.gauss(0.0, noise))))
        return tuple(made)

    return Samples(cores=cores, comp=samples(model.comp_time, range(cores)), comm=samples(model.comm_time, range(1, cores + 1)))


def estimates(found: Fit) -> dict[str, Estimate]:
    parameters = {**found.comp.parameters, **found.comm.parameters}
    return {name: estimate for name, estimate in parameters.items() if estimate is not None}


def assert_unknown(side: SideFit, words: str) -> None:
    assert not side.identified
    assert words in side.note
    assert (set(side.parameters.values()), side.r2) == ({None}, None)


@pytest.mark.parametrize("cores", [3, 4, 8, 64])
@pytest.mark.parametrize("model", [CONCAVE, CONVEX, SLOWED], ids=["concave", "convex", "slowed"])
def test_exact_times_give_the_parameters_back(model: CostModel, cores: int) -> None:
    if cores == 64:
        model = CostModel(a1=model.a1, a2=model.a2 / 10, b1=model.b1, b2=model.b2, b3=model.b3)
    found = fit(measure(model, cores, repeats=2))
    assert found.cost is not None
    for name, estimate in estimates(found).items():
        assert estimate.value == pytest.approx(getattr(model, name), rel=1e-6)
        assert getattr(found.cost, name) == estimate.value
    assert found.comp.r2 == pytest.approx(1.0)
    assert found.comm.r2 == pytest.approx(1.0)
    assert (found.comp.num_samples, found.comp.num_core_counts) == (2 * cores, cores)


def test_three_core_counts_are_enough_for_g_and_two_for_f() -> None:
    found = fit(measure(CONCAVE, 8, splits=(2, 5), repeats=2))
    assert found.comp.identified
    assert found.comp_time(3.0, 7) == pytest.approx(CONCAVE.comp_time(3.0, 7), rel=1e-9)
    found = fit(measure(CONCAVE, 8, splits=(1, 3, 7), repeats=2))
    assert found.comm_time(3.0, 8) == pytest.approx(CONCAVE.comm_time(3.0, 8), rel=1e-9)


def test_noisy_times_give_parameters_within_a_few_standard_errors() -> None:
    found = estimates(fit(measure(CONCAVE, 8, noise=0.03, repeats=10)))
    assert len(found) == 5
    for name, estimate in found.items():
        assert abs(estimate.value - getattr(CONCAVE, name)) < 4 * estimate.stderr


def test_two_standard_errors_cover_the_truth_as_often_as_they_should() -> None:
    covered: dict[str, list[bool]] = {}
    for seed in range(300):
        for name, estimate in estimates(fit(measure(CONCAVE, 8, noise=0.02, repeats=4, seed=seed))).items():
            covered.setdefault(name, []).append(abs(estimate.value - getattr(CONCAVE, name)) <= 2 * estimate.stderr)
    assert {name: len(hits) for name, hits in covered.items()} == dict.fromkeys(("a1", "a2", "b1", "b2", "b3"), 300)
    shares = {name: sum(hits) / len(hits) for name, hits in covered.items()}
    assert all(0.90 <= share <= 0.99 for share in shares.values()), shares


def test_with_two_core_counts_f_goes_through_the_geometric_means_and_its_error_is_theirs() -> None:
    """By hand: a1 is the mean of 4 samples at c = 0. The variance comes from 8 errors of 0.1 with 6 degrees of freedom."""
    times = {0: 2.0, 1: 3.0}
    comp = tuple(
        Sample(work=1.0, comm_cores=c, seconds=time * math.exp(sign * 0.1)) for c, time in times.items() for sign in (1, 1, -1, -1)
    )
    a1, a2 = fit(Samples(cores=2, comp=comp, comm=comp)).comp.parameters.values()
    assert a1 is not None
    assert a2 is not None
    assert a1.value == pytest.approx(2.0, rel=1e-12)
    assert a2.value == pytest.approx(1 - 2.0 / 3.0, rel=1e-12)  # 1 - rate(1) / rate(0)
    deviation = 0.1 * math.sqrt(8 / 6) / math.sqrt(4)
    assert a1.stderr == pytest.approx(2.0 * deviation, rel=1e-9)
    assert a2.stderr == pytest.approx(2.0 / 3.0 * deviation * math.sqrt(2), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_no_parameters_nearby_have_smaller_relative_errors(seed: int) -> None:
    samples = measure(CONCAVE, 6, noise=0.1, repeats=10, seed=seed)
    found = fit(samples).cost
    assert found is not None

    def squares(model: CostModel) -> float:
        comp = [math.log(model.comp_time(s.work, s.comm_cores) / s.seconds) for s in samples.comp]
        return math.fsum(
            e * e for e in [*comp, *(math.log(model.comm_time(s.work, s.comm_cores) / s.seconds) for s in samples.comm)]
        )

    values = {name: getattr(found, name) for name in ("a1", "a2", "b1", "b2", "b3")}
    for name in values:
        for factor in (0.999, 1.001):
            assert squares(CostModel(**values | {name: values[name] * factor})) > squares(found)


def test_r2_is_that_of_the_times_per_unit_of_work() -> None:
    samples = measure(CONCAVE, 4, noise=0.2, repeats=10)
    found = fit(samples)
    times = np.array([s.seconds / s.work for s in samples.comp])
    model = np.array([found.comp_time(1.0, s.comm_cores) for s in samples.comp])
    assert found.comp.r2 == pytest.approx(1 - np.sum((times - model) ** 2) / np.sum((times - times.mean()) ** 2), rel=1e-9)


def test_samples_that_took_equally_long_are_compared_by_their_work() -> None:
    """The samples of `calibrate` are of this kind: all its visits take equally long."""
    works = {0: 3.0, 1: 2.0, 2: 1.0}
    comp = tuple(Sample(work=work * error, comm_cores=c, seconds=1.0) for c, work in works.items() for error in (0.99, 1.01))
    found = fit(Samples(cores=3, comp=comp, comm=comp[2:])).comp
    assert found.identified
    assert found.r2 == pytest.approx(1.0, abs=1e-3)


def test_equal_times_per_unit_of_work_have_no_r2() -> None:
    comp = tuple(Sample(work=2.0, comm_cores=c, seconds=1.0) for c in (0, 1, 2) for _ in range(2))
    found = fit(Samples(cores=3, comp=comp, comm=comp[2:])).comp
    assert found.identified
    assert found.r2 is None


def test_the_order_of_the_samples_does_not_matter() -> None:
    samples = measure(CONCAVE, 5, noise=0.1, repeats=5)
    shuffled = Samples(cores=5, comp=samples.comp[::-1], comm=tuple(random.Random(1).sample(samples.comm, len(samples.comm))))
    assert fit(shuffled) == fit(samples)


def test_units_of_time_and_work_scale_the_parameters() -> None:
    """Within what a fit can tell: its conditioning is its standard errors.

    One standard error away from the best fit, the sum of the squares is greater by the part 1 / num_free. A fit ends where a step
    changes the sum by less than the part 1e-15 of it, which is known to num_samples roundings. So a fit is within the root of
    (1e-15 + num_samples * eps) * num_free standard errors of the best one, and two fits are within twice that of each other.
    """
    samples = measure(CONCAVE, 5, noise=0.02, repeats=5)

    def scaled(*, work: float, seconds: float) -> dict[str, Estimate]:
        sides = [
            tuple(Sample(work=s.work * work, comm_cores=s.comm_cores, seconds=s.seconds * seconds) for s in side)
            for side in (samples.comp, samples.comm)
        ]
        return estimates(fit(Samples(cores=5, comp=sides[0], comm=sides[1])))

    num_samples = len(samples.comp)
    tolerance = 2 * math.sqrt((1e-15 + num_samples * sys.float_info.epsilon) * (num_samples - 2))
    one = scaled(work=1, seconds=1)
    for work, seconds in ((1.0, 10.0), (1e6, 1.0)):
        units = {"a1": seconds / work, "a2": 1.0, "b1": work / seconds, "b2": work / seconds, "b3": 1.0}
        for name, estimate in scaled(work=work, seconds=seconds).items():
            expected, stderr = one[name].value * units[name], one[name].stderr
            assert stderr is not None
            assert abs(estimate.value - expected) <= tolerance * stderr * units[name], name


def side_samples(lowest: int, highest: int) -> st.SearchStrategy[tuple[Sample, ...]]:
    size = st.floats(-14, 14).map(math.exp)
    return st.lists(
        st.builds(Sample, work=size, comm_cores=st.integers(lowest, highest), seconds=size), min_size=1, max_size=12
    ).map(tuple)


@settings(deadline=None)
@given(data=st.data())
def test_whatever_the_times_are_a_fit_has_positive_rates_everywhere_or_no_parameters(data: st.DataObject) -> None:
    cores = data.draw(st.integers(2, 9))
    samples = Samples(cores=cores, comp=data.draw(side_samples(0, cores - 1)), comm=data.draw(side_samples(1, cores)))
    found = fit(samples)
    json.dumps(found.to_json(), allow_nan=False)
    for side, time, possible in (
        (found.comp, found.comp_time, range(cores)),
        (found.comm, found.comm_time, range(1, cores + 1)),
    ):
        if side.identified:
            assert all(time(1.0, c) > 0 for c in possible)
        else:
            assert_unknown(side, "")
    if found.cost is not None:
        found.cost.rates(cores)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        ((1, 2), "g needs samples at 3 distinct core counts, and these have 2"),
        ((3,), "g needs samples at 3 distinct core counts, and these have 1"),
    ],
)
def test_two_core_counts_do_not_identify_g(splits: tuple[int, ...], words: str) -> None:
    assert_unknown(fit(measure(CONCAVE, 4, splits=splits, repeats=5)).comm, words)


def test_one_core_count_does_not_identify_f() -> None:
    found = fit(measure(CONCAVE, 4, splits=(1,), repeats=5)).comp
    assert_unknown(found, "f needs samples at 2 distinct core counts, and these have 1")
    assert (found.num_samples, found.num_core_counts) == (5, 1)


def test_two_cores_identify_f_but_never_g() -> None:
    found = fit(measure(CONCAVE, 2, repeats=3))
    assert found.comp.identified
    assert_unknown(found.comm, "g needs 3 distinct core counts and 2 cores have only 2; give a scenario the measured 'modes'")
    assert found.cost is None
    assert found.to_json()["cost"] is None


def test_as_many_samples_as_parameters_leave_no_error_estimate() -> None:
    """Fig. 2 of the paper has such samples: comm at 1, 2 and 3 cores, once each."""
    found = fit(measure(CONCAVE, 3))
    assert found.comm.identified
    assert found.comm.note == "3 samples for 3 parameters give no standard errors"
    estimates = [estimate for estimate in found.comm.parameters.values() if estimate is not None]
    assert [estimate.value for estimate in estimates] == pytest.approx([CONCAVE.b1, CONCAVE.b2, CONCAVE.b3])
    assert [estimate.stderr for estimate in estimates] == [None] * 3
    assert found.cost is not None


LINEAR = CostModel(a1=2.0, a2=0.1, b1=0.5, b2=0.0, b3=1.0)


def test_a_rate_without_a_logarithm_is_fitted_without_it_and_has_a_note() -> None:
    for noise in (0.0, 0.02):
        found = fit(measure(LINEAR, 8, noise=noise, repeats=4))
        assert found.comm.identified
        assert "cannot be distinguished from 0 and is set to 0" in found.comm.note
        assert found.cost is not None
        assert (found.cost.b2, found.cost.b3) == (0.0, 1.0)
        assert found.cost.b1 == pytest.approx(LINEAR.b1, rel=0.02 if noise else 1e-9)


def test_noise_is_rarely_fitted_as_a_logarithm() -> None:
    fits = [fit(measure(LINEAR, 8, noise=0.01, repeats=4, seed=seed)).comm for seed in range(100)]
    taken = ["is set to 0" not in found.note for found in fits]
    assert sum(taken) <= 10


def test_a_b3_beyond_the_range_of_floats_is_not_identified() -> None:
    """A rate of 0.5 c + 0.001 ln c + 1 would need b3 = exp(1000)."""
    comm = tuple(Sample(work=0.5 * c + 0.001 * math.log(c) + 1, comm_cores=c, seconds=1.0) for c in range(1, 9))
    assert_unknown(fit(Samples(cores=8, comp=comm[:7], comm=comm)).comm, "the fit gives b3 = inf, which is not valid")


def test_a_parameter_below_its_noise_has_an_error_and_a_note() -> None:
    untouched = CostModel(a1=2.0, a2=1e-6, b1=0.5, b2=1.0, b3=3.0)
    found = fit(measure(untouched, 4, noise=0.1, repeats=5)).comp
    assert found.identified
    assert found.note.endswith("cannot be distinguished from 0")
    assert found.note.startswith("a2 = ")


def test_an_outlier_gives_a_note() -> None:
    samples = measure(CONCAVE, 6, noise=0.02, repeats=3)
    spoilt = replace(samples.comp[0], seconds=20 * samples.comp[0].seconds)
    found = fit(replace(samples, comp=(spoilt, *samples.comp[1:]))).comp
    assert "look for outliers" in found.note or not found.identified


def test_parameters_beyond_the_bound_of_positive_rates_are_not_identified() -> None:
    """Comp has half its rate with 1 comm core, so its rate would be 0 with 2 of the 8 cores."""
    comp = tuple(Sample(work=1.0, comm_cores=c, seconds=c + 1.0) for c in (0, 0, 1, 1))
    found = fit(Samples(cores=8, comp=comp, comm=measure(CONCAVE, 8).comm)).comp
    assert_unknown(found, "a parameter is at its bound: the samples put the rate at c=7 at 0 or below")


def test_times_that_cores_cannot_explain_are_not_fitted() -> None:
    comp = tuple(Sample(work=1.0, comm_cores=c, seconds=10.0 ** (10 * c)) for c in (0, 0, 1, 1))
    assert_unknown(fit(Samples(cores=2, comp=comp, comm=comp)).comp, "differ by more than a factor of 1e+09")


def test_a_side_that_is_not_identified_gives_no_times() -> None:
    found = fit(measure(CONCAVE, 2, repeats=3))
    assert found.comp_time(2.0, 1) == pytest.approx(CONCAVE.comp_time(2.0, 1))
    with pytest.raises(ValueError, match="b1, b2, b3 are not identified: g needs 3"):
        found.comm_time(2.0, 1)


def test_the_cost_of_a_fit_can_be_pasted_into_a_scenario() -> None:
    found = json.loads(json.dumps(fit(measure(CONCAVE, 4, repeats=2)).to_json(), allow_nan=False))
    scenario = {"cores": found["cores"], "cycles": 2, "forward": 1, "backward": 2, "comm": 3, "cost": found["cost"]}
    assert Scenario.from_json(scenario).rates.comp == pytest.approx(CONCAVE.rates(4).comp)


def test_the_json_of_a_fit_names_every_parameter_with_its_error() -> None:
    found = fit(measure(CONCAVE, 2, repeats=3)).to_json()
    assert list(found) == ["cores", "comp", "comm", "cost"]
    assert list(found["comp"]) == ["a1", "a2", "r2", "num_samples", "num_core_counts", "identified", "note"]
    assert list(found["comp"]["a1"]) == ["value", "stderr"]
    assert (found["comp"]["identified"], found["comp"]["note"]) == (True, "")
    assert (found["comm"]["b1"], found["comm"]["identified"]) == (None, False)


def a_sample(**changes: Any) -> dict[str, Any]:
    return {"work": 1.0, "comm_cores": 1, "seconds": 2} | changes


def some_samples(**changes: Any) -> dict[str, Any]:
    return {"cores": 4, "comp": [a_sample(comm_cores=0)], "comm": [a_sample(comm_cores=4)]} | changes


def test_samples_are_read_from_json() -> None:
    expected = Samples(
        cores=4, comp=(Sample(work=1.0, comm_cores=0, seconds=2.0),), comm=(Sample(work=1.0, comm_cores=4, seconds=2.0),)
    )
    assert Samples.from_text(json.dumps(some_samples())) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "samples: expected an object with cores, comp, comm; got 3"),
        ({"cores": 4, "comp": [a_sample()]}, "samples: missing comm"),
        (some_samples(colour="red"), "samples: unknown colour; the keys are cores, comp, comm"),
        (some_samples(cores=1), "samples: 'cores' is 1; it must be a whole number in 2..4096"),
        (some_samples(cores=True), "samples: 'cores' is True; it must be a whole number"),
        (some_samples(cores=4.0), "samples: 'cores' is 4.0; it must be a whole number"),
        (some_samples(cores=10**400), "it must be a whole number in 2..4096"),
        (some_samples(comp=[]), "samples: 'comp' is []; it must be a list of at least one sample"),
        (some_samples(comm={"work": 1}), "samples: 'comm' is {'work': 1}; it must be a list of at least one sample"),
        (some_samples(comp=[3]), "samples comp[0]: expected an object with work, comm_cores, seconds; got 3"),
        (some_samples(comp=[a_sample(), a_sample(hue=1)]), "samples comp[1]: unknown hue"),
        (some_samples(comp=[a_sample(work=0)]), "samples comp[0]: 'work' is 0; it must be positive"),
        (some_samples(comp=[a_sample(work=-1.5)]), "samples comp[0]: 'work' is -1.5; it must be positive"),
        (some_samples(comm=[a_sample(seconds=0.0)]), "samples comm[0]: 'seconds' is 0; it must be positive"),
        (some_samples(comm=[a_sample(seconds=math.nan)]), "samples comm[0]: 'seconds' is nan; it must be finite"),
        (some_samples(comm=[a_sample(seconds=math.inf)]), "samples comm[0]: 'seconds' is inf; it must be finite"),
        (some_samples(comm=[a_sample(seconds="2")]), "samples comm[0]: 'seconds' is '2'; it must be a number"),
        (some_samples(comp=[a_sample(comm_cores=4)]), "samples comp[0]: 'comm_cores' is 4; it must be a whole number in 0..3"),
        (some_samples(comp=[a_sample(comm_cores=-1)]), "samples comp[0]: 'comm_cores' is -1; it must be a whole number in 0..3"),
        (some_samples(comm=[a_sample(comm_cores=0)]), "samples comm[0]: 'comm_cores' is 0; it must be a whole number in 1..4"),
        (some_samples(comm=[a_sample(comm_cores=5)]), "samples comm[0]: 'comm_cores' is 5; it must be a whole number in 1..4"),
        (some_samples(comm=[a_sample(comm_cores=1.0)]), "samples comm[0]: 'comm_cores' is 1.0; it must be a whole number"),
        (some_samples(comm=[a_sample(comm_cores=True)]), "samples comm[0]: 'comm_cores' is True; it must be a whole number"),
    ],
)
def test_bad_samples_are_one_clear_error(data: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        Samples.from_json(data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["cores", "comp", "comm"]), inner),
        max_leaves=6,
    )
)
def test_invalid_samples_never_raise_another_error(data: Any) -> None:
    with pytest.raises(ValueError):
        Samples.from_json(data)


def test_a_profile_is_read_as_its_samples() -> None:
    sample = {"work": 1.0, "comm_cores": 1, "seconds": 2.0}
    samples = {"cores": 2, "comp": [sample], "comm": [sample]}
    assert Samples.from_json({"cores": 2, "modes": [], "samples": samples}) == Samples.from_json(samples)
    with pytest.raises(ValueError, match="samples: missing comp, comm"):
        Samples.from_json({"cores": 2, "modes": []} | {"samples": {"cores": 2}})
