"""Write report.html, a self-contained page of one comparison. Every number comes from report.json, a log or the profile.

The page has no script. Its content security policy forbids loading other files. All text is escaped.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from edge_student.measure.intervals import shown_level
from edge_student.measure.number_format import format_interval, format_number, format_percent
from edge_student.report.advice import advise, disturbed_by, facts, meaning_of, written
from edge_student.report.charts import PARTS, is_doubtful, parts_figure, parts_of, wall_clock_figure
from edge_student.report.profile_charts import profile_section
from edge_student.report.table import disturbance_lines
from edge_student.report.timeline import representative_run, timeline_section
from edge_student.report.verdict import median_of
from edgekd.files import write_text

_TEMPLATE = "page.html.j2"
_RUN_FACTS = ("wall_clock_s", "accuracy", "stall_s", "hold_s", "forward_s", "backward_s", "comm_cpu_s")


def write_page(out: Path) -> Path:
    """Write report.html next to report.json in `out`, and return its path.

    A missing run log or profile is replaced by a sentence that names it.

    Raises OSError if report.json cannot be read or the page cannot be written.
    """
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    path = out / "report.html"
    write_text(path, render(report, out))
    return path


def render(report: dict[str, Any], out: Path) -> str:
    """Return the HTML of the page. Logs are read from `out`/runs."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edge_student.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, interval=format_interval, percent=format_percent, written=written)
    return environment.get_template(_TEMPLATE).render(_context(report, out))


def _context(report: dict[str, Any], out: Path) -> dict[str, Any]:
    summary, runs, config = report["summary"], report["runs"], report["config"]
    policies = [row["policy"] for row in summary]
    parts = parts_of(policies, runs)
    shown = [representative_run(row["policy"], row["median_s"], runs) for row in summary]
    return {
        "report": report,
        "config": config,
        "host": report["host"],
        "advice": advise(summary),
        "summary": [{**row, "accuracy": median_of(runs, row["policy"], "accuracy")} for row in summary],
        "meanings": [(policy, meaning_of(policy)) for policy in policies],
        "level": shown_level(row.get(name) for row in summary for name in ("ci_level", "ratio_ci_level")),
        "num_expected": len(policies) * config["repeats"],
        "num_made": len({(run["policy"], run["repeat"]) for run in runs}),
        "cautions": disturbance_lines(runs),
        "wall_clock": wall_clock_figure(summary, runs),
        "part_names": PARTS,
        "parts": parts,
        "parts_figure": parts_figure(parts),
        "timelines": [timeline_section(policy, run, out, n) for n, (policy, run) in enumerate(zip(policies, shown, strict=True))],
        "profile": profile_section(config.get("profile"), out),
        "facts": facts,
        "meaning_of": meaning_of,
        "settings": {name: "not given" if value is None else value for name, value in config.items()},
        "noted_runs": [(run, _notes(run)) for run in runs if _is_noted(run)],
        "run_facts": _RUN_FACTS,
        "disturbances": _disturbances(runs),
        "command": shlex.join(report["command"]),
    }


def _disturbances(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return {"names", "rows": [(policy, repeat, texts)]} of the counters of each run. Without counters, `names` is empty."""
    counters = [(run["policy"], run["repeat"], run["disturbance"]) for run in runs if isinstance(run.get("disturbance"), dict)]
    names = list(dict.fromkeys(name for _, _, values in counters for name in values))
    rows = [(policy, repeat, [written(values.get(name)) for name in names]) for policy, repeat, values in counters]
    return {"names": names, "rows": rows}


def _notes(run: dict[str, Any]) -> list[str]:
    """Return the notes of a run, plus its disturbances that the notes do not contain."""
    notes: list[str] = run["notes"]
    return [*notes, *(found for found in disturbed_by(run) if not any(found in note for note in notes))]


def _is_noted(run: dict[str, Any]) -> bool:
    return is_doubtful(run) or bool(run["notes"]) or run.get("attempt", 1) > 1
