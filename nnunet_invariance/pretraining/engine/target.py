"""What is pre-trained and where it is left: the network nnU-Net planned for a dataset, or one that needs no dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import OptionError
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, arch_kwargs
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.engine.method import Method, Setup
from nnunet_invariance.weights.locate import pretraining_folder

UNIT_RANGE = {
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
    "CTWindowTo01Normalization",
    "SoftTissueWindowNormalization",
}
SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class Preset:
    """A network that is pre-trained without a dataset.

    Attributes:
        entry: ``architecture`` as in plans.
        patch_size: voxels; the batch is a pair, as in arXiv 2411.02372.
        scheme: how nnU-Net will normalise the images that the network sees later.
    """

    entry: dict[str, Any]
    patch_size: tuple[int, int, int]
    scheme: str


def _plain(features: Sequence[int], side: int) -> Preset:
    """What nnU-Net plans for isotropic images: a PlainConvUNet that halves all axes from stage to stage."""
    stages = len(features)
    kwargs = {
        "n_stages": stages,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    entry = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    return Preset(entry, (side,) * 3, "ZScoreNormalization")


_ANATOMIX = {"network_class_name": NETWORK, "arch_kwargs": arch_kwargs("anatomix"), "_kw_requires_import": []}
#: By method and name: the paper's network, and nnU-Net's own of four and six stages.
PRESETS: dict[str, dict[str, Preset]] = {
    "anatomix": {
        "anatomix": Preset(_ANATOMIX, (128, 128, 128), "RescaleTo01Normalization"),
        "plain4": _plain((32, 64, 128, 256), 48),
        "plain6": _plain((32, 64, 128, 256, 320, 320), 128),
    }
}


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
    sizes = (planned.patch_size, planned.spacing, manager.batch_size)
    setup = Setup(architecture, *sizes, unit_range, (), tuple(names))
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
    """A network that needs no dataset, for one synthetic channel.

    Raises:
        OptionError: the method has no network of that name.
    """
    known = PRESETS.get(kind.name, {})
    if network not in known:
        msg = f"--network {network}: {kind.name} pre-trains {', '.join(known) or 'no network'} without a dataset. "
        raise OptionError(f"{msg}Name one of these, or a DATASET and a CONFIGURATION.")
    preset = known[network]
    spacing, batch_size = (1.0, 1.0, 1.0), 2
    plans = {
        "architecture": preset.entry,
        "patch_size": list(preset.patch_size),
        "spacing": list(spacing),
        "batch_size": batch_size,
        "normalization_schemes": [preset.scheme],
    }
    facts = {
        "channel_names": [SYNTHETIC],
        "normalization_schemes": [preset.scheme],
        "spacing": list(spacing),
        "patch_size": list(preset.patch_size),
        "dataset_name": SYNTHETIC,
        "plans_name": network,
        "configuration": "3d_fullres",
        "data_identifier": SYNTHETIC,
        "plans": plans,
    }
    architecture = Architecture.from_plans(preset.entry, 1, 1)
    setup = Setup(architecture, preset.patch_size, spacing, batch_size, preset.scheme in UNIT_RANGE, ())
    return Target(setup, folder, f"the network {network}, without a dataset", facts)
