"""What a good acceptance run shows, as limits on the numbers of its phases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """A limit on one number of a phase.

    Attributes:
        phase: name of the phase.
        path: keys of the number in the phase's result.
        limit: the limit; ``at_most`` says on which side of it the number must be. True: the value must be true.
        text: what the number is.
    """

    phase: str
    path: tuple[str, ...]
    limit: float | bool
    text: str
    at_most: bool = True

    def value(self, result: Mapping[str, Any]) -> float | None:
        """The number in the result of the phase; None if the device cannot give it."""
        found: Any = result
        for key in self.path:
            found = found[key]
        return None if found is None else float(found)

    def is_met(self, value: float) -> bool:
        """Whether a number is on the right side of the limit."""
        if self.limit is True:
            return value == 1
        return value <= self.limit if self.at_most else value >= self.limit

    @property
    def limit_text(self) -> str:
        """The limit in words."""
        return "yes" if self.limit is True else f"{'at most' if self.at_most else 'at least'} {self.limit:g}"

    def value_text(self, value: float) -> str:
        """A measured value in words."""
        return ("yes" if value else "no") if self.limit is True else f"{value:.3g}"


#: Phases whose goals are about speed: a miss does not mean that something is wrong.
SPEED = frozenset({"training_step", "compiled_step", "pretraining_step", "synthesis", "augmentation", "loading"})
GOALS = (
    Goal("trainers", ("all_finite",), True, "every trainer has finite losses"),
    Goal("training_step", ("ratio", "without auxiliary losses"), 1.03, "step without auxiliary losses / nnUNetTrainer"),
    Goal("training_step", ("ratio", "two views"), 1.5, "step with two views / nnUNetTrainer"),
    Goal("compiled_step", ("ratio", "without auxiliary losses"), 1.03, "the same without auxiliary losses, compiled"),
    Goal("compiled_step", ("ratio", "two views"), 1.5, "the same with two views, compiled"),
    Goal("compiled_step", ("puir", "breaks"), 0, "breaks of the compiled graph of PUIRTrainer"),
    Goal("pretraining_step", ("largest_ratio",), 1.15, "pre-training step / its forward and backward pass"),
    Goal("synthesis", ("best",), 100, "synthetic pairs of 128^3 voxels per second", at_most=False),
    Goal("augmentation", ("one_view", "milliseconds"), 15, "device augmentation of 2 x 128^3 voxels, ms"),
    Goal("augmentation", ("two_views", "host_waits"), 0, "waits of the host in the device augmentation"),
    Goal("loading", ("best_network_share",), 0.85, "share of the network in an iteration", at_most=False),
    Goal(
        "loading", ("cases", "device, 2 workers", "iteration_over_step"), 1.1,
        "iteration / step with device augmentation and two workers",
    ),
    Goal("precision", ("largest_difference",), 0.02, "loss in lower precision, relative difference to float32"),
    Goal("resume", ("relative_difference",), 0.02, "loss of a continued run, relative difference"),
    Goal("evaluation", ("all_finite",), True, "the held-out evaluation is finite in every precision"),
    Goal("prediction", ("same_labels",), 0.999, "voxels that CPU and GPU label equally", at_most=False),
    Goal("recovery", ("all_passed",), True, "broken steps and short memory are survived"),
    Goal("contracts", ("failed",), 0, "contract tests that fail"),
)  # fmt: skip
