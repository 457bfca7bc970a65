"""Files of a dataset that nnU-Net planned and preprocessed, with named errors for missing or damaged files."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.common.json_forms import Objects, difference
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import (
    DamagedFileError,
    DatasetNotFoundError,
    EnvironmentNotSetError,
    NotPreprocessedError,
    UnknownConfigurationError,
    UnsupportedConfigurationError,
)
from nnunet_invariance.networks.architectures.nnformer import NNFORMER, check_patch
from nnunet_invariance.registry import PLANNED_NETWORKS, pretrain_methods

ENVIRONMENT = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
#: Form of a plans file, and of a configuration with all that it inherits.
PLANS_FORM = {
    "dataset_name": str,
    "plans_name": str,
    "transpose_forward": [int],
    "transpose_backward": [int],
    "image_reader_writer": str,
    "configurations": Objects(dict),
}
CONFIGURATION_FORM = {
    "data_identifier": str,
    "batch_size": int,
    "patch_size": [int],
    "spacing": [float],
    "normalization_schemes": [str],
    "architecture": {"network_class_name": str, "arch_kwargs": dict, "_kw_requires_import": [str]},
}


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset with one plans file and one of its configurations; see :func:`open_planned_dataset`.

    Attributes:
        base: folder of the dataset in ``nnUNet_preprocessed``.
        folder: folder with the preprocessed cases of this configuration; it may not exist yet.
    """

    name: str
    plans: PlansManager
    configuration_name: str
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    base: Path
    folder: Path

    @property
    def channel_names(self) -> list[str]:
        """Channel names from dataset.json, in channel order."""
        return channel_names_of(self.dataset_json)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing of the preprocessed cases, in mm per axis, in nnU-Net's transposed axis order."""
        return tuple(float(s) for s in self.configuration.spacing)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Planned patch size in voxels."""
        return tuple(int(p) for p in self.configuration.patch_size)


def channel_names_of(dataset_json: dict[str, Any]) -> list[str]:
    """Channel names in channel order.

    >>> channel_names_of({"channel_names": {"1": "T2", "0": "T1"}})
    ['T1', 'T2']
    """
    names = dataset_json.get("channel_names") or dataset_json["modality"]
    return [names[k] for k in sorted(names, key=int)]


def require_environment() -> None:
    """Check that nnU-Net's three environment variables are set.

    Raises:
        EnvironmentNotSetError: at least one is not set; the message names all of them.
    """
    missing = [variable for variable in ENVIRONMENT if not os.environ.get(variable)]
    if len(missing) == 1:
        msg = f"The environment variable {missing[0]} is not set. "
        raise EnvironmentNotSetError(f"{msg}Set it to the folder that nnU-Net uses, then try again.")
    if missing:
        msg = f"The environment variables {', '.join(missing)} are not set. "
        raise EnvironmentNotSetError(f"{msg}Set them to the folders that nnU-Net uses, then try again.")


def dataset_name_of(dataset: str) -> str:
    """Full name of a dataset that is given by name or id.

    Raises:
        DatasetNotFoundError: no such dataset, or the argument is a path.
    """
    if Path(dataset).name != dataset:
        msg = f"Dataset {dataset!r} is a path; expected a name such as Dataset004_Hippocampus, or an id. "
        raise DatasetNotFoundError(msg + "Give the name of its folder in nnUNet_raw.")
    try:
        return maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except RuntimeError as error:
        msg = f"Dataset {dataset!r} was not found: {error} "
        remedy = "Check the id and the folders in nnUNet_raw and nnUNet_preprocessed."
        raise DatasetNotFoundError(msg + remedy) from error


def open_planned_dataset(dataset: str, configuration: str, plans_name: str = "nnUNetPlans") -> PlannedDataset:
    """Open one configuration of a planned dataset.

    Args:
        dataset: name or id of the dataset.
        configuration: name of the configuration, for example ``3d_fullres``.
        plans_name: plans identifier.

    Raises:
        EnvironmentNotSetError: an environment variable of nnU-Net is not set.
        DatasetNotFoundError: no such dataset.
        NotPreprocessedError: the plans file does not exist.
        UnknownConfigurationError: the plans have no such configuration.
        DamagedFileError: the plans file or dataset.json is damaged.
    """
    require_environment()
    name = dataset_name_of(dataset)
    base = Path(os.environ["nnUNet_preprocessed"]) / name
    plans_file = base / f"{plans_name}.json"
    if not plans_file.is_file():
        found = sorted(
            p.stem for p in base.glob("*.json") if p.stem not in {"dataset", "dataset_fingerprint", "splits_final"}
        )
        remedy = f"Run `nnUNetv2_plan_and_preprocess -d {dataset} -c {configuration}` or give one of its plans with -p."
        raise NotPreprocessedError(
            f"Plans file {plans_file} does not exist; found there: {found or 'no plans'}. {remedy}"
        )
    plans = read_plans(plans_file)
    manager = resolve_configuration(plans_file, plans, configuration)
    folder = base / manager.data_identifier
    return PlannedDataset(name, plans, configuration, manager, read_dataset_json(base / "dataset.json"), base, folder)


def read_plans(path: Path) -> PlansManager:
    """Read a plans file.

    Raises:
        DamagedFileError: the file is not valid JSON or lacks a required key.
    """
    remedy = "Plan again with nnUNetv2_plan_experiment, or restore the file."
    return PlansManager(read_json(path, remedy=remedy, form=PLANS_FORM))


def resolve_configuration(path: Path, plans: PlansManager, name: str) -> ConfigurationManager:
    """Resolve a configuration, including the configurations that it inherits from.

    Raises:
        UnknownConfigurationError: the plans have no such configuration.
        DamagedFileError: a parent or required key is missing, or patch size or spacing are not positive numbers.
    """
    if name not in plans.available_configurations:
        known = ", ".join(plans.available_configurations)
        raise UnknownConfigurationError(f"{path} has no configuration {name!r}; it has: {known}.")
    where, remedy = f"Configuration {name!r} of {path}", "Plan again with nnUNetv2_plan_experiment."
    try:
        manager = plans.get_configuration(name)
        found = manager.configuration
        if wrong := difference(found, CONFIGURATION_FORM):
            raise DamagedFileError(f"{where} does not have the expected content: {wrong}. {remedy}")
        for key in ("patch_size", "spacing"):
            if not all(n > 0 for n in found[key]):
                raise DamagedFileError(f"{where}: {key} is {found[key]}, expected positive numbers. {remedy}")
    except (KeyError, RuntimeError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{where} cannot be resolved ({type(error).__name__}: {error}). {remedy}") from error
    return manager


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read a ``dataset.json``.

    Raises:
        DamagedFileError: the file is missing, is not valid JSON, or lacks channel names, labels or the file ending.
    """
    remedy = "Restore it; nnU-Net's documentation of the dataset format describes its keys."
    content = read_json(path, remedy=remedy, form={"labels": dict, "file_ending": str})
    names = content.get("channel_names") or content.get("modality")
    if not isinstance(names, dict) or not names or not all(str(key).isdigit() for key in names):
        raise DamagedFileError(f'{path}: channel_names is {names!r}, expected names by number, "0" first. {remedy}')
    if found := difference(names, Objects(str)) or difference(content["labels"], Objects((int, list))):
        raise DamagedFileError(f"{path} does not have the expected content: {found}. {remedy}")
    return content


