"""The page of a probe: the verdict first, true numbers, and nothing that is fetched."""

import argparse
import json
import re

import pytest

from nnunet_invariance.cli.probe import add_parser, next_command
from nnunet_invariance.probing.report import summary
from nnunet_invariance.probing.verdict import best_method, headline, sentences, won
from tests.helpers.stored_probe import probe_result, write_probe

RANDOM = {"random 0": (0.2, 0.5), "random 1": (0.3, 0.4)}
SEEN = "The pre-trainings have seen the images."


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    result = probe_result({"mae": (0.6, 0.8), "alice (student)": (0.4, 0.45), **RANDOM})
    return write_probe(tmp_path_factory.mktemp("probe"), result, (SEEN,)).read_text()


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        (
            {"a": (0.6, 0.8), **RANDOM},
            "a beats every random network: Dice 0.600 with 1 labelled case (best random 0.300), ",
        ),
        ({"a": (0.4, 0.45), **RANDOM}, "a beats every random network with 1 labelled case only: Dice 0.400"),
        ({"a": (0.1, 0.2), **RANDOM}, "a does not beat the best random network: Dice 0.100 with 1 labelled case (best"),
        (
            {"a": (0.6, 0.8), "b": (0.1, 0.9), **RANDOM},
            "1 of 2 networks beat every random network; b is the best: Dice 0.9",
        ),
        (
            {"a": (0.6, 0.8)},
            "No random network was probed; a: Dice 0.600 with 1 labelled case, 0.800 with 5 labelled cases.",
        ),
        (
            {"a": (0.6, 0.8), "b": (0.1, 0.9)},
            "b is the best: Dice 0.900 with 5 labelled cases; no random network was probed.",
        ),
        (RANDOM, "No checkpoint was probed; 2 random networks can be compared."),
    ],
)
def test_the_verdict_is_one_sentence(dice, expected):
    assert headline(summary(probe_result(dice))).startswith(expected)


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ({"mae": (0.6, 0.8), "alice (student)": (0.6, 0.9), **RANDOM}, "alice"),
        ({"mae": (0.6, 0.45), "dense": (0.1, 0.48), **RANDOM}, "mae"),  # dense beats no random network
        ({"mae": (0.1, 0.2), **RANDOM}, None),
        ({"mae": (0.1, 0.2)}, "mae"),
        (RANDOM, None),
    ],
)
def test_the_best_pretraining_is_named_if_it_beats_random_networks(dice, expected):
    assert best_method(summary(probe_result(dice))) == expected


@pytest.mark.parametrize(
    ("words", "best", "expected"),
    [
        ("--methods mae alice", "alice", "nnUNetv2_train 4 3d_fullres 0 -tr AliceTrainer"),
        ("--methods mae", None, "pre-train longer or with more scans"),
        ("--weights FILE", None, "pre-train longer or with more scans"),
        ("--weights FILE", "FILE", "nnunet-invariance weights plan 4 FILE"),
        ("", None, "nnunet-invariance pretrain METHOD 4 3d_fullres"),
    ],
)
def test_the_last_line_follows_from_the_verdict(words, best, expected):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["probe", "4", "3d_fullres", *words.split()])
    assert next_command(args, best).startswith(expected)


def test_a_network_is_compared_with_the_best_random_one_for_every_number_of_labelled_cases():
    data = summary(probe_result({"a": (0.6, 0.45), "b": (0.3, 0.8), **RANDOM}))
    assert (won(data, "a"), won(data, "b")) == ([1], [5])
    assert len(sentences(data)) == 2


def test_the_verdict_comes_first_then_warnings_then_the_figure(text):
    places = [
        text.index(part) for part in ("<h1>", 'class="verdict"', SEEN, "<img ", "<table>", "labelled voxel of 1 case")
    ]
    assert places == sorted(places)
    assert "1 of 2 networks beat every random network; mae is the best" in text


def test_every_number_of_the_table_is_that_of_the_summary(text):
    rows = [re.findall(r"<td[^>]*>([^<]*)", line) for line in re.findall(r"<tr.*</tr>", text)]
    row = next(row for row in rows if row[:3] == ["alice (student)", "not better than the best", "5"])
    means = summary(probe_result({"alice (student)": (0.4, 0.45)}))["networks"]["alice (student)"]["5 shots"]
    assert row[3] == f"{means['mean']:.3f} [{means['low']:.3f}, {means['high']:.3f}]"
    assert row[4:] == [f"{found['mean']:.3f}" for found in means["classes"].values()]
    assert "&lt;aorta&gt;" in text


def test_the_page_needs_no_other_file(text):
    assert not re.search(r"<(script|link|iframe|object)|(src|href)=\"(?!data:)", text)
    assert text.count("<img ") == 2


def test_the_page_follows_from_the_stored_numbers(tmp_path):
    result = probe_result({"mae": (0.6, 0.8), **RANDOM})
    write_probe(tmp_path, result)
    stored = json.loads((tmp_path / "probe.json").read_text())
    assert headline(stored) == headline(summary(result))
