"""Interface of a measurement that accompanies a run and does not change it."""

from typing import Protocol

from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.engine.method import Method


class Monitor(Protocol):
    """Measures the network at the start, after every ``every``-th epoch and after the last one, on the first rank.

    It must not use the global random generators: the run would differ from the one without it.
    """

    every: int

    def start(self, planned: PlannedDataset, method: Method, device: str) -> None:
        """Read what is needed; called before any file is written, so that an error leaves an earlier run in place."""

    def measure(self, method: Method) -> dict[str, float]:
        """Values by name, which become columns of ``metrics.csv``; the method is in evaluation mode on the device."""