def training_images(dataset: PlannedDataset) -> dict[str, list[Path]]:
    """Raw image files (one per channel) of each preprocessed training case; cases with a missing file are left out."""
    raw = Path(os.environ["nnUNet_raw"]) / dataset.name
    if "dataset" not in dataset.dataset_json and not (raw / "imagesTr").is_dir():
        return {}
    listed = get_filenames_of_train_images_and_targets(str(raw), dataset.dataset_json)
    files = {name: [Path(path) for path in case["images"]] for name, case in listed.items()}
    preprocessed = {path.stem for path in dataset.folder.glob("*.pkl")}
    return {name: paths for name, paths in files.items() if name in preprocessed and all(p.is_file() for p in paths)}


def require_supported(
    dataset: PlannedDataset,
    method: str,
    dimensions: tuple[int, ...],
    channels: int = 1,
    networks: tuple[str, ...] = PLANNED_NETWORKS,
) -> None:
    """Check that a method supports the configuration.

    Args:
        dataset: dataset and configuration.
        method: name of the method for the error message.
        dimensions: supported numbers of spatial dimensions.
        channels: minimum number of channels; if it is above 1, the channel names must be unique.
        networks: supported network classes.

    Raises:
        UnsupportedConfigurationError: the configuration is a cascade stage, or fails one of these checks.
    """
    where = f"Configuration {dataset.configuration_name!r} of {dataset.name}"
    if dataset.configuration.previous_stage_name is not None:
        msg = f"{where} is the second stage of a cascade, which no method supports. Use 3d_fullres or 3d_lowres."
        raise UnsupportedConfigurationError(msg)
    dim = len(dataset.patch_size)
    if dim not in dimensions:
        wanted = " or ".join(f"{d}-D" for d in dimensions)
        msg = f"{where} is {dim}-D, but {method} needs {wanted} plans. Use 3d_fullres or 3d_lowres."
        raise UnsupportedConfigurationError(msg)
    found = dataset.channel_names
    if len(found) < channels:
        others = [name for name, entry in pretrain_methods().items() if entry.least_channels <= len(found)]
        msg = (
            f"{where} has {counted(len(found), 'channel')}, {', '.join(found)}; {method} compares the modalities of "
            f"one individual and needs at least {channels}. Use a dataset with more channels; these methods accept "
            f"{len(found)}: {', '.join(others)}."
        )
        raise UnsupportedConfigurationError(msg)
    if channels > 1 and len(set(found)) < len(found):
        msg = f"{where} has the channels {', '.join(found)}, but {method} knows modalities by name. "
        raise UnsupportedConfigurationError(f"{msg}Give each channel its own name in {dataset.base / 'dataset.json'}.")
    architecture = dataset.configuration.network_arch_class_name.rsplit(".", 1)[-1]
    if architecture not in networks:
        msg = (
            f"{where} names the network {architecture}, but {method} takes {', '.join(networks[:-1])} and "
            f"{networks[-1]}. Plan with nnU-Net's default or a ResEnc planner, and give those plans with -p."
        )
        raise UnsupportedConfigurationError(msg)
    if architecture == NNFORMER:
        check_patch(dataset.patch_size)
