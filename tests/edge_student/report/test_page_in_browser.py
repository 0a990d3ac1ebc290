"""report.html in a browser: light and dark schemes, wide and narrow windows, no network access, no overflow."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from synthetic_comparison import QUIET, profile, write_comparison, write_report

from edge_student.report.page import write_page

pytestmark = pytest.mark.slow

api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")

pytestmark = pytest.mark.needs("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
FIGURES = ["wall-clock", "parts", "timeline-0", "timeline-1", "timeline-2", "rates-comp", "rates-comm"]
MIN_CONTRAST = 4.5  # WCAG 2, level AA

# Returns texts with less than MIN_CONTRAST between text and background colour. The background of a text in a figure is the shape
# drawn before it if its class starts with "on-", else the page.
LOW_CONTRAST = """
(least) => {
  const channels = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found.length && found[3] !== 0) return found;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
    const drawn = element.tagName === "text";
    if (!words || (element.namespaceURI.includes("svg") && !drawn)) continue;
    const ink = channels(drawn ? getComputedStyle(element).fill : getComputedStyle(element).color);
    const on = drawn && element.getAttribute("class").startsWith("on-");
    const under = on ? channels(getComputedStyle(element.previousElementSibling).fill) : ground(element);
    const [a, b] = [luminance(ink), luminance(under)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < least) low.push(`${words.slice(0, 40)}: ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return low;
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page with content in every section, and with long words."""
    out = tmp_path_factory.mktemp("comparison")
    (out / "profile.json").write_text(json.dumps({**profile(), "fingerprint": {"kernel": "k" * 120}}))
    written = write_comparison(out, profile=out / "profile.json")
    written["is_complete"] = False
    written["host"]["cpu"] = "Processor-with-a-name-of-one-word-" * 4
    written["software"]["commit"] = "0" * 40
    written["command"].append("--out=" + "long" * 60)
    written["runs"][4].update(valid=False, notes=["/a/path/without/any/blank" * 6])
    for run in written["runs"]:
        run["disturbance"] = QUIET | {f"counter_{n}": list(range(8)) for n in range(12)}
    write_report(out, written)
    return write_page(out)


class Visit:
    """The page in one window, with the errors and requests that the browser reported."""

    def __init__(self, browser: Any, page: Path, scheme: Literal["light", "dark"], width: int) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.tab.on("console", lambda message: self.errors.append(message.text))
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("requestfailed", lambda request: self.errors.append(request.url))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(page.as_uri())
        self.tab.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")


@pytest.fixture(params=[(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)], ids=lambda p: f"{p[0]}-{p[1]}")
def visit(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Visit]:
    scheme, width = request.param
    visit = Visit(browser, report, scheme, width)
    yield visit
    visit.tab.close()


def test_the_page_loads_alone_shows_every_figure_and_fits_its_window(visit: Visit, report: Path) -> None:
    assert visit.requests == [report.as_uri()]
    boxes = {name: visit.tab.locator(f"#figure-{name}").bounding_box() for name in FIGURES}
    assert [name for name, box in boxes.items() if box is None or box["width"] < 200 or box["height"] < 100] == []
    assert visit.tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert visit.tab.evaluate("document.body.scrollWidth - document.documentElement.clientWidth") <= 0
    assert visit.errors == []


def test_every_text_has_enough_contrast(visit: Visit) -> None:
    assert visit.tab.evaluate(LOW_CONTRAST, MIN_CONTRAST) == []
    assert len(visit.tab.evaluate(LOW_CONTRAST, 22)) > 100, "no contrast reaches 22, so the script returns every text"


def test_the_scheme_of_the_reader_is_followed(browser: Any, report: Path) -> None:
    visits = [Visit(browser, report, scheme, 1280) for scheme in ("light", "dark")]
    grounds = [visit.tab.evaluate("getComputedStyle(document.body).backgroundColor") for visit in visits]
    assert grounds == ["rgb(253, 253, 252)", "rgb(20, 24, 30)"]
    for visit in visits:
        visit.tab.close()


def test_a_figure_is_found_by_its_title(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, "light", 1280)
    for title in ("Wall-clock of every run, by policy", "Core use over time under static:1"):
        assert visit.tab.get_by_role("img", name=title).is_visible()
    visit.tab.close()


def test_the_page_prints_whole(browser: Any, report: Path) -> None:
    visit = Visit(browser, report, "light", 1280)
    visit.tab.emulate_media(media="print")
    assert visit.tab.pdf(format="A4").startswith(b"%PDF")
    visit.tab.close()
