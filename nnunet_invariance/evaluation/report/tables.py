"""The HTML tables of a report: verdicts, rankings, and the statistics behind them."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nnunet_invariance.common.html import bullets, details, table
from nnunet_invariance.common.wording import counted
from nnunet_invariance.evaluation.report.results import Results
from nnunet_invariance.evaluation.scoring.metrics import METRICS, Metric
from nnunet_invariance.evaluation.statistics.effects import LEAST_COVERAGE, LEAST_DRAWS, ArmMean, Effect

#: How to read the verdict, in plain words.
READING = f"""<p>Every difference is paired: both arms are trained on the same cases and tested on the same case. The
95 % interval contains the mean differences that are plausible for other training and test cases. The verdict is
&ldquo;better&rdquo; or &ldquo;worse&rdquo; only if the interval excludes 0, there are at least {LEAST_DRAWS} draws of
training cases, and such intervals contain the truth in at least {LEAST_COVERAGE:.0%} of simulated experiments of this
size. P(false claim) is the probability that the true difference has the other sign. With one draw, interval and
probability hold for other test cases only, not for other training cases.</p>"""
METHODS = """<p>The interval is a bootstrap over draws of training cases and over test cases, widened for few draws and
clipped to the range of the metric; with one draw it holds for other test cases only. <em>Coverage</em> is how often
such an interval contained the truth in simulated experiments with this number of draws and cases, for several mixtures
of variance; it should be 0.95. p: Wilcoxon's signed-rank test over the test cases, each averaged over the draws; in
brackets after Holm's correction over the arms that are compared with the same reference. Effect: rank-biserial
correlation, from -1 (smaller in every case) to 1 (larger in every case). P(false claim): posterior probability of the
other sign under a flat prior. P(rank 1): share of the bootstrap samples in which the arm has the best mean. A class
that neither the reference nor the prediction has enters no mean; a class that only one of them has counts as Dice 0,
NSD 0 and, as HD95, the diagonal of the image. docs/evaluation.md has the equations.</p>"""


def headline(effects: Sequence[Effect], names: Mapping[str, str]) -> str:
    """The verdict of all contrasts in one sentence; two arms that are each other's reference count once."""
    if not effects:
        return "No two arms can be compared yet."
    effects = _different_pairs(effects)
    if len(effects) == 1:
        (e,) = effects
        numbers = f"{e.mean:+.3f} Dice (95 % interval {e.low:+.3f} to {e.high:+.3f}, {counted(e.cases, 'test case')})"
        if e.undecided_because:
            return f"Not decided: {_comparison(e, names)}, {numbers}; {e.undecided_because}."
        return f"{names.get(e.arm, e.arm)} is {e.verdict} than {names.get(e.reference, e.reference)}: {numbers}."
    number = Counter(e.verdict for e in effects)
    text = f"{len(effects)} comparisons: " + ", ".join(f"{n} {verdict}" for verdict, n in number.most_common())
    decided = [e for e in effects if not e.undecided_because]
    e = max(decided or effects, key=lambda e: abs(e.mean))
    largest = "largest decided difference" if decided else "largest difference"
    return f"{text}; the {largest} is {e.mean:+.3f} Dice: {_comparison(e, names)}, {e.condition}."


def _different_pairs(effects: Iterable[Effect]) -> list[Effect]:
    """The first effect of every pair of arms under every condition, whichever arm is the reference."""
    first: dict[tuple[frozenset[str], str], Effect] = {}
    for e in effects:
        first.setdefault((frozenset((e.arm, e.reference)), e.condition), e)
    return list(first.values())


def arm_legend(arms: Iterable[str], starts: Mapping[str, str], names: Mapping[str, str]) -> str:
    """Table of the short names: the trainer (with "@" and its own plans), and the weights that it starts from."""
    rows = [(names[arm], arm, starts.get(arm, "random weights")) for arm in arms]
    return table(("name on this page", "trainer", "starts from"), rows, 0)


