"""A data set as nnU-Net planned and preprocessed it: its files, and named errors about everything that is wrong."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_invariance.common.json_files import read_json
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
PLANS_KEYS = ("dataset_name", "plans_name", "transpose_forward", "transpose_backward", "image_reader_writer",
              "configurations")  # fmt: skip
CONFIGURATION_KEYS = ("data_identifier", "patch_size", "spacing", "normalization_schemes")
DESCRIPTIONS = {dict: "an object", str: "a text"}


@dataclass(frozen=True)
class PlannedDataset:
    """One configuration of one plans file of one dataset.

    Attributes:
        folder: where nnU-Net keeps the preprocessed cases of this configuration; may not exist yet.
        base: the dataset's folder in ``nnUNet_preprocessed``.
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
        """Names of the channels in order, as in dataset.json."""
        return channel_names_of(self.dataset_json)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing of the preprocessed cases, mm per axis in nnU-Net's (transposed) order."""
        return tuple(float(s) for s in self.configuration.spacing)

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Planned patch size in voxels."""
        return tuple(int(p) for p in self.configuration.patch_size)


def channel_names_of(dataset_json: dict[str, Any]) -> list[str]:
    """Names of the channels in order."""
    names = dataset_json.get("channel_names") or dataset_json["modality"]
    return [names[k] for k in sorted(names, key=int)]


def require_environment() -> None:
    """Raise EnvironmentNotSetError, which names all of nnU-Net's three variables that are not set."""
    missing = [variable for variable in ENVIRONMENT if not os.environ.get(variable)]
    if len(missing) == 1:
        msg = f"The environment variable {missing[0]} is not set. "
        raise EnvironmentNotSetError(f"{msg}Set it to the folder that nnU-Net uses, then try again.")
    if missing:
        msg = f"The environment variables {', '.join(missing)} are not set. "
        raise EnvironmentNotSetError(f"{msg}Set them to the folders that nnU-Net uses, then try again.")


def dataset_name_of(dataset: str) -> str:
    """The name of a dataset that is given by name or id.

    Raises:
        DatasetNotFoundError
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
    """Find a dataset by name or id and one configuration of its plans.

    Raises:
        EnvironmentNotSetError, DatasetNotFoundError, NotPreprocessedError, UnknownConfigurationError
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
    if configuration not in plans.available_configurations:
        known = ", ".join(plans.available_configurations)
        raise UnknownConfigurationError(f"{plans_file} has no configuration {configuration!r}; it has: {known}.")
    manager = _configuration(plans_file, plans, configuration)
    folder = base / manager.data_identifier
    return PlannedDataset(name, plans, configuration, manager, read_dataset_json(base / "dataset.json"), base, folder)


def read_plans(path: Path) -> PlansManager:
    """Read a plans file.

    Raises:
        DamagedFileError: it is not valid JSON, or lacks what every plans file has.
    """
    remedy = "Plan again with nnUNetv2_plan_experiment, or restore the file."
    content = read_json(path, remedy=remedy)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} holds a JSON list, expected the object of a plans file. {remedy}")
    missing = [key for key in PLANS_KEYS if key not in content]
    if missing or not isinstance(content["configurations"], dict):
        what = f"lacks {', '.join(missing)}" if missing else "has configurations that are no object"
        raise DamagedFileError(f"{path} {what}, so it is no plans file of nnU-Net v2. {remedy}")
    return PlansManager(content)


def _configuration(path: Path, plans: PlansManager, name: str) -> ConfigurationManager:
    """One configuration, with those that it inherits from.

    Raises:
        DamagedFileError: a parent or a required key is missing, or a size is no list of positive numbers.
    """
    where, remedy = f"Configuration {name!r} of {path}", "Plan again with nnUNetv2_plan_experiment."
    try:
        manager = plans.get_configuration(name)
        found = manager.configuration
        missing = [key for key in CONFIGURATION_KEYS if key not in found]
        if missing:
            raise DamagedFileError(f"{where} lacks {', '.join(missing)}. {remedy}")
        for key in ("patch_size", "spacing"):
            if not all(isinstance(n, int | float) and n > 0 for n in found[key]):
                raise DamagedFileError(f"{where}: {key} is {found[key]}, expected positive numbers. {remedy}")
    except (KeyError, RuntimeError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"{where} cannot be resolved ({type(error).__name__}: {error}). {remedy}") from error
    return manager


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read a ``dataset.json``.

    Raises:
        DamagedFileError: it is missing, not valid JSON, or lacks channel names, labels or the file ending.
    """
    remedy = "Restore it; nnU-Net's documentation of the data set format describes its keys."
    content = read_json(path, remedy=remedy)
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} holds a JSON list, expected an object. {remedy}")
    names = content.get("channel_names") or content.get("modality")
    if not isinstance(names, dict) or not names or not all(str(key).isdigit() for key in names):
        raise DamagedFileError(f'{path}: channel_names is {names!r}, expected names by number, "0" first. {remedy}')
    for key, kind in (("labels", dict), ("file_ending", str)):
        if not isinstance(content.get(key), kind):
            found = repr(content.get(key))
            raise DamagedFileError(f"{path}: {key} is {found}, expected {DESCRIPTIONS[kind]}. {remedy}")
    return content


def training_images(dataset: PlannedDataset) -> dict[str, list[Path]]:
    """Raw files, one a channel, of the training cases that nnU-Net has preprocessed, as far as they are still there."""
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
    """Refuse cascades, and dimensions, channels or networks that a method cannot do with.

    Where it needs several channels, each must have a name of its own.
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
            f"{where} has {len(found)} channel(s), {', '.join(found)}; {method} compares the modalities of one "
            f"individual and needs at least {channels}. Use a dataset with more channels; these methods accept "
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
