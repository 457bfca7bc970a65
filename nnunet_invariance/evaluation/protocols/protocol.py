"""What the protocols have in common: their settings, and the way from what one has decided to a comparison."""

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.pretrainings import bring_checkpoints
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.runner.comparison import Comparison, run_comparison
from nnunet_invariance.evaluation.runner.jobs import CaseSet
from nnunet_invariance.evaluation.runner.record import merged
from nnunet_invariance.evaluation.runner.stored import RECORD
from nnunet_invariance.evaluation.scoring.surfaces import require_monai
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset


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
        ComparisonError: ``tolerance`` is no distance, or ``slurm`` lacks a time limit or meets ``devices``.
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
            if not 0 <= self.tolerance < math.inf:
                raise ComparisonError(f"--tolerance {self.tolerance}: expected a distance in mm, 0 or more.")
            require_monai()
        if self.slurm is not None:
            _check_slurm(self.slurm, self.devices)

    def folder(self, protocol: str, planned: PlannedDataset) -> Path:
        """Where the comparison lies."""
        results = Path(os.environ["nnUNet_results"]) / planned.name
        name = f"{protocol}__{planned.plans.plans_name}__{planned.configuration_name}"
        return (self.out or results / "evaluation" / name).resolve()


def _check_slurm(slurm: Mapping[str, str | int], devices: Sequence[str]) -> None:
    if not {"timeout_min", "slurm_time"} & slurm.keys():
        msg = "--submit without a time limit: submitit would ask for 5 minutes, after which Slurm ends a training. "
        raise ComparisonError(f"{msg}Give one with --slurm timeout_min=MINUTES.")
    if devices:
        msg = f"--devices {' '.join(devices)} deals out the GPUs of this machine, and --submit runs nothing on it. "
        raise ComparisonError(f"{msg}Leave one of them out.")


def run_protocol(
    protocol: str,
    planned: PlannedDataset,
    selection: Selection,
    settings: ProtocolSettings,
    subsets: Sequence[Subset],
    tests: Callable[[], Sequence[CaseSet]],
    names: Collection[str],
    elsewhere: Collection[str] = (),
) -> Path:
    """Bring the weights of the comparison that a protocol has decided on, and run it.

    Args:
        tests: makes the test sets; may write images into the comparison's folder.
        names: test cases of this data set; ``elsewhere``: of others.
    """
    out, slurm = settings.folder(protocol, planned), settings.slurm
    comparison = Comparison(
        protocol,
        planned,
        selection.arms,
        subsets,
        (),
        {},
        settings.seed,
        settings.device,
        settings.mirroring,
        settings.tolerance,
        selection.contrasts,
        selection.left_out,
    )
    if (out / RECORD).is_file():  # another comparison is refused before hours of pre-training
        comparison = replace(comparison, tests=tests())
        merged(out / RECORD, comparison.describe())
    checkpoints, seen = bring_checkpoints(
        planned,
        selection.arms,
        names,
        out,
        settings.device,
        settings.pretraining,
        transductive=settings.transductive,
        here=slurm is None,
        elsewhere=elsewhere,
    )
    comparison = replace(comparison, tests=comparison.tests or tests(), checkpoints=checkpoints, transductive=seen)
    return run_comparison(comparison, out, parallel=settings.parallel, devices=settings.devices, slurm=slurm)
