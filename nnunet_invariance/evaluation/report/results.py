"""The results of a comparison: scores, mean scores, paired differences and rankings, computed from its folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.csv_files import write_csv
from nnunet_invariance.common.wording import counted
from nnunet_invariance.evaluation.runner.record import read_record
from nnunet_invariance.evaluation.runner.stored import RECORD, stored_jobs, write_scores
from nnunet_invariance.evaluation.scoring.metrics import METRICS
from nnunet_invariance.evaluation.scoring.scores import Score
from nnunet_invariance.evaluation.statistics.effects import ArmMean, Contrast, Effect, arm_means, paired_effects
from nnunet_invariance.evaluation.statistics.ranking import RankedArm, rank_arms
from nnunet_invariance.evaluation.statistics.score_table import OVERALL

#: The results as text, for a terminal.
SUMMARY = "summary.txt"


@dataclass(frozen=True)
class Results:
    """Everything that is computed from the scores of a comparison; conditions are in natural order.

    >>> results = compute_results([], [], seed=0)
    >>> results.conditions, results.main_effects
    ([], [])
    """

    scores: Sequence[Score]
    means: Sequence[ArmMean]
    effects: Sequence[Effect]
    ranking: Sequence[RankedArm]

    @property
    def conditions(self) -> list[str]:
        """The conditions that have a score."""
        return list(dict.fromkeys(s.condition for s in self.scores))

    @property
    def main_effects(self) -> list[Effect]:
        """The differences in Dice, averaged over the classes."""
        return [e for e in self.effects if e.metric == "dice" and e.label == OVERALL]

    @property
    def main_means(self) -> list[ArmMean]:
        """The mean Dice of the arms, averaged over the classes."""
        return [m for m in self.means if m.metric == "dice" and m.label == OVERALL]


def compute_results(scores: Sequence[Score], contrasts: Sequence[Contrast], seed: int) -> Results:
    """Compute all statistics of the scores."""
    scores = sorted(scores, key=lambda s: natural(s.condition))
    return Results(scores, arm_means(scores, seed), paired_effects(scores, contrasts, seed), rank_arms(scores, seed))


def write_results(out: Path) -> Results:
    """Compute the results of what is finished in a comparison's folder, and write its tables.

    Writes ``scores.csv``, ``means.csv``, ``effects.csv``, ``ranking.csv`` and ``summary.txt``, and adds the commands of
    the finished cells to ``comparison.json``.

    Raises:
        ComparisonError: the folder contains no comparison.
    """
    scores = write_scores(out, stored_jobs(out))
    described = read_record(out / RECORD)["comparison"]
    contrasts = [Contrast(c["arm"], c["reference"], c["family"]) for c in described["contrasts"]]
    results = compute_results(scores, contrasts, described["seed"])
    write_csv(out / "means.csv", results.means, ArmMean)
    write_csv(out / "effects.csv", results.effects, Effect)
    write_csv(out / "ranking.csv", results.ranking, RankedArm)
    atomic_write(out / SUMMARY, lambda file: file.write(summary(results).encode()))
    return results


def summary(results: Results) -> str:
    """The main results as text: one line per contrast, then the mean Dice of every arm."""
    lines = [sentence(e) for e in results.main_effects] or ["No two arms can be compared yet."]
    width = max((len(m.arm) for m in results.main_means), default=0)
    for condition in results.conditions:
        lines += ["", f"Mean Dice, {condition}:"]
        means = [m for m in results.main_means if m.condition == condition]
        lines += [f"  {m.arm:{width}}  {m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in means]
    return "\n".join(lines) + "\n"


def sentence(e: Effect) -> str:
    """An effect in one line, with the verdict first."""
    text = (
        f"{e.verdict}: {e.arm} against {e.reference}, {e.condition}: {METRICS[e.metric].title} {e.mean:+.3f} "
        f"[{e.low:+.3f}, {e.high:+.3f}] ({counted(e.draws, 'draw')}, {counted(e.cases, 'case')})"
    )
    return f"{text}; {e.undecided_because}" if e.undecided_because else text


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that puts "3 shots" before "10 shots".

    >>> sorted(["10 shots", "3 shots"], key=natural)
    ['3 shots', '10 shots']
    """
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", text) if word]
