"""Watching over the losses of a training."""

from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_invariance.errors import NonFiniteLossError

PATIENCE = 5


def is_finite(losses: Mapping[str, np.ndarray]) -> bool:
    """Whether every loss of a step is finite."""
    return all(np.isfinite(value) for value in losses.values())


class FiniteGuard:
    """Counts the steps whose loss is not finite, and stops the run after :data:`PATIENCE` of them in a row.

    Attributes:
        in_epoch: number of such steps since :meth:`start_epoch`.
    """

    def __init__(self) -> None:
        self.in_epoch = 0
        self._cases: list[Sequence[str]] = []  # of each step since the last good one

    def start_epoch(self) -> None:
        """Count from 0 again; a row of bad steps goes on across epochs."""
        self.in_epoch = 0

    def check(self, losses: Mapping[str, np.ndarray], cases: Sequence[str]) -> str | None:
        """A warning for the log, or None for a good step.

        Raises:
            NonFiniteLossError: too many bad steps in a row; names the cases of all of them.
        """
        if is_finite(losses):
            self._cases.clear()
            return None
        self.in_epoch += 1
        self._cases.append([str(case) for case in cases])
        bad = ", ".join(name for name, value in losses.items() if not np.isfinite(value))
        if len(self._cases) == PATIENCE:
            names = ", ".join(sorted({case for step in self._cases for case in step}))
            raise NonFiniteLossError(
                f"The loss ({bad}) was not finite in {PATIENCE} steps in a row, with the cases {names}. The checkpoint "
                "of the last finished epoch is kept. Look for broken values in these cases, then continue with --c."
            )
        step = f"{len(self._cases)} in a row, {PATIENCE} stop the run"
        return f"WARNING: loss not finite ({bad}); cases {', '.join(self._cases[-1])}; {step}."
