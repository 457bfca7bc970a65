"""The metrics of a comparison: their titles, the range of their values and which direction is better."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One metric of a predicted class.

    Attributes:
        name: column of ``scores.csv``.
        title: the name in tables and figures, with the unit.
        low, high: range of the values; no interval of a mean leaves it.
        larger_is_better: False for distances.

    >>> METRICS["dice"].bounds, METRICS["dice"].difference_bounds
    ((0.0, 1.0), (-1.0, 1.0))
    """

    name: str
    title: str
    low: float = 0.0
    high: float = 1.0
    larger_is_better: bool = True

    @property
    def bounds(self) -> tuple[float, float]:
        """Range of a mean."""
        return self.low, self.high

    @property
    def difference_bounds(self) -> tuple[float, float]:
        """Range of a difference of two means."""
        return self.low - self.high, self.high - self.low

    @property
    def sign(self) -> int:
        """1 where larger values are better, else -1."""
        return 1 if self.larger_is_better else -1


METRICS = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice"),
        Metric("nsd", "NSD"),
        Metric("hd95", "HD95 (mm)", high=math.inf, larger_is_better=False),
    )
}
