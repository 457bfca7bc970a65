"""The demo's page: complete in itself, safe text, true numbers."""

import base64
import html.parser
import io
import json
from pathlib import Path

import matplotlib.image
import pytest

from nnunet_invariance.demo.alice import draw
from nnunet_invariance.demo.page import Page, Section, inline, score_section, table, transfer_table, write_page
from nnunet_invariance.demo.steps import Demo, Step
from tests.helpers.stored_demo import write_demo


class Reader(html.parser.HTMLParser):
    """Collects every tag with its attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def page(demo) -> Reader:
    steps = [Step("planning", ["nnUNetv2_plan <&> 1"], 12.3), Step("drawing", [], 0.4)]
    path = write_page(demo, draw(Demo(demo, 1)), steps, ["nnUNetv2_train <own>"])
    assert path == demo / "index.html"
    return Reader(path.read_text())


@pytest.mark.integration
def test_nothing_is_fetched_from_anywhere(page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes[name][:60])
    assert not page.open


def test_every_picture_decodes_and_says_what_it_shows(page):
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 6
    assert "What the network sees" in pictures[3]["alt"]
    for attributes in pictures:
        assert attributes["alt"]
        kind, data = attributes["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(data, validate=True)), format="png")
        assert pixels.ndim == 3
        assert min(pixels.shape[:2]) >= 8


def test_the_page_says_that_it_does_not_measure_the_method(page):
    assert "shows the pipeline and does not measure the method" in page.text
    assert "a few test cases with one seed" in page.text


def test_the_results_come_first_and_the_commands_for_other_data_last(page):
    headings = ["Dice on the 2 test cases", "The data", "Pre-training, without labels"]
    headings += ["Commands of this demo", "The same with your data"]
    positions = [page.text.index(heading) for heading in headings]
    assert positions == sorted(positions)
    assert page.text.index("nnUNetv2_train <own>") > positions[-1]


def test_a_warning_of_collapse_is_shown_in_red(page):
    assert "collapse: <uniform>; lower it (epoch 5)" in page.text
    assert [attributes for tag, attributes in page.tags if tag == "p"].count({"class": "notice"}) == 2


def test_commands_and_times_stand_there_as_they_were(page):
    assert "nnUNetv2_plan <&> 1" in page.text
    assert "planning: 12 s" in page.text


def cells(fragment: str) -> list[str]:
    return [cell for cell in Reader(fragment).text.splitlines() if cell]


def test_the_score_table_holds_means_and_paired_differences(demo):
    lines = cells(score_section(Demo(demo, 1)).body)
    assert "2 shotsAliceorgan1.000 [1.000, 1.000]+0.500 [+0.500, +0.500]" in lines
    assert "2 shotsAlice_scratchorgan0.500 [0.500, 0.500]" in lines


def test_the_verdict_is_one_sentence_before_the_figure(page):
    found = page.text.index("Not decided: Alice against Alice_scratch, +0.500 Dice (95 % interval")
    assert page.text.index("Dice on the 2 test cases") < found < page.text.index("Mean Dice of every class")


def test_the_transfer_table_adds_up(demo):
    report = json.loads(next(demo.rglob("transfer_report.json")).read_text())
    lines = cells(transfer_table(report))
    assert lines[0] == "100% of the encoder's stages come from weights.safetensors (teacher); decoder: random."
    assert lines[2:] == ["matched23,000", "adapted00", "skipped00", "missing11,500"]


def test_text_cannot_become_markup(tmp_path):
    path = write_page(tmp_path, Page("<i>", [Section("<u>", "<p>kept</p>")]), [])
    assert not {"i", "u"} & {tag for tag, _ in Reader(path.read_text()).tags}
    assert Reader(table(("a",), [("<b>&",)], numbers=0)).text.strip() == "a\n<b>&"
    assert Reader(inline(b"png", '"><script>')).tags[1][1]["alt"] == '"><script>'
