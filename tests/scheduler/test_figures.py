"""Figures are complete, legible and reproducible, and drawn only from the JSON next to them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from scheduler import figures
from scheduler.simulation import studies

NAMES = ("fig2", "fig3", "fig4", "fig5a", "fig5b", "gap")
SMALL: dict[str, Any] = {"runs": 5, "cycles": 4}
ROOT = Path(__file__).resolve().parents[2]

POLICIES = {
    "random": {"makespan": 13.0, "min": 11.0, "p5": 12.0, "p95": 14.0, "max": 15.0, "runs": 9},
    "comm-priority": {"makespan": 20.0},
    "comp-priority": {"makespan": 20.0},
    "static:1": {"makespan": 11.0},
    "static:2": {"makespan": 16.0},
    "dynamic": {"makespan": 12.5},
    "adaptive": {"makespan": 10.0},
}
GROUP = {
    "scenario": {"cores": 3},
    "lower_bound": 10.0,
    "best_static": "static:1",
    "worst_static": "static:2",
    "policies": POLICIES,
}
COMPARISON = {"title": "by hand", "caption": "a caption", "groups": [GROUP, GROUP]}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures") / "made" / "here"
    paths = figures.write_figures(out, **SMALL)
    assert paths == [out / f"{name}{suffix}" for name in NAMES for suffix in (".json", ".png", ".svg")]
    return out


def data_of(out: Path, name: str) -> studies.Data:
    return dict(json.loads((out / f"{name}.json").read_text(encoding="utf-8")))


def drawn(out: Path, name: str) -> Figure:
    draw = {
        "fig2": figures.draw_fitted_costs,
        "fig3": figures.draw_timeline,
        "fig4": figures.draw_cost_curves,
        "gap": figures.draw_gaps,
    }
    figure = draw.get(name, figures.draw_comparison)(data_of(out, name))
    figure.draw_without_rendering()
    return figure


def shown(figure: Figure) -> Iterator[Text]:
    """Every text except the tick labels, which matplotlib keeps apart."""
    labels = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels(which="both")}
    return (
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_text() and text.get_visible() and text not in labels
    )


@pytest.fixture
def style() -> Iterator[None]:
    with matplotlib.style.context(["default", figures.STYLE]):
        yield


def test_every_figure_has_three_whole_files(written: Path) -> None:
    for name in NAMES:
        with Image.open(written / f"{name}.png") as image:
            assert image.size[0] == round(figures.WIDTH * figures.DPI)
            assert image.size[1] > 500
            assert image.convert("L").getextrema()[1] - image.convert("L").getextrema()[0] > 200
        root = ElementTree.parse(written / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20
    assert sorted(path.name for path in written.iterdir()) == sorted(f"{n}.{s}" for n in NAMES for s in ("json", "png", "svg"))


def test_the_json_has_the_data_and_the_versions(written: Path) -> None:
    for name in NAMES:
        data = data_of(written, name)
        assert data["figure"] == name
        assert {"python", "numpy", "matplotlib", "edgekd"} <= set(data["versions"])
        assert data["title"]
        assert data["caption"]
    assert data_of(written, "fig5b") == {
        "figure": "fig5b",
        **studies.comparison(x=2.0, y=1.0, seed=0, **SMALL),
        "versions": data_of(written, "fig5b")["versions"],
    }


def test_the_same_arguments_give_the_same_files(written: Path, tmp_path: Path) -> None:
    again = [
        *figures.write_figure(tmp_path, "fig2", studies.fitted_costs(seed=0), figures.draw_fitted_costs),
        *figures.write_figure(tmp_path, "fig5a", studies.comparison(x=1.0, y=1.0, seed=0, **SMALL), figures.draw_comparison),
    ]
    assert [path.name for path in again if path.read_bytes() != (written / path.name).read_bytes()] == []


def test_the_seed_reaches_the_random_runs_and_the_examples(written: Path) -> None:
    assert data_of(written, "fig2")["samples"] == studies.example_samples(0)
    assert data_of(written, "gap")["seed"] == 0


def test_the_users_matplotlib_is_neither_used_nor_changed(tmp_path: Path) -> None:
    data = studies.cost_curves(cores=(3,))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    plain = figures.write_figure(ours, "fig4", data, figures.draw_cost_curves)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "savefig.dpi": 20, "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        odd = figures.write_figure(theirs, "fig4", data, figures.draw_cost_curves)
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in plain] == [path.read_bytes() for path in odd]


def test_no_window_system_and_no_pyplot_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from scheduler import figures; from scheduler.simulation import studies\n"
        "figures.write_figure(Path(sys.argv[1]), 'fig4', studies.cost_curves(cores=(3,)), figures.draw_cost_curves)\n"
        "print(*(name for name in sys.modules if name == 'matplotlib.pyplot' or name.startswith('tkinter')))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    fresh = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (fresh.returncode, fresh.stdout.strip()) == (0, ""), fresh.stderr
    assert (tmp_path / "fig4.svg").exists()


@pytest.mark.usefixtures("style")
@pytest.mark.parametrize("name", NAMES)
def test_every_text_is_large_whole_and_alone_in_its_place(written: Path, name: str) -> None:
    figure, data = drawn(written, name), data_of(written, name)
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, "something is clipped"
    texts = [*shown(figure)]
    assert min(text.get_fontsize() for text in texts) >= 8
    assert {data["caption"], data["title"]} <= {text.get_text().replace("\n", " ") for text in texts}
    places = [(text.get_text(), text.get_window_extent()) for text in texts]
    assert [(one, other) for (one, a), (other, b) in combinations(places, 2) if a.overlaps(b)] == []


def test_figure_2_shows_given_samples_without_calling_them_examples(tmp_path: Path) -> None:
    samples = {**studies.example_samples(seed=9)}
    paths = figures.write_figure(tmp_path, "fig2", studies.fitted_costs(samples=samples), figures.draw_fitted_costs)
    assert data_of(tmp_path, "fig2")["samples"] == samples
    assert "xample" not in paths[2].read_text(encoding="utf-8")


def test_figure_2_labels_examples_in_the_drawing(written: Path) -> None:
    drawing = (written / "fig2.svg").read_text(encoding="utf-8")
    assert "(example samples, not measured on a device)" in drawing
    assert "Example samples, not measured on a device:" in drawing


def test_rounding_errors_do_not_fill_the_panel() -> None:
    errors = {"comm_cores": 1, "seconds": 2.0, "relative_error": 1e-16}
    side = {"side": "comp", "formula": "f", "points": [errors], "curve": [errors, errors], "spread": 1e-16}
    figure = figures.draw_fitted_costs({"title": "by hand", "caption": "a caption", "sides": [side, side]})
    assert figure.axes[2].get_ylim() == pytest.approx((-0.55, 0.55))


def test_samples_without_a_fit_are_drawn_with_the_reason() -> None:
    samples = studies.example_samples(seed=0)
    few = {**samples, "comm": [sample for sample in samples["comm"] if sample["comm_cores"] < 3]}
    figure = figures.draw_fitted_costs(studies.fitted_costs(samples=few))
    times, errors = figure.axes[1], figure.axes[3]
    assert [len(line.get_xdata()) for line in times.lines] == [20]
    assert [text.get_text() for text in errors.texts] == ["no fit"]


@pytest.mark.usefixtures("style")
def test_bars_have_the_heights_of_the_data() -> None:
    times, excess = figures.draw_comparison(COMPARISON).axes
    expected = [13.0, 20.0, 20.0, 11.0, 12.5, 10.0]
    assert [bar.get_height() for bar in times.patches] == expected * 2
    heights = [bar.get_height() for bar in excess.patches]
    assert heights == pytest.approx([30, 100, 100, 10, 25, 0] * 2)
    assert [text.get_text() for text in excess.texts] == ["30.0", "100.0", "100.0", "10.0", "25.0", "0.0"] * 2
    assert [text.get_text() for text in times.texts] == ["1", "1"]


@pytest.mark.usefixtures("style")
def test_policies_differ_in_luminance_or_hatch() -> None:
    bars = figures.draw_comparison(COMPARISON).axes[0].patches[:6]
    grey = [float(np.dot(bar.get_facecolor()[:3], [0.299, 0.587, 0.114])) for bar in bars]
    assert grey == sorted(grey, reverse=True)
    for one, other in combinations(range(6), 2):
        assert abs(grey[one] - grey[other]) > 0.1 or bars[one].get_hatch() != bars[other].get_hatch()


@pytest.mark.usefixtures("style")
def test_the_table_of_gaps_shows_each_number_in_its_cell() -> None:
    data = {
        "title": "by hand",
        "caption": "a caption",
        "cores": [4, 6],
        "ratios": ["2 : 1", "1 : 1", "1 : 2"],
        "panels": [{"title": name, "percent": [[-1e-14, 1.0], [2.0, 3.0], [4.0, 9.96]]} for name in ("a", "b")],
    }
    figure = figures.draw_gaps(data)
    figure.draw_without_rendering()
    axes = figure.axes[1]
    places = {text.get_text(): text.get_position() for text in axes.texts}
    expected = {
        "0.00": (0.5, 0.5),
        "1.00": (1.5, 0.5),
        "2.00": (0.5, 1.5),
        "3.00": (1.5, 1.5),
        "4.00": (0.5, 2.5),
        "9.96": (1.5, 2.5),
    }
    assert places == expected
    assert axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_yticklabels()] == data["ratios"]


def test_invalid_samples_leave_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples"):
        figures.write_figures(tmp_path / "new", samples=[], **SMALL)
    assert not (tmp_path / "new").exists()
