"""What is pre-trained and where it is left: the network nnU-Net planned for a dataset, or one that needs no dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import OptionError
from nnunet_invariance.networks.anatomix_unet import NETWORK, arch_kwargs
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.pretraining.method import Method, Setup
from nnunet_invariance.pretraining.planned_dataset import PlannedDataset
from nnunet_invariance.weights.locate import pretraining_folder

UNIT_RANGE = {"RescaleTo01Normalization", "RGBTo01Normalization"}
SYNTHETIC = "synthetic"
#: The patch and batch of arXiv 2411.02372; an element of the batch is one image, so 2 are a pair.
PRESET_PATCH, PRESET_BATCH = (128, 128, 128), 2
#: Networks that are pre-trained without a dataset, by the method that does it.
PRESETS = {"anatomix": ("anatomix",)}


@dataclass(frozen=True)
class Target:
    """One network to pre-train.

    Attributes:
        setup: for the method; without cases, which are found later.
        folder: where the run leaves its files.
        title: for the log.
        facts: what every checkpoint says of it (docs/architecture.md).
    """

    setup: Setup
    folder: Path
    title: str
    facts: dict[str, Any]


def planned_target(kind: type[Method], planned: PlannedDataset, plans_name: str) -> Target:
    """The network of one configuration. A method that reads no cases sees one synthetic channel, whatever the data."""
    manager = planned.configuration
    schemes = list(manager.normalization_schemes)
    unit_range = all(scheme in UNIT_RANGE for scheme in schemes)
    names = planned.channel_names
    if kind.reads_cases:
        channels = len(names)
    else:
        channels, names = 1, [SYNTHETIC]
        schemes = ["RescaleTo01Normalization" if unit_range else "ZScoreNormalization"]
    architecture = Architecture.from_plans(manager.configuration["architecture"], channels, channels)
    setup = Setup(architecture, planned.patch_size, planned.spacing, manager.batch_size, unit_range, ())
    facts = {
        "channel_names": names,
        "normalization_schemes": schemes,
        "spacing": list(planned.spacing),
        "patch_size": list(planned.patch_size),
        "dataset_name": planned.name,
        "plans_name": planned.plans.plans_name,
        "configuration": planned.configuration_name,
        "data_identifier": manager.data_identifier,
        "plans": manager.configuration,
    }
    folder = pretraining_folder(kind.name, planned.name, plans_name, planned.configuration_name)
    return Target(setup, folder, f"{planned.name}, {plans_name}, {planned.configuration_name}", facts)


def preset_target(kind: type[Method], network: str, folder: Path) -> Target:
    """A network that needs no dataset, at the patch and batch of its paper, on images in [0, 1].

    Raises:
        OptionError: the method has no network of that name.
    """
    known = PRESETS.get(kind.name, ())
    if network not in known:
        msg = f"--network {network}: {kind.name} pre-trains {', '.join(known) or 'no network'} without a dataset. "
        raise OptionError(f"{msg}Name one of these, or a DATASET and a CONFIGURATION.")
    spacing = (1.0,) * 3
    architecture = Architecture(NETWORK, arch_kwargs(network), (), 1, 1)
    entry = architecture.to_dict()
    schemes = ["RescaleTo01Normalization"]
    facts = {
        "channel_names": [SYNTHETIC],
        "normalization_schemes": schemes,
        "spacing": list(spacing),
        "patch_size": list(PRESET_PATCH),
        "dataset_name": SYNTHETIC,
        "plans_name": network,
        "configuration": "3d_fullres",
        "data_identifier": SYNTHETIC,
        "plans": {
            "architecture": {k: entry[k] for k in ("network_class_name", "arch_kwargs", "_kw_requires_import")},
            "patch_size": list(PRESET_PATCH),
            "spacing": list(spacing),
            "batch_size": PRESET_BATCH,
            "normalization_schemes": schemes,
        },
    }
    setup = Setup(architecture, PRESET_PATCH, spacing, PRESET_BATCH, True, ())
    return Target(setup, folder, f"the network {network}, without a dataset", facts)
