"""Training a modality transfer on the one loop, with the scales of the modalities beside it."""

import os
from collections.abc import Sequence
from pathlib import Path

from nnunet_invariance.evaluation.cases import labelled_cases
from nnunet_invariance.modality_transfer.intensities import measure_intensities, write_intensities
from nnunet_invariance.pretraining.planned_dataset import PlannedDataset, require_supported
from nnunet_invariance.pretraining.puir_transfer import PUIRTransfer
from nnunet_invariance.pretraining.run import run_pretraining


def train(planned: PlannedDataset, device: str = "cuda", resume: bool = False, settings: Sequence[str] = ()) -> Path:
    """Train on the preprocessed cases; returns the checkpoint, with the modalities' intensities beside it.

    Raises:
        InvarianceError: one of its kinds, see ``run_pretraining`` and ``measure_intensities``.
    """
    require_supported(planned, "modality transfer", PUIRTransfer.dimensions, PUIRTransfer.minimum_channels)
    raw = Path(os.environ["nnUNet_raw"]) / planned.name
    cases = labelled_cases(raw, planned.dataset_json)
    preprocessed = {path.stem for path in planned.folder.glob("*.pkl")}
    intensities = measure_intensities(planned, [case for name, case in cases.items() if name in preprocessed])
    names = (planned.name, planned.configuration_name, planned.plans.plans_name)
    path = run_pretraining(PUIRTransfer.name, *names, device=device, resume=resume, settings=settings)
    write_intensities(path.parent, intensities)
    return path
