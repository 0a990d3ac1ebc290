"""report.html: the recommendation, the figures drawn from logs, and missing or hostile input."""

import importlib.resources
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from synthetic_comparison import CORES, FACTORS, NOISE, QUIET, SPLITS, log_of, profile, write_comparison, write_report

from edge_student.events.spans import SHARD_PARTS, Span, comm_spans, comp_spans, core_owners, last_moment
from edge_student.report.advice import advise, facts, meaning_of
from edge_student.report.charts import parts_of, wall_clock_figure
from edge_student.report.page import write_page
from edge_student.report.shapes import row_label
from edge_student.report.timeline import representative_run, timeline_section
from edge_student.report.verdict import summarize

BASE = [1.0, 1.1, 1.0, 1.2, 1.0]
SECTIONS = ("policies", "wall-clock", "parts", "timelines", "profile", "disturbances", "again")
FASTER, ALIKE, SLOWER = [0.8, 0.81, 0.79, 0.8, 0.8], [0.95, 1.05, 1.0, 1.02, 0.97], [1.2, 1.3, 1.1, 1.2, 1.25]


def page_of(out: Path) -> str:
    return write_page(out).read_text(encoding="utf-8")


def text_of(html: str) -> str:
    """Return the visible text of a page in one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.partition("<body>")[2]).split())


def svgs_of(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r'<svg class="figure.*?</svg>', html, re.DOTALL)]


def advised(**factors: list[float]) -> Any:
    """Return the advice for these ratios to the baseline, one per repeat."""
    ratios = {"os-default": [1.0] * 5} | {name.replace("_", "-"): values for name, values in factors.items()}
    runs = [
        {"policy": policy, "repeat": n, "wall_clock_s": factor * base, "valid": True}
        for policy, values in ratios.items()
        for n, (factor, base) in enumerate(zip(values, BASE, strict=False))
    ]
    return advise([{name: getattr(row, name) for name in row.__slots__} for row in summarize(runs, list(ratios))])


def decision(time: float, comm: list[int], comp: list[int]) -> dict[str, Any]:
    return {"event": "decision", "time": time, "requested": {"comm": comm, "comp": comp}}


def bound(time: float, cores: list[int]) -> dict[str, Any]:
    return {"event": "comp-bound", "time": time, "decision": 0, "cores": cores}


def held(records: list[dict[str, Any]]) -> dict[int, list[tuple[str, float, float]]]:
    return {core: [(span.what, span.started, span.ended) for span in spans] for core, spans in core_owners(records).items()}


def section_of(tmp_path: Path, records: list[dict[str, Any]]) -> Any:
    folder = tmp_path / "runs" / "a-0"
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    return timeline_section("a", {"policy": "a", "repeat": 0, "wall_clock_s": 1.0}, tmp_path, 0)


def test_the_fastest_policy_is_advised_with_its_ratio() -> None:
    advice = advised(dynamic=FASTER, random=SLOWER)
    assert (advice.policy, advice.headline) == ("dynamic", "Use dynamic on this device.")
    assert "0.80 of the time of os-default" in advice.why
    assert "20% less" in advice.why
    assert "random" not in advice.why


def test_a_second_faster_policy_is_named_only_if_the_intervals_overlap() -> None:
    assert "any of these policies is a good choice" in advised(dynamic=FASTER, adaptive=[0.8, 0.82, 0.79, 0.8, 0.81]).why
    assert "adaptive" not in advised(dynamic=FASTER, adaptive=[0.9, 0.91, 0.9, 0.9, 0.92]).why


def test_the_default_is_advised_where_nothing_differs() -> None:
    advice = advised(dynamic=ALIKE, random=ALIKE)
    assert advice.policy == "os-default"
    assert "the default is as good" in advice.why


def test_the_default_is_advised_where_it_is_the_fastest() -> None:
    advice = advised(dynamic=SLOWER, random=SLOWER)
    assert (advice.policy, advice.headline) == ("os-default", "Use os-default on this device: it is the fastest.")


def test_the_default_is_advised_where_some_are_slower_and_the_rest_alike() -> None:
    advice = advised(dynamic=SLOWER, random=ALIKE, adaptive=[0.5])
    assert advice.policy == "os-default"
    assert "dynamic was slower" in advice.why
    assert "random does not differ significantly from os-default" in advice.why
    assert "adaptive had too few runs for a verdict" in advice.why


@pytest.mark.parametrize("factors", [{"dynamic": [0.5, 0.5]}, {}], ids=["two runs", "alone"])
def test_nothing_is_advised_without_evidence(factors: dict[str, list[float]]) -> None:
    assert advised(**factors).policy == ""


def test_nothing_is_advised_without_a_baseline() -> None:
    row = {"policy": "os-default", "num_runs": 0, "median_s": None, "verdict": "baseline"}
    assert advise([row]).policy == advise([]).policy == ""


def test_a_policy_is_explained_by_its_own_sentence() -> None:
    assert meaning_of("static:2").endswith("Here c is 2.")
    assert "does not know" in meaning_of("no-such-policy")


def test_facts_of_any_shape_are_listed() -> None:
    found = list(facts({"a_b": 1.5, "c": {"d": [1, 2], "e": None}, "f": [{"g": True}], "h": []}))
    assert found == [("a b", "1.5"), ("c, d", "1, 2"), ("c, e", "not known"), ("f 0, g", "yes"), ("h", "none")]


def test_a_core_is_held_from_decision_to_decision() -> None:
    records = [decision(0.0, [0], [1, 2]), decision(1.0, [0, 1], [2]), decision(2.0, [0, 1], [2]), decision(3.0, [], [2])]
    assert held([*records, {"event": "task", "started": 3.0, "ended": 4.0}]) == {
        0: [("comm", 0.0, 3.0)],
        1: [("comp", 0.0, 1.0), ("comm", 1.0, 3.0)],
        2: [("comp", 0.0, 4.0)],
    }


def test_a_core_that_both_may_use_is_held_by_both() -> None:
    assert held([decision(0.0, [0, 1], [0, 1]), {"event": "start", "time": 1.0}]) == {c: [("both", 0.0, 1.0)] for c in (0, 1)}


def test_compute_keeps_its_cores_until_it_is_bound_to_others() -> None:
    records = [
        decision(0.0, [0], [1, 2]),
        bound(0.0, [1, 2]),
        decision(1.0, [0, 1], [2]),  # compute is in a task, and leaves core 1 only after it
        bound(1.5, [2]),
        decision(2.0, [0], [1, 2]),  # comm leaves core 1 at once, compute comes later
        bound(2.5, [1, 2]),
        decision(3.0, [], [1, 2]),
    ]
    assert held(records) == {
        0: [("comm", 0.0, 3.0)],
        1: [("comp", 0.0, 1.5), ("comm", 1.5, 2.0), ("comp", 2.5, 3.0)],
        2: [("comp", 0.0, 3.0)],
    }


def test_compute_that_waits_holds_nothing_where_its_bounds_are_known() -> None:
    records = [
        decision(0.0, [0], [1]),
        bound(0.0, [1]),
        decision(1.0, [0, 1], []),
        {"event": "wait", "why": "logits", "index": 0, "started": 1.0, "ended": 2.0},
        decision(2.0, [0], [1]),
        decision(3.0, [0], [1]),
    ]
    assert held(records)[1] == [("comp", 0.0, 1.0), ("comm", 1.0, 2.0), ("comp", 2.0, 3.0)]


def test_an_empty_log_has_no_owners() -> None:
    assert (core_owners([]), comm_spans([]), comp_spans([]), last_moment([])) == ({}, [], [], 0.0)


def test_training_is_tasks_and_waits_in_order() -> None:
    records = [
        {"event": "task", "task": "backward", "index": 0, "started": 3.0, "ended": 4.0},
        {"event": "wait", "why": "logits", "index": 0, "started": 2.0, "ended": 3.0},
        {"event": "task", "task": "forward", "index": 0, "started": 1.0, "ended": 2.0},
        {"event": "wait", "why": "hold", "index": 0, "started": 0.0, "ended": 1.0},
        {"event": "task", "task": "comm", "index": 0, "started": 0.0, "ended": 1.0},
    ]
    assert [span.what for span in comp_spans(records)] == ["hold", "forward", "stall", "backward"]
    assert comm_spans(records) == [Span(what="comm", started=0.0, ended=1.0, index=0)]


def test_time_outside_tasks_and_waits_is_the_rest() -> None:
    run = {"policy": "a", "valid": True, "wall_clock_s": 10.0, "forward_s": 2.0, "backward_s": 3.0, "stall_s": 1.0, "hold_s": 0.5}
    worse = {**run, "wall_clock_s": 99.0, "valid": False}
    assert parts_of(["a", "b"], [run, worse]) == [
        {"policy": "a", "forward": 2.0, "backward": 3.0, "stall": 1.0, "hold": 0.5, "rest": 3.5}
    ]


def test_the_run_nearest_to_the_median_that_counts_is_shown() -> None:
    runs = [{"policy": "a", "repeat": n, "wall_clock_s": s, "valid": n != 1} for n, s in enumerate([1.0, 2.0, 2.2])]
    shown = representative_run("a", 2.0, runs)
    assert shown is not None
    assert shown["repeat"] == 2
    assert representative_run("a", None, runs) is representative_run("b", 1.0, runs) is None


@pytest.mark.parametrize(
    ("policy", "cycles", "words"),
    [("static:1", 60, "cycles 24 to 35 of 60"), ("comm-priority", 60, "cycles 0 to 11"), ("static:1", 3, "0 to 2")],
)
def test_the_excerpt_lies_in_the_middle_or_where_comm_ends(tmp_path: Path, policy: str, cycles: int, words: str) -> None:
    section = section_of(tmp_path, log_of(policy, 1.0, cycles))
    assert words in section["caption"]
    labels = [shape.text for shape in section["figure"].shapes if shape.text.startswith("core ")]
    assert labels == [f"core {core}" for core in CORES]


def test_of_many_cores_every_other_is_named(tmp_path: Path) -> None:
    forward = {"event": "task", "task": "forward", "index": 0, "started": 0.0, "ended": 1.0}
    shapes = section_of(tmp_path, [decision(0.0, [0], list(range(1, 16))), forward])["figure"].shapes
    assert [shape.text for shape in shapes if shape.text.startswith("core ")] == [f"core {n}" for n in range(0, 16, 2)]


@pytest.mark.parametrize("ended", [None, 0.0], ids=["no training", "no time"])
def test_an_empty_log_cannot_be_drawn(tmp_path: Path, ended: float | None) -> None:
    forward = {"event": "task", "task": "forward", "index": 0, "started": 0.0, "ended": ended}
    section = section_of(tmp_path, [decision(0.0, [0], [1])] + [forward] * (ended is not None))
    assert section["figure"] is None
    assert "cannot be read" in section["caption"]


def test_the_page_has_every_section_and_every_median(tmp_path: Path) -> None:
    report = write_comparison(tmp_path)
    html = page_of(tmp_path)
    assert [section for section in SECTIONS if f'<section id="{section}">' not in html] == []
    for row in report["summary"]:
        assert f"{row['median_s']:.3f}" in html
    assert "Use static:1 on this device." in html
    assert html.count('<tr class="best">') == 1
    assert "edge-student compare --private digits:private --out &#39;my runs&#39;" in html
    assert "0123456789abcdef" in html
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html", "runs"}


def test_every_figure_is_well_formed_and_described(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(profile()))
    write_comparison(tmp_path, profile=tmp_path / "profile.json")
    figures = svgs_of(page_of(tmp_path))
    names = [figure.get("id") for figure in figures]
    rates, timelines = ["figure-rates-comp", "figure-rates-comm"], [f"figure-timeline-{n}" for n in range(3)]
    assert names == ["figure-wall-clock", "figure-parts", *timelines, *rates]
    for figure in figures:
        title, description = figure[0], figure[1]
        assert (figure.get("role"), title.tag, description.tag) == ("img", "title", "desc")
        assert figure.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
        assert title.text
        assert description.text
        assert "nan" not in ElementTree.tostring(figure, encoding="unicode")


def test_the_page_loads_no_external_file(tmp_path: Path) -> None:
    write_comparison(tmp_path)
    html = page_of(tmp_path)
    assert re.findall(r"https?:|<script|<iframe|<img|@import|javascript:", html) == []
    assert "default-src 'none'" in html


def test_modelled_seconds_have_a_column_of_their_own(tmp_path: Path) -> None:
    report = write_comparison(tmp_path)
    report["summary"][1]["predicted_s"] = 123.456
    write_report(tmp_path, report)
    row = next(row for row in re.findall(r"<tr.*?</tr>", page_of(tmp_path)) if "123.456" in row)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert len(cells) == 8
    assert cells[6] == "123.456"


def test_an_interrupted_comparison_starts_with_a_warning(tmp_path: Path) -> None:
    report = write_comparison(tmp_path)
    assert "This comparison is incomplete" not in page_of(tmp_path)
    write_report(tmp_path, {**report, "is_complete": False, "runs": report["runs"][:7]})
    assert text_of(page_of(tmp_path)).startswith("This comparison is incomplete: it was interrupted after 7 of 15 runs.")


def test_runs_that_do_not_count_or_were_disturbed_are_hollow_and_listed(tmp_path: Path) -> None:
    report = write_comparison(tmp_path)
    failed, disturbed, other = report["runs"][:3]
    failed.update(valid=False, notes=["the kernel refused"])
    quiet = {
        "others_fraction": 0.0,
        "others_resolution": 0.0,
        "steal_fraction": None,
        "steal_resolution": None,
        "busiest_others": [],
    }
    disturbed["disturbance"] = {**quiet, "throttled": ["core 3 too hot"]}
    other["disturbance"] = {**quiet, "seen_by": "another version"}
    write_report(tmp_path, report)
    html = page_of(tmp_path)
    assert html.count('<circle class="hollow"') == 3  # two runs and the legend
    assert html.count('<circle class="dot"') == 14
    for words in ("the kernel refused", "core 3 too hot", "seen by", "another version"):
        assert words in html


def test_a_run_without_a_time_has_no_dot() -> None:
    runs = [{"policy": "a", "repeat": n, "wall_clock_s": s, "valid": s is not None} for n, s in enumerate([1.0, None])]
    row = {"policy": "a", "median_s": 1.0, "ci95": None, "verdict": "too few runs"}
    figure = wall_clock_figure([row], runs)
    assert figure is not None
    assert [shape.look for shape in figure.shapes if shape.tag == "circle"] == ["dot"]
    assert wall_clock_figure([row], runs[1:]) is None


def test_a_long_policy_name_is_compressed_and_never_cut() -> None:
    name = "a-policy-with-a-long-name:12"
    label = row_label(10.0, name)
    assert (label.text, label.tip) == (name, name)
    assert dict(label.at)["lengthAdjust"] == "spacingAndGlyphs"
    assert "textLength" not in dict(row_label(10.0, "comm-priority").at)


def test_one_slow_run_makes_the_scale_logarithmic() -> None:
    def unit(slowest: float) -> str:
        runs = [{"policy": "a", "repeat": n, "wall_clock_s": s, "valid": True} for n, s in enumerate([1.0, slowest])]
        figure = wall_clock_figure([{"policy": "a", "median_s": None, "ci95": None, "verdict": ""}], runs)
        assert figure is not None
        return next(shape.text for shape in figure.shapes if "wall-clock" in shape.text)

    assert unit(1.5) == "wall-clock in seconds"
    assert unit(40.0) == "wall-clock in seconds, logarithmic"


def test_a_missing_or_broken_log_is_named(tmp_path: Path) -> None:
    write_comparison(tmp_path, repeats=1)
    (tmp_path / "runs/static-1-0/events.jsonl").unlink()
    (tmp_path / "runs/comm-priority-0/events.jsonl").write_text('{"event": "task"')
    html = page_of(tmp_path)
    assert "static-1-0/events.jsonl is missing" in html
    assert "comm-priority-0/events.jsonl cannot be read" in html
    assert html.count('id="figure-timeline-') == 1


def test_a_comparison_in_which_no_run_counts_still_has_a_page(tmp_path: Path) -> None:
    report = write_comparison(tmp_path)
    failed = [{**run, "valid": False, "wall_clock_s": None, "notes": ["exit status 1"]} for run in report["runs"]]
    empty = {"num_runs": 0, "median_s": None, "ci95": None, "ratio_vs_os_default": None, "ratio_ci95": None}
    write_report(tmp_path, {**report, "runs": failed, "summary": [{**row, **empty} for row in report["summary"]]})
    html = page_of(tmp_path)
    assert "These runs do not show which policy to use." in html
    assert "No run finished" in html
    assert svgs_of(html) == []


def test_hostile_text_of_a_report_is_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x'"
    (tmp_path / "profile.json").write_text(json.dumps({**profile(), "fingerprint": {hostile: hostile}}))
    report = write_comparison(tmp_path, profile=tmp_path / "profile.json")
    report["config"]["model"] = report["config"]["private"] = report["host"]["cpu"] = hostile
    report["software"][hostile] = hostile
    report["command"].append(hostile)
    report["runs"][0].update(notes=[hostile], valid=False, disturbance={**QUIET, hostile: {hostile: hostile}})
    report["runs"][1]["policy"] = report["summary"][1]["policy"] = report["summary"][1]["verdict"] = hostile
    write_report(tmp_path, report)
    html = page_of(tmp_path)
    assert "&lt;script&gt;" in html
    assert re.findall(r"<script|<img|\" onload", html) == []


def test_without_a_profile_the_page_explains_how_to_make_one(tmp_path: Path) -> None:
    write_comparison(tmp_path)
    text = text_of(page_of(tmp_path))
    assert "No device profile was given" in text
    assert "edge-student calibrate" in text


def test_a_profile_is_shown_with_its_formulas_and_shared_modes(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(profile()))
    write_comparison(tmp_path, profile=tmp_path / "profile.json")
    html = page_of(tmp_path)
    assert "a1 = 0.1, a2 = 0.25" in html
    assert "compute-first" in html
    assert html.count('<polyline class="curve') == 2
    assert html.count('<circle class="rate-comp"') == html.count('<circle class="rate-comm"') == 4


@pytest.mark.parametrize(
    ("fitted", "words"),
    [
        ({"comp": {"a1": None, "a2": None, "note": "too few core counts"}, "comm": None}, "is not drawn: too few core counts."),
        (
            {"comp": {"a1": {"value": 0.1, "stderr": None}, "a2": {"value": 0.25, "stderr": 0.01}, "note": "", "identified": True}},
            "a1 = 0.1, a2 = 0.25",
        ),
        (None, "the profile contains only measured rates"),
    ],
    ids=["not identified", "one side", "none"],
)
def test_a_fit_is_drawn_as_far_as_it_is_identified(tmp_path: Path, fitted: Any, words: str) -> None:
    (tmp_path / "profile.json").write_text(json.dumps({**profile(fitted=False), "fit": fitted}))
    write_comparison(tmp_path, profile=tmp_path / "profile.json")
    assert words in page_of(tmp_path)


def test_formulas_that_were_given_are_drawn(tmp_path: Path) -> None:
    cost = {"a1": 0.1, "a2": 0.25, "b1": 1.0, "b2": 0.0, "b3": 1.0}
    (tmp_path / "p.json").write_text(json.dumps({**profile(fitted=False), "cost": cost}))
    write_comparison(tmp_path, profile=Path("p.json"))  # next to the report
    assert page_of(tmp_path).count('<polyline class="curve') == 2


@pytest.mark.parametrize(("text", "words"), [(None, "was deleted or moved"), ("[]", "cannot be shown"), ("{", "cannot be shown")])
def test_a_profile_that_cannot_be_shown_is_named_with_the_cause(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "p.json").write_text(text)
    write_comparison(tmp_path, profile=tmp_path / "p.json")
    assert words in page_of(tmp_path)


def test_a_long_comparison_of_all_policies_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {f"static:{n}": 1 + n / 10 for n in range(1, 9)} | {"os-default": 1.0}
    for name in factors:
        monkeypatch.setitem(SPLITS, name, SPLITS.get(name, SPLITS["static:1"]))
    write_comparison(tmp_path, cycles=300, factors=factors, repeats=len(NOISE))
    assert write_page(tmp_path).stat().st_size < 1_000_000


def test_without_a_report_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"report\.json"):
        write_page(tmp_path)


def test_the_template_is_part_of_the_package() -> None:
    assert importlib.resources.files("edge_student.report").joinpath("page.html.j2").is_file()
    assert set(FACTORS) <= set(SPLITS)


def test_every_shard_has_a_lane(tmp_path: Path) -> None:
    tasks = [
        {"event": "task", "task": task, "index": 0, "started": started, "ended": started + 1.0}
        for task, started in (("forward", 0.0), ("backward", 1.0))
    ]
    parts = {"forward": [[0.0, 0.9], [0.1, 1.0]], "backward": [[1.0, 1.5], [1.0, 1.75]], "step": [[1.75, 2.0], [1.75, 2.0]]}
    shards = {"event": "shards", "index": 0, "started": 0.0, "ended": 2.0, **parts}
    shapes = section_of(tmp_path, [decision(0.0, [0], [1]), *tasks, shards])["figure"].shapes
    assert [shape.text for shape in shapes if shape.text.startswith("shard")] == ["shard 0", "shard 1"]
    drawn = [shape.look for shape in shapes if shape.tag == "path" and shape.look in SHARD_PARTS]
    assert drawn[:6] == ["forward", "backward", "step"] * 2


def test_a_repeated_run_shows_the_timeline_of_the_attempt_that_counts(tmp_path: Path) -> None:
    run = {"policy": "a", "repeat": 0, "valid": True, "wall_clock_s": 1.0, "folder": "runs/a-0-attempt-2"}
    section = timeline_section("a", run, tmp_path, 0)
    assert "runs/a-0-attempt-2/events.jsonl is missing" in section["caption"]


def test_the_page_shows_the_disturbances_and_the_interval_level_of_the_terminal(tmp_path: Path) -> None:
    report = write_comparison(tmp_path)
    for run in report["runs"]:
        run.update(disturbed=False, attempt=1, disturbance=QUIET)
    report["runs"][0].update(disturbed=True, valid=True, disturbance={**QUIET, "others_fraction": 0.5})
    for row in report["summary"]:
        row["ci_level"] = 0.5
    write_report(tmp_path, report)
    text = text_of(page_of(tmp_path))
    assert "NOT A QUIET MACHINE" in text
    assert "confidence interval of the median (50.0%" in text
    assert "95%" not in text
