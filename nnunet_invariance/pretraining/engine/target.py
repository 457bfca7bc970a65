"""The network that is pre-trained and its output folder: nnU-Net's planned network, or one that needs no data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import OptionError
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.pretraining.engine.method import Method, Setup
from nnunet_invariance.registry import MethodEntry
from nnunet_invariance.weights.locate import pretraining_folder

#: Normalisation schemes that scale images to [0, 1].
UNIT_RANGE = {
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "CTWindowTo01Normalization",
    "SoftTissueWindowNormalization",
}
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Target:
    """One network to pre-train.

    Attributes:
        setup: for the method; its cases are found later.
        folder: output folder of the run.
        title: for the log.
        facts: metadata of every checkpoint (docs/architecture.md).
    """

    setup: Setup
    folder: Path
    title: str
    facts: dict[str, Any]


def run_folder(method: str, dataset: str, configuration: str, plans: str) -> Path:
    """The folder of the pre-training of a planned network; ``dataset`` is a name or an id."""
    planned = open_planned_dataset(dataset, configuration, plans)
    return pretraining_folder(method, planned.name, planned.plans.plans_name, planned.configuration_name)


def planned_target(kind: type[Method], entry: MethodEntry, planned: PlannedDataset) -> Target:
    """The planned network of one configuration; a method that reads no cases gets one synthetic channel."""
    manager = planned.configuration
    schemes = list(manager.normalization_schemes)
    unit_range = all(scheme in UNIT_RANGE for scheme in schemes)
    names = planned.channel_names
    if entry.reads_cases:
        channels = len(names)
    else:
        channels, names = 1, [SYNTHETIC]
        schemes = ["RescaleTo01Normalization" if unit_range else "ZScoreNormalization"]
    architecture = Architecture.from_plans(manager.configuration["architecture"], channels, channels)
    sizes = (planned.patch_size, planned.spacing, manager.batch_size)
    setup = Setup(architecture, *sizes, unit_range, (), tuple(names))
    plans_name = planned.plans.plans_name
    facts = {
        "channel_names": names,
        "normalization_schemes": schemes,
        "spacing": list(planned.spacing),
        "patch_size": list(planned.patch_size),
        "dataset_name": planned.name,
        "plans_name": plans_name,
        "configuration": planned.configuration_name,
        "data_identifier": manager.data_identifier,
        "plans": manager.configuration,
    }
    folder = pretraining_folder(kind.name, planned.name, plans_name, planned.configuration_name)
    return Target(setup, folder, f"{planned.name}, {plans_name}, {planned.configuration_name}", facts)


def preset_target(kind: type[Method], network: str, folder: Path) -> Target:
    """A network that needs no data set, for one synthetic channel.

    Raises:
        OptionError: the method has no network of that name.
    """
    if network not in kind.network_presets:
        known = ", ".join(kind.network_presets) or "no network"
        msg = f"--network {network}: {kind.name} pre-trains {known} without a dataset. "
        raise OptionError(f"{msg}Name one of these, or a DATASET and a CONFIGURATION.")
    preset = kind.network_presets[network]
    scheme, spacing = preset.normalization_scheme, (1.0, 1.0, 1.0)
    plans = {
        "architecture": dict(preset.architecture),
        "patch_size": list(preset.patch_size),
        "spacing": list(spacing),
        "batch_size": preset.batch_size,
        "normalization_schemes": [scheme],
    }
    facts = {
        "channel_names": [SYNTHETIC],
        "normalization_schemes": [scheme],
        "spacing": list(spacing),
        "patch_size": list(preset.patch_size),
        "dataset_name": SYNTHETIC,
        "plans_name": network,
        "configuration": "3d_fullres",
        "data_identifier": SYNTHETIC,
        "plans": plans,
    }
    architecture = Architecture.from_plans(dict(preset.architecture), 1, 1)
    setup = Setup(architecture, preset.patch_size, spacing, preset.batch_size, scheme in UNIT_RANGE, ())
    return Target(setup, folder, f"the network {network}, without a dataset", facts)
