"""What the protocols have in common: their settings, and the way from what one has decided to a comparison."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet_invariance.evaluation.arms import Selection
from nnunet_invariance.evaluation.comparison import Comparison, run_comparison
from nnunet_invariance.evaluation.jobs import CaseSet
from nnunet_invariance.evaluation.splits import Subset
from nnunet_invariance.evaluation.surfaces import require_monai
from nnunet_invariance.pretraining.planned_dataset import PlannedDataset


@dataclass(frozen=True)
class ProtocolSettings:
    """How a protocol is run, whichever it is.

    Attributes:
        shots: numbers of training cases, in the order in which to run them; "all": every case that is free.
        draws: independent draws of the training cases.
        n_val: validation cases beside them.
        mirroring: test-time augmentation by mirroring.
        tolerance: of NSD, in mm; None computes Dice alone.
        pretraining: settings for missing pre-trainings, which are then made without the test cases; None makes none.
        transductive: allow test cases that a pre-training has seen.
        out: folder of the comparison; None: below the results of the dataset, named after protocol and plans.
        parallel, devices, slurm: see ``run_comparison``.

    Raises:
        MissingPackageError: ``tolerance`` is given without monai.
    """

    shots: Sequence[int | Literal["all"]] = ("all",)
    draws: int = 1
    n_val: int = 2
    seed: int = 0
    device: str = "cuda"
    mirroring: bool = True
    tolerance: float | None = None
    pretraining: Sequence[str] | None = None
    transductive: bool = False
    out: Path | None = None
    parallel: int = 1
    devices: Sequence[str] = ()
    slurm: Mapping[str, str | int] | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None:
            require_monai()

    def folder(self, protocol: str, planned: PlannedDataset) -> Path:
        """Where the comparison lies."""
        results = Path(os.environ["nnUNet_results"]) / planned.name
        name = f"{protocol}__{planned.plans.plans_name}__{planned.configuration_name}"
        return (self.out or results / "evaluation" / name).resolve()


def run_protocol(
    protocol: str,
    planned: PlannedDataset,
    selection: Selection,
    settings: ProtocolSettings,
    subsets: Sequence[Subset],
    tests: Sequence[CaseSet],
    checkpoints: Mapping[str, Path],
    seen: Collection[str],
) -> Path:
    """The comparison that a protocol has decided on; ``seen``: test images that a pre-training has seen."""
    comparison = Comparison(
        protocol,
        planned,
        selection.arms,
        subsets,
        tests,
        checkpoints,
        settings.seed,
        settings.device,
        settings.mirroring,
        settings.tolerance,
        selection.contrasts,
        selection.left_out,
        seen,
    )
    out, slurm = settings.folder(protocol, planned), settings.slurm
    return run_comparison(comparison, out, parallel=settings.parallel, devices=settings.devices, slurm=slurm)
