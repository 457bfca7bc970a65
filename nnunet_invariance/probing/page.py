"""The page of a probe: one self-contained HTML file, with the verdict first."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnunet_invariance.common.html import bullets, details, folded, inline, lead, notice, page, table
from nnunet_invariance.common.wording import counted
from nnunet_invariance.probing.verdict import RANDOM, headline, sentences, won

MEANING = """<p>The networks are frozen, and a linear classifier of their features segments the test cases. A network
that does not beat the best random network is unlikely to help a training: pre-train longer, or with more scans.</p>"""
COLOURS = """<p>A colour is made of the first three principal components of the features. Each network has its own
mapping, so compare shapes and not colours: regions of one colour with borders at the borders of organs are features
that a segmentation can use.</p>"""
METHODS = """<p>The features of all stages of encoder and decoder are interpolated at every voxel and concatenated, and
a multinomial logistic regression is fitted to sampled voxels of the labelled cases. The interval contains the mean
Dice that is plausible for other labelled cases and other test cases. <em>Random</em> is the mean over networks with
random weights; the verdict compares with the best of them. Each stage alone: the same regression on the features of
one stage, from the finest (0) to the coarsest. Voxel retrieval: share of the voxels whose most similar voxel in
another case has the same label, with as many voxels of every class. docs/probe.md has the details.</p>"""


def make_page(title: str, data: Mapping[str, Any], curves: bytes, features: bytes, warnings: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        data: the content of ``probe.json``.
        curves, features: the pictures ``probe.png`` and ``features.png``.
        warnings: what a reader has to know before the numbers.
    """
    test = data["test_cases"]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        lead(headline(data)),
        *map(notice, warnings),
        inline(curves, "Dice of the linear probe by number of labelled cases, and of each stage alone"),
        MEANING,
        f"<h2>Dice on {counted(len(test), 'test case')}</h2>",
        _scores(data),
        *_cut_cases(data["patch_does_not_show_all_labels"]),
        f"<h2>Features of {html.escape(test[0])}</h2>",
        inline(features, "A test case, its reference, and the features of every network as colours"),
        COLOURS,
        "<h2>Statistics</h2>",
        *_statistics(data),
    ]
    return page(title, "\n".join(parts), width=72)


def _cut_cases(names: Sequence[str]) -> Iterator[str]:
    """How many cases are larger than the patch, which bounds what the numbers are about."""
    if names:
        yield f"<p>Every case is one patch. It does not show every labelled voxel of {counted(len(names), 'case')}.</p>"


def _scores(data: Mapping[str, Any]) -> str:
    """One row per network and number of labelled cases; a class without a value has "-"."""
    rows, kinds = [], []
    for name, entry in data["networks"].items():
        for shots in data["options"]["shots"]:
            found = entry[f"{shots} shots"]
            by_class = (found["classes"].get(label, {}).get("mean") for label in data["classes"])
            mean = f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
            classes = ("-" if dice is None else f"{dice:.3f}" for dice in by_class)
            rows.append((name, _against_random(data, name, shots), str(shots), mean, *classes))
            kinds.append("better" if shots in won(data, name) else "")
    head = ("network", "against random networks", "labelled cases", "Dice [95 % interval]", *data["classes"])
    return table(head, rows, len(head) - 2, kinds)


def _against_random(data: Mapping[str, Any], name: str, shots: int) -> str:
    if name == RANDOM:
        return f"mean of {data['networks'][RANDOM]['networks']}"
    if RANDOM not in data["networks"]:
        return "-"
    return "better than the best" if shots in won(data, name) else "not better than the best"


def _statistics(data: Mapping[str, Any]) -> Iterator[str]:
    """Everything else, folded."""
    yield details("How the numbers are computed", METHODS)
    networks, last = data["networks"], data["options"]["shots"][-1]
    if len(said := sentences(data)) > 1:
        yield details("Verdict of every network", bullets(said))
    maps = list(next(iter(networks.values()))[f"{last} shots"]["maps"])
    rows = [(m, *(f"{entry[f'{last} shots']['maps'][m]:.3f}" for entry in networks.values())) for m in maps]
    stages = table(("stage", *networks), rows, len(networks))
    yield details(f"Dice of each stage alone, {counted(last, 'labelled case')}", stages)
    rows = [(name, f"{entry['retrieval']:.3f}") for name, entry in networks.items()]
    yield details(f"Voxel retrieval (chance {data['retrieval_chance']:.3f})", table(("network", "retrieval"), rows, 1))
    command = {"command": data["command"]} if data["command"] else {}
    facts = {**command, **data["options"], **data["environment"]}
    yield folded("Settings and versions", "\n".join(f"{name}: {value}" for name, value in facts.items()))
    cases = f"test cases: {', '.join(data['test_cases'])}\n\nlabelled cases: {', '.join(data['labelled_cases'])}"
    yield folded("Cases", cases)
