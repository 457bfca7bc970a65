"""Open the folder of a trained model without running code that a file in it names."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunet_invariance.common.json_forms import difference
from nnunet_invariance.errors import CheckpointCorruptError, UnsupportedConfigurationError, WeightsNotFoundError
from nnunet_invariance.networks.planned import PlannedModule
from nnunet_invariance.nnunet.missing_files import accept_missing_channels
from nnunet_invariance.nnunet.planned_dataset import read_dataset_json, read_plans, resolve_configuration
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.trusted_architecture import architecture_of

CHECKPOINT = "checkpoint_final.pth"
PLANS, DATASET = "plans.json", "dataset.json"
#: What prediction reads of nnU-Net's checkpoint.
FORM = {"trainer_name": str, "init_args": {"configuration": str}, "network_weights": dict}

PredictorType = TypeVar("PredictorType", bound=nnUNetPredictor)


def open_model(
    predictor: PredictorType, folder: Path, folds: Sequence[str] = (), checkpoint: str = CHECKPOINT
) -> PredictorType:
    """Load the folds of a trained model into a predictor that accepts missing files, and return the predictor.

    nnU-Net's own loader unpickles the checkpoints, and calls the network class that the plans name. This one opens them
    with :func:`.open_foreign`, and the network must be one that :func:`.architecture_of` knows.

    Args:
        predictor: nnU-Net's predictor, or one that is derived from it.
        folder: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.
        folds: numbers of the folds, or "all"; default: every fold that has the checkpoint.
        checkpoint: name of the file in the folder of a fold.

    Raises:
        WeightsNotFoundError: the folder is not that of a trained model, or a fold has no such checkpoint.
        UnsafeCheckpointError: a checkpoint would run code.
        CheckpointCorruptError: a checkpoint is damaged, or is not one of a trained model.
        DamagedFileError: plans.json or dataset.json is damaged.
        WeightsIncompatibleError, UnsupportedConfigurationError: the network or the trainer is not known here.
    """
    for name in (PLANS, DATASET):
        if not (folder / name).is_file():
            raise WeightsNotFoundError(
                f"{folder} has no {name}; expected the folder of a trained model, which is "
                "nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION. Check the spelling of the path."
            )
    files = checkpoint_files(folder, folds, checkpoint)
    plans, dataset_json = read_plans(folder / PLANS), read_dataset_json(folder / DATASET)
    opened = [read_checkpoint(file) for file in files.values()]
    first, file = opened[0], next(iter(files.values()))
    configuration = resolve_configuration(folder / PLANS, plans, first["init_args"]["configuration"])
    trainer = _trainer(file, first["trainer_name"])
    network = _network(folder, trainer, plans, configuration, dataset_json)
    weights = [content["network_weights"] for content in opened]
    for path, values in reversed(list(zip(files.values(), weights, strict=True))):  # the network keeps the first fold
        _fill(path, network, values)
    axes = first.get("inference_allowed_mirroring_axes")
    predictor.manual_initialization(network, plans, configuration, weights, dataset_json, first["trainer_name"], axes)
    accept_missing_channels(configuration.configuration)
    return predictor


def checkpoint_files(folder: Path, folds: Sequence[str] = (), checkpoint: str = CHECKPOINT) -> dict[str, Path]:
    """Files of the checkpoint by fold: of the given folds, or of every fold that has it.

    Raises:
        WeightsNotFoundError: a fold, or every fold, has no such checkpoint.
    """
    present = {p.parent.name.removeprefix("fold_"): p for p in sorted(folder.glob(f"fold_*/{checkpoint}"))}
    missing = [fold for fold in folds if str(fold) not in present]
    if missing or not present:
        what = f"the folds {', '.join(map(str, missing))} of {folder}" if missing else str(folder)
        raise WeightsNotFoundError(
            f"There is no {checkpoint} in {what}; folds with this file: {', '.join(present) or 'none'}. Train the "
            "fold to the end, or name another checkpoint."
        )
    return {str(fold): present[str(fold)] for fold in folds or present}


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Content of a checkpoint that nnU-Net wrote.

    Raises:
        UnsafeCheckpointError, CheckpointCorruptError: see :func:`open_model`.
    """
    content = open_foreign(file)
    found = difference(content, FORM)
    if not found and not all(isinstance(value, Tensor) for value in content["network_weights"].values()):
        found = "network_weights has a value that is no tensor"
    if found:
        raise CheckpointCorruptError(f"{file} is not a checkpoint of a trained model: {found}. Name another file.")
    return content


def _trainer(file: Path, name: str) -> type[nnUNetTrainer]:
    """The trainer's class, which knows how to build the network."""
    try:
        found = recursive_find_trainer_class_by_name(name)
    except (RuntimeError, TypeError, AssertionError):  # nothing of this name, or something else than a trainer
        found = None
    if not (isinstance(found, type) and issubclass(found, nnUNetTrainer)):
        raise UnsupportedConfigurationError(
            f"{file} was written by the trainer {name!r}, which is not installed. Install the package that has it, or "
            "set nnUNet_extTrainer to its folder."
        )
    trainer: Any = found
    if "plans_manager" not in inspect.signature(trainer.build_network_architecture).parameters:
        raise UnsupportedConfigurationError(
            f"The trainer {name} builds its network as nnU-Net before 2.8 did. Predict with "
            "nnUNetv2_predict_from_modelfolder, which still accepts it."
        )
    return trainer


def _network(
    folder: Path,
    trainer: type[nnUNetTrainer],
    plans: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
) -> PlannedModule:
    """The trainer's network, if the plans name one that our code may build."""
    channels = determine_num_input_channels(plans, configuration, dataset_json)
    classes = plans.get_label_manager(dataset_json).num_segmentation_heads
    architecture_of(folder / PLANS, configuration.configuration["architecture"], channels, classes)
    return trainer.build_network_architecture(plans, configuration, channels, classes, enable_deep_supervision=False)


def _fill(file: Path, network: PlannedModule, weights: dict[str, Tensor]) -> None:
    """Load the weights of a fold."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise CheckpointCorruptError(
            f"{file} does not fit the network of plans.json ({first}). Restore both files of the trained model."
        ) from error
