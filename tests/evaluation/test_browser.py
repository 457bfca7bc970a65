"""The pages in a real browser: they fit every width, report no error, and everybody can read them.

Screenshots are in pytest's temporary folder, and in $SCREENSHOTS if it is set. axe-core is read from node_modules
(`npm install --no-save axe-core`).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_invariance.demo.alice import draw
from nnunet_invariance.demo.page import write_page
from nnunet_invariance.demo.steps import Demo, Step
from nnunet_invariance.evaluation.report.page import write_report
from tests.helpers.browser import Browser, find_browser, open_browser
from tests.helpers.stored_comparison import write_comparison
from tests.helpers.stored_demo import write_demo
from tests.helpers.stored_probe import probe_result, write_probe

pytestmark = pytest.mark.skipif(find_browser() is None, reason="neither Chromium nor Chrome is installed")
AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
WIDTHS = (1200, 768, 400)
WIDTH = "document.documentElement.scrollWidth"
UNFOLD = "document.querySelectorAll('details').forEach(d => { d.open = true; })"
SERIOUS = """axe.run().then(found => found.violations.filter(v => ["serious", "critical"].includes(v.impact))
  .map(v => v.id + ": " + v.nodes.map(n => n.html.slice(0, 150)).join(" | ")))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The report of a small comparison, the page of a demo, and the page of a probe."""
    folder = tmp_path_factory.mktemp("pages")
    demo = write_demo(folder / "demo")
    steps = [Step("planning", ["nnUNetv2_plan_and_preprocess -d 990 " + "x" * 200], 12.3)]
    return {
        "report": write_report(write_comparison(folder / "comparison", ("all channels", "without T1"))),
        "demo": write_page(demo, draw(Demo(demo, 1)), steps, ["nnUNetv2_train <own>"]),
        "probe": write_probe(folder / "probe", probe_result({"mae": (0.6, 0.8), "random 0": (0.2, 0.3)}), ("Seen.",)),
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.integration
@pytest.mark.parametrize("name", ["report", "demo", "probe"])
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


def serious_findings(browser: Browser, page: Path, dark: bool) -> list[str]:
    if not AXE.is_file():
        pytest.skip("axe-core is not installed: npm install --no-save axe-core")
    browser.open(page, WIDTHS[-1], dark)
    browser.run(f"{AXE.read_text()}; {UNFOLD}")
    return browser.run(SERIOUS)


@pytest.mark.integration
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["report", "demo", "probe"])
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
