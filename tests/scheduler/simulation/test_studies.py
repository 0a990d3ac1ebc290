"""The data of the figures agree with the model, with each other, and with their captions."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from scheduler.simulation import studies

SMALL: dict[str, Any] = {"cycles": 12, "runs": 20, "seed": 3}
PARAMETERS = ("a1=6/C", "a2=1/C", "b1=0.12", "b2=0.08", "b3=e", "Lin et al. (AIoTSys 2024) publish no values")


@pytest.fixture(scope="module")
def outcomes() -> list[studies.Data]:
    cells = [(2, 1.0, 1.0), (4, 1.0, 1.0), (4, 1.0, 4.0), (6, 2.0, 1.0), (7, 4.0, 1.0)]
    return [studies.outcome(cores=cores, x=x, y=y, **SMALL) for cores, x, y in cells]


def exact_samples(cores: int, *, work: float = 1.0) -> studies.Data:
    costs = studies.cost_model(cores)
    comp = [{"work": work, "comm_cores": c, "seconds": costs.comp_time(work, c)} for c in range(cores)]
    comm = [{"work": work, "comm_cores": c, "seconds": costs.comm_time(work, c)} for c in range(1, cores + 1)]
    return {"cores": cores, "comp": comp * 2, "comm": comm * 2}


def test_a_core_is_worth_the_same_to_comp_and_less_and_less_to_comm() -> None:
    rates = studies.cost_model(12).rates(12)
    assert rates.comp == pytest.approx([(12 - c) / 6 for c in range(13)], abs=1e-15)
    gains = [after - before for before, after in pairwise(rates.comm[1:])]
    assert all(0.12 < after < before for before, after in pairwise(gains))


def test_a_core_is_worth_the_same_on_any_number_of_cores() -> None:
    for cores in studies.GAP_CORES:
        rates = studies.cost_model(cores).rates(cores)
        assert rates.comp[cores - 1] == pytest.approx(1 / 6)
        assert rates.comm[1] == pytest.approx(0.2)


def test_every_study_is_plain_json() -> None:
    found = [
        studies.fitted_costs(),
        studies.timeline(),
        studies.cost_curves(),
        studies.comparison(x=1.0, y=1.0, cores=(4,), **SMALL),
        studies.gaps(cores=(2, 3), ratios=((1.0, 2.0),), **SMALL),
    ]
    assert [json.loads(json.dumps(data, allow_nan=False)) for data in found] == found


def test_captions_name_the_parameters_with_their_values() -> None:
    captions = [
        studies.fitted_costs()["caption"],
        studies.timeline()["caption"],
        studies.cost_curves()["caption"],
        studies.comparison(x=2.0, y=1.0, cores=(4,), **SMALL)["caption"],
        studies.gaps(cores=(4,), ratios=((1.0, 2.0),), **SMALL)["caption"],
    ]
    for caption in captions:
        assert [value for value in PARAMETERS if value not in caption] == []
        assert "not measured" in caption


def test_captions_of_simulations_name_cycles_works_runs_and_seed() -> None:
    compared = studies.comparison(x=2.0, y=1.0, cores=(4,), **SMALL)["caption"]
    assert [value for value in ("N=12", "x=2", "y=1", "20 runs", "seed 3", "no prefetch") if value not in compared] == []
    gaps = studies.gaps(cores=(4,), ratios=((1.0, 2.0),), **SMALL)["caption"]
    assert [value for value in ("N=12", "20 runs", "seed 3", "no prefetch") if value not in gaps] == []


def test_comp_gets_faster_and_comm_slower_the_more_cores_comp_has() -> None:
    for curve in studies.cost_curves()["curves"]:
        cores = curve["cores"]
        comp = {point["comp_cores"]: point["seconds"] for point in curve["comp"]}
        comm = {point["comp_cores"]: point["seconds"] for point in curve["comm"]}
        assert set(comp) == set(range(1, cores + 1))
        assert set(comm) == set(range(cores))
        assert all(comp[own] > comp[own + 1] for own in range(1, cores))
        rises = [comm[own + 1] - comm[own] for own in range(cores - 1)]
        assert rises == sorted(rises)
        assert min(rises) > 0
        assert comp[1] == pytest.approx(6)
        assert comm[cores - 1] == pytest.approx(5)


def test_the_timeline_shows_all_three_scenarios_in_turn() -> None:
    data = studies.timeline()
    scenarios = [segment["scenario"] for segment in data["segments"]]
    assert set(scenarios) == {1, 2, 3}
    assert scenarios == sorted(scenarios)
    assert len(scenarios) == data["scenario"]["cycles"] + 1


def test_segments_and_intervals_fill_the_run_without_a_hole() -> None:
    data = studies.timeline()
    for parts in (data["segments"], data["intervals"]):
        assert parts[0]["start"] == 0
        assert parts[-1]["end"] == data["makespan"]
        assert all(before["end"] == after["start"] for before, after in pairwise(parts))


def test_a_segment_shows_the_work_of_the_cores() -> None:
    """Comm has all cores in segments where comp waits, and only there. In scenario 3 comp has all cores."""
    data = studies.timeline()
    for segment in data["segments"]:
        inside = [held for held in data["intervals"] if segment["start"] <= held["start"] < segment["end"]]
        assert any(held["comp_cores"] == 0 for held in inside) == (segment["scenario"] == 1)
        assert all(held["comm_cores"] == 0 for held in inside) == (segment["scenario"] == 3)


def test_comp_waits_exactly_while_comm_holds_all_cores() -> None:
    data = studies.timeline()
    blocked = [(held["start"], held["end"]) for held in data["intervals"] if held["reason"] == "comp-blocked"]
    assert [(wait["start"], wait["end"]) for wait in data["waits"]] == blocked
    assert {wait["side"] for wait in data["waits"]} == {"comp"}


def test_waits_of_comm_and_comp_are_distinct() -> None:
    """comp-priority: Comm_1 starts when F_1 (0.75 of work, 4 cores of 1/6 each) is done."""
    waits = studies.timeline(policy="comp-priority")["waits"]
    assert next(wait for wait in waits if wait["side"] == "comm") == {"side": "comm", "start": 0.0, "end": pytest.approx(1.125)}


def test_the_timeline_has_every_task_once() -> None:
    data = studies.timeline()
    tasks = [(span["task"], span["cycle"]) for span in data["spans"]]
    assert sorted(tasks) == sorted((task, cycle) for task in ("comm", "forward", "backward") for cycle in range(1, 7))


def test_both_priorities_take_the_time_of_the_works_one_after_another(outcomes: list[studies.Data]) -> None:
    for cell in outcomes:
        policies, scenario = cell["policies"], cell["scenario"]
        rates = studies.cost_model(scenario["cores"]).rates(scenario["cores"])
        alone = 2 * scenario["forward"] / rates.comp[0] + scenario["comm"] / rates.comm[-1]
        for name in ("comm-priority", "comp-priority"):
            assert policies[name]["makespan"] == pytest.approx(scenario["cycles"] * alone, rel=1e-9)


def test_no_policy_beats_the_lower_bound(outcomes: list[studies.Data]) -> None:
    for cell in outcomes:
        assert cell["lower_bound"] > 0
        times = [policy["makespan"] for policy in cell["policies"].values()] + [cell["policies"]["random"]["min"]]
        assert min(times) >= cell["lower_bound"] * (1 - 1e-12)


def test_an_outcome_has_every_policy_that_can_be_simulated(outcomes: list[studies.Data]) -> None:
    for cell in outcomes:
        splits = {f"static:{c}" for c in range(1, cell["scenario"]["cores"])}
        others = {"random", "comm-priority", "comp-priority", "dynamic", "adaptive"}
        assert set(cell["policies"]) == splits | others
        times = {name: cell["policies"][name]["makespan"] for name in splits}
        assert times[cell["best_static"]] == min(times.values())
        assert times[cell["worst_static"]] == max(times.values())


def test_random_spreads_around_its_mean(outcomes: list[studies.Data]) -> None:
    for cell in outcomes:
        random = cell["policies"]["random"]
        ordered = [random[key] for key in ("min", "p5", "makespan", "p95", "max")]
        assert random["runs"] == SMALL["runs"]
        if cell["scenario"]["cores"] == 2:  # one split only
            assert ordered == pytest.approx([cell["policies"]["static:1"]["makespan"]] * 5, rel=1e-12)
        else:
            assert ordered == sorted(ordered)
            assert random["min"] < random["max"]


def test_the_seed_decides_the_random_runs_and_nothing_else(outcomes: list[studies.Data]) -> None:
    again, other = (studies.outcome(cores=4, x=1.0, y=1.0, **{**SMALL, "seed": seed}) for seed in (3, 4))
    assert again == outcomes[1]
    assert again["policies"].pop("random") != other["policies"].pop("random")
    assert again == other


def test_a_comparison_has_a_group_for_each_number_of_cores() -> None:
    data = studies.comparison(x=2.0, y=1.0, cores=(3, 5), **SMALL)
    assert [group["scenario"]["cores"] for group in data["groups"]] == [3, 5]
    assert [group["scenario"]["forward"] for group in data["groups"]] == [2.0, 2.0]
    assert data["title"] == "Time of a run, x : y = 2 : 1"


def test_gaps_are_those_of_the_outcomes_beside_them() -> None:
    data = studies.gaps(cores=(3, 4, 5), ratios=((1.0, 1.0), (1.0, 4.0)), **SMALL)
    assert (data["cores"], data["ratios"]) == ([3, 4, 5], ["1 : 1", "1 : 4"])
    assert len(data["outcomes"]) == 6
    tables = {panel["title"]: np.array(panel["percent"]) for panel in data["panels"]}
    assert {table.shape for table in tables.values()} == {(2, 3)}
    assert all((table >= -1e-9).all() for table in tables.values())
    assert (tables["best static"] <= tables["worst static"]).all()
    last = data["outcomes"][-1]
    assert (last["scenario"]["cores"], last["scenario"]["comm"]) == (5, 4.0)
    assert tables["dynamic"][-1, -1] == 100 * (last["policies"]["dynamic"]["makespan"] / last["lower_bound"] - 1)


def test_example_samples_follow_the_formulas_within_their_noise() -> None:
    samples = studies.example_samples(seed=1)
    costs = studies.cost_model(samples["cores"])
    errors = [math.log(s["seconds"] / costs.comp_time(s["work"], s["comm_cores"])) for s in samples["comp"]]
    errors += [math.log(s["seconds"] / costs.comm_time(s["work"], s["comm_cores"])) for s in samples["comm"]]
    assert np.std(errors) == pytest.approx(studies.NOISE, rel=0.25)
    assert max(map(abs, errors)) < 5 * studies.NOISE
    assert samples == studies.example_samples(seed=1)
    assert samples != studies.example_samples(seed=2)


def test_examples_are_labelled_in_title_and_caption() -> None:
    data = studies.fitted_costs(seed=5)
    assert data["is_example"]
    assert "example samples, not measured on a device" in data["title"]
    assert "Example samples, not measured on a device" in data["caption"]
    assert "seed 5" in data["caption"]


def test_given_samples_are_shown_as_they_are_and_not_called_examples() -> None:
    samples = exact_samples(5)
    data = studies.fitted_costs(samples=samples)
    assert not data["is_example"]
    assert data["samples"] == samples
    assert "example" not in (data["title"] + data["caption"]).lower()
    assert [len(side["points"]) for side in data["sides"]] == [10, 10]


def test_exact_samples_lie_on_their_fit_whatever_their_work() -> None:
    for work in (1.0, 250.0):
        for side, time in zip(
            studies.fitted_costs(samples=exact_samples(5, work=work))["sides"],
            (studies.cost_model(5).comp_time, studies.cost_model(5).comm_time),
            strict=True,
        ):
            assert side["spread"] == pytest.approx(0, abs=1e-6)
            seconds = [point["seconds"] for point in (*side["curve"], *side["points"])]
            assert seconds == pytest.approx([time(1.0, p["comm_cores"]) for p in (*side["curve"], *side["points"])], rel=1e-6)


def test_samples_without_identified_parameters_are_shown_without_a_curve_and_with_the_reason() -> None:
    comp, comm = studies.fitted_costs(samples=exact_samples(2))["sides"]
    assert (comp["curve"] != [], comm["curve"]) == (True, [])
    assert comm["spread"] is None
    assert "3 distinct core counts" in comm["text"]


def test_a_fit_without_standard_errors_has_a_note() -> None:
    samples = exact_samples(5)
    comp, comm = studies.fitted_costs(samples={**samples, "comp": samples["comp"][:2]})["sides"]
    assert comp["text"] == "f: a1=1.2, a2=0.2 (2 samples for 2 parameters give no standard errors) from 2 samples."
    assert "\u00b1 standard error" in comm["text"]


def test_invalid_samples_are_rejected() -> None:
    with pytest.raises(ValueError, match="cores"):
        studies.fitted_costs(samples={"comp": []})
