"""The pages in a real browser: they fit every width, report no error, and everybody can read them.

Screenshots are in pytest's temporary folder, and in $SCREENSHOTS if it is set. Beside our own check of what everybody
can read, axe-core is run if node_modules has it (`npm install --no-save axe-core`).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nnunet_invariance.demo.alice import draw
from nnunet_invariance.demo.page import write_page
from nnunet_invariance.demo.steps import Demo, Step
from nnunet_invariance.evaluation.report.page import write_report
from nnunet_invariance.modality_translation.evaluate import PairScore, _grid, _page
from tests.helpers.accessibility import barriers
from tests.helpers.browser import Browser, find_browser, open_browser
from tests.helpers.stored_comparison import write_comparison
from tests.helpers.stored_demo import write_demo
from tests.helpers.stored_probe import probe_result, write_probe

pytestmark = pytest.mark.skipif(find_browser() is None, reason="neither Chromium nor Chrome is installed")
AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = (1200, 768, 400)
NAMES = ("report", "demo", "probe", "translation")
WIDTH = "document.documentElement.scrollWidth"
UNFOLD = "document.querySelectorAll('details').forEach(d => { d.open = true; })"
SERIOUS = """axe.run().then(found => found.violations.filter(v => ["serious", "critical"].includes(v.impact))
  .map(v => v.id + ": " + v.nodes.map(n => n.html.slice(0, 150)).join(" | ")))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The report of a small comparison, and the pages of a demo, a probe and a translation."""
    folder = tmp_path_factory.mktemp("pages")
    demo = write_demo(folder / "demo")
    steps = [Step("planning", ["nnUNetv2_plan_and_preprocess -d 990 " + "x" * 200], 12.3)]
    return {
        "report": write_report(write_comparison(folder / "comparison", ("all channels", "without T1"))),
        "demo": write_page(demo, draw(Demo(demo, 1)), steps, ["nnUNetv2_train <own>"]),
        "translation": write_translation(folder / "translation.html"),
        "probe": write_probe(folder / "probe", probe_result({"mae": (0.6, 0.8), "random 0": (0.2, 0.3)}), ("Seen.",)),
    }


def write_translation(file: Path) -> Path:
    """The page of a translation between three modalities, of which one case was trained on."""
    names = ["T1", "T2", "FLAIR"]
    images = dict(enumerate(np.random.default_rng(0).random((3, 4, 16, 16), dtype=np.float32)))
    pairs = [(source, target) for source in names for target in names if source != target]
    rows = [PairScore(source, target, "case_0", 20.0, 0.1, 0.9, 20.0, 0.1, 0.9, 1.0) for source, target in pairs]
    picture = _grid(names, images, {(channel,): images for channel in images})
    file.write_text(_page("Dataset001_Three", rows, picture, ["case_0"]))
    return file


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_every_width_and_reports_no_error(name, pages, browser, tmp_path):
    for width in WIDTHS:
        for dark in (False, True) if width == WIDTHS[0] else (False,):
            assert browser.open(pages[name], width, dark) == []
            assert browser.run(WIDTH) <= width
            assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
            shot = tmp_path / f"{name}_{width}{'_dark' if dark else ''}.png"
            browser.screenshot(shot)
            if kept := os.environ.get("SCREENSHOTS"):
                shutil.copy(shot, kept)
            browser.run(UNFOLD)
            assert browser.run(WIDTH) <= width


@pytest.mark.integration
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_everybody_can_read_a_page(name, dark, pages, browser):
    browser.open(pages[name], WIDTHS[-1], dark)
    browser.run(UNFOLD)
    assert barriers(browser) == []


def test_what_is_hard_to_read_is_found(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<style>body { background: #fff } p { color: #ccc } div { overflow-x: auto }</style><h2>h</h2><p>pale</p>"
        "<img src=x><table><tr><td>a</table><div style='width: 9px'>unbreakable</div><a>nowhere</a>"
    )
    browser.open(page, 400)
    rules = ["contrast", "image without a text", "table without a head", "link", "scrolls, but not with the keyboard"]
    rules += ["headings", "no language", "no title", "not one main part"]
    assert [text.split(":")[0] for text in barriers(browser)] == rules


def serious_findings(browser: Browser, page: Path, dark: bool) -> list[str]:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm install --no-save axe-core")
    browser.open(page, WIDTHS[-1], dark)
    browser.run(f"{AXE.read_text()}; {UNFOLD}")
    return browser.run(SERIOUS)


@pytest.mark.integration
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing_serious(name, dark, pages, browser):
    assert serious_findings(browser, pages[name], dark) == []


def test_axe_sees_text_of_little_contrast_and_pictures_without_a_text(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<html lang=en><title>t</title><main><p style='color: #ccc; background: #fff'>pale</p><img src=x></main>"
    )
    found = serious_findings(browser, page, dark=False)
    assert [text.split(":")[0] for text in found] == ["color-contrast", "image-alt"]


def test_the_browser_sees_errors_and_too_wide_pages(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<script>console.error('seen'); missing()</script><div style='width: 3000px'>wide</div>")
    errors = browser.open(page, 400)
    assert len(errors) == 2
    assert "seen" in errors[0]
    assert browser.run(WIDTH) > 400