def verdict_table(effects: Sequence[Effect], names: Mapping[str, str]) -> str:
    """One row per contrast and condition, with the verdict first; below it, why the others are not decided."""
    rows = [
        (
            *(e.verdict, f"{e.mean:+.3f} [{e.low:+.3f}, {e.high:+.3f}]", _comparison(e, names), e.condition),
            *(_probability(e.p_false_claim), f"{e.draws} x {e.cases}"),
        )
        for e in effects
    ]
    difference = f"difference in {METRICS[effects[0].metric].title} [95 % interval]"
    head = ("verdict", difference, "comparison", "condition", "P(false claim)", "draws x cases")
    reasons = [
        f"{_comparison(e, names)}, {e.condition}: not decided, because {e.undecided_because}"
        for e in effects
        if e.undecided_because
    ]
    why = details("Why is a comparison not decided?", bullets(reasons)) if reasons else ""
    return table(head, rows, 2, [_row_class(e) for e in effects]) + why


def ranking_table(results: Results, names: Mapping[str, str], metric: Metric) -> str:
    """The arms of every condition in the order of their means, with the certainty of that order."""
    rows = [
        (
            r.condition,
            str(r.rank),
            names.get(r.arm, r.arm),
            f"{r.mean:.3f}",
            f"{r.p_first:.2f}",
            _probability(r.p_false_claim),
        )
        for r in results.ranking
        if r.metric == metric.name
    ]
    head = ("condition", "rank", "arm", f"mean {metric.title}", "P(rank 1)", "P(next arm is as good or better)")
    return table(head, rows, 3) if rows else ""


def statistics(results: Results, names: Mapping[str, str]) -> Iterator[str]:
    """The differences per class and the means of the arms, folded."""
    yield details("How the statistics are computed", METHODS)
    for metric in METRICS.values():
        rows = [e for e in results.effects if e.metric == metric.name]
        if rows:
            better = "larger is better" if metric.larger_is_better else "smaller is better"
            body = effect_table(rows, names)
            if metric.name != "dice":
                body = ranking_table(results, names, metric) + body
            yield details(f"{metric.title}: differences per class ({better})", body)
    if results.means:
        yield details("Means of the arms, per class", mean_table(results.means, names))


def effect_table(effects: Sequence[Effect], names: Mapping[str, str]) -> str:
    """All numbers of the effects of one metric."""
    rows = [
        (
            *(
                e.verdict,
                _comparison(e, names),
                e.condition,
                e.label,
                f"{e.mean:+.3f}",
                f"{e.low:+.3f} to {e.high:+.3f}",
            ),
            *(f"{e.p:.3g} ({e.p_holm:.3g})", f"{e.effect:+.2f}", _probability(e.p_false_claim)),
            *(f"{e.coverage_low:.2f}-{e.coverage_high:.2f}", f"{e.draws} x {e.cases}"),
        )
        for e in effects
    ]
    head = ("verdict", "comparison", "condition", "class", "mean", "95 % interval", "p (Holm)", "effect")
    return table((*head, "P(false claim)", "coverage", "draws x cases"), rows, 7, [_row_class(e) for e in effects])


def mean_table(means: Sequence[ArmMean], names: Mapping[str, str]) -> str:
    """Mean and interval of every arm, condition, metric and class."""
    rows = [
        (
            *(m.condition, names.get(m.arm, m.arm), m.label, METRICS[m.metric].title),
            *(f"{m.mean:.3f}", f"{m.low:.3f} to {m.high:.3f}", f"{m.draws} x {m.cases}"),
        )
        for m in means
    ]
    return table(("condition", "arm", "class", "metric", "mean", "95 % interval", "draws x cases"), rows, 3)


def _comparison(e: Effect, names: Mapping[str, str]) -> str:
    return f"{names.get(e.arm, e.arm)} against {names.get(e.reference, e.reference)}"


def _row_class(e: Effect) -> str:
    return e.verdict.split()[0]


def _probability(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
