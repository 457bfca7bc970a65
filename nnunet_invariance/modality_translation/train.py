"""Train a modality translator with the pre-training loop, and write the intensity scales beside the checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import DatasetNotFoundError
from nnunet_invariance.modality_translation.intensities import measure_intensities, write_intensities
from nnunet_invariance.modality_translation.translator import require_translatable
from nnunet_invariance.nnunet.grids import check_training_grids
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, training_images
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.engine.run import pretrain
from nnunet_invariance.pretraining.methods.puir_translation import SCRATCH, PUIRTranslation, find_initial_weights
from nnunet_invariance.weights.locate import pretraining_folder


def train_translator(
    planned: PlannedDataset,
    device: str = "cuda",
    resume: bool = False,
    initial_weights: str = "",
    options: Mapping[str, Any] | None = None,
    loop: LoopOptions | None = None,
    tensorboard: bool = False,
    command: str = "",
) -> Path:
    """Train a modality translator on the preprocessed cases of a dataset.

    Args:
        planned: dataset and configuration.
        device: ``"cuda"``, ``"cpu"`` or ``"mps"``.
        resume: continue the last run.
        initial_weights: checkpoint of ``pretrain puir``; "" uses that of the same plans, "none" random weights.
        options: fields of :class:`PUIRTranslationOptions` that differ from the defaults.
        loop: options of the training loop.
        tensorboard: also write the curves for TensorBoard.
        command: the command line of the run, for its log and ``run.json``.

    Returns:
        Path of the checkpoint; the intensity scales are in the same folder.

    Raises:
        DatasetNotFoundError: the raw training images were not found.
        InvarianceError: any error of ``pretrain`` or ``measure_intensities``.
    """
    require_translatable(planned)
    names = (planned.name, planned.plans.plans_name, planned.configuration_name)
    if not resume and initial_weights != SCRATCH:
        find_initial_weights(pretraining_folder(PUIRTranslation.name, *names), initial_weights)
    if not (images := training_images(planned)):
        msg = f"No preprocessed case of {planned.name} has images in nnUNet_raw; intensities are measured on them. "
        raise DatasetNotFoundError(f"{msg}Set nnUNet_raw to the folder that contains them, or preprocess the dataset.")
    check_training_grids(planned)
    intensities = measure_intensities(planned, list(images.values()))
    name, plans_name, configuration = names
    changes = {**(options or {}), "initial_weights": initial_weights}
    run: dict[str, Any] = {"device": device, "loop": loop, "resume": resume, "tensorboard": tensorboard}
    path = pretrain(PUIRTranslation.name, name, configuration, plans_name, options=changes, command=command, **run)
    write_intensities(path.parent, intensities)
    return path
