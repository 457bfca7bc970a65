"""Plans for an anatomix U-Net: as the network, or with its frozen features in front of the planned network."""

from collections.abc import Sequence
from typing import Any

from nnunetv2.configuration import ANISO_THRESHOLD

from nnunet_invariance.errors import OptionError, UnsupportedConfigurationError
from nnunet_invariance.networks.architectures.anatomix_unet import NETWORK, arch_kwargs, fitting_patch
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.plans.copies import FittedPlans, write_plans_copy
from nnunet_invariance.weights.checkpoint import Checkpoint
from nnunet_invariance.weights.trusted_architecture import trusted_architecture

RESCALE, CT, WINDOW = "RescaleTo01Normalization", "CTNormalization", "CTWindowTo01Normalization"
#: Normalisations to [0, 1].
TO_01 = (RESCALE, WINDOW, "RGBTo01Normalization")


def holds_anatomix(checkpoint: Checkpoint) -> bool:
    """Return whether the network in a checkpoint is an anatomix U-Net and not a planned network."""
    return checkpoint.metadata["architecture"]["network_class_name"] == NETWORK


def fit_anatomix(
    dataset: PlannedDataset, checkpoint: Checkpoint, new_plans_name: str | None, frozen_features: bool
) -> FittedPlans:
    """Write a plans copy for an anatomix U-Net: images in [0, 1], and a patch whose sizes its strides divide.

    Channels with CT normalisation are clipped to a window first. Spacing and batch size stay as planned.

    Args:
        new_plans_name: default ``<base>_anatomix``, or ``<base>_anatomix_features``.
        frozen_features: keep the planned network, with the frozen features in front of it.

    Raises:
        UnsupportedConfigurationError: the configuration is not 3-D.
        OptionError: frozen features of a network with several input channels.
        OutputError, WeightsIncompatibleError, CheckpointCorruptError
    """
    before = dataset.configuration.configuration
    architecture = trusted_architecture(checkpoint)
    variant = architecture.arch_kwargs["variant"]
    if len(dataset.patch_size) != 3:
        msg = f"{dataset.configuration_name} of {dataset.name} is {len(dataset.patch_size)}-D, anatomix U-Nets are 3-D."
        raise UnsupportedConfigurationError(f"{msg} Choose a 3-D configuration with -c.")
    if frozen_features and architecture.input_channels != 1:
        msg = f"{checkpoint.path} has {architecture.input_channels} input channels, but frozen features need a network "
        raise OptionError(f"{msg}with one. Choose another checkpoint, or remove --frozen-features.")
    schemes = [to_01(scheme) for scheme in before["normalization_schemes"]]
    changes: dict[str, Any] = {
        "patch_size": fitting_patch(dataset.patch_size, variant),
        "normalization_schemes": schemes,
        "use_mask_for_norm": [False] * len(schemes),
    }
    block = {"checkpoint": str(checkpoint.path.absolute()), "branch": "student"}
    if frozen_features:
        block["features"] = variant
        _check_strides(changes["patch_size"], before)
    else:
        arguments = {**arch_kwargs(variant), "channels": architecture.arch_kwargs["channels"]}
        changes["architecture"] = {
            "network_class_name": NETWORK,
            "arch_kwargs": arguments,
            "_kw_requires_import": [],
        }
    name = new_plans_name or f"{dataset.plans.plans_name}_anatomix{'_features' if frozen_features else ''}"
    path = write_plans_copy(dataset.name, dataset.plans.plans_name, name, dataset.configuration_name, block, changes)
    decisions = _decisions(dataset, changes, variant, frozen_features)
    trainer = "MaskGenTrainer" if frozen_features else "AnatomixTrainer"
    return FittedPlans(path, (*decisions, f"plans copy: {path}"), trainer)


def to_01(scheme: str) -> str:
    """Return the normalisation to [0, 1] that replaces another one.

    >>> to_01("CTNormalization"), to_01("ZScoreNormalization")
    ('CTWindowTo01Normalization', 'RescaleTo01Normalization')
    """
    if scheme in TO_01:
        return scheme
    return WINDOW if scheme == CT else RESCALE


def _check_strides(patch: Sequence[int], configuration: dict[str, Any]) -> None:
    """Refuse a new patch that the strides of the planned network do not divide."""
    deepest = [1] * len(patch)
    for stride in configuration["architecture"]["arch_kwargs"]["strides"]:
        deepest = [d * int(s) for d, s in zip(deepest, stride, strict=True)]
    if any(size % stride for size, stride in zip(patch, deepest, strict=True)):
        raise UnsupportedConfigurationError(
            f"The features need the patch {list(patch)}, which is no multiple of the planned network's strides "
            f"{deepest}. Choose plans whose patch fits both, or remove --frozen-features."
        )


def _decisions(dataset: PlannedDataset, changes: dict[str, Any], variant: str, frozen: bool) -> list[str]:
    plans = dataset.configuration.configuration
    network = f"the planned one with frozen features of {variant!r}" if frozen else f"the anatomix U-Net {variant!r}"
    lines = [f"network: {network}"]
    for key in ("patch_size", "normalization_schemes"):
        same = list(changes[key]) == list(plans[key])
        lines.append(f"{key}: {changes[key]}, " + ("as planned" if same else f"the plans had {plans[key]}"))
    lines.append(f"spacing (mm) {list(dataset.spacing)} and batch size {plans['batch_size']}: as planned")
    if max(dataset.spacing) > ANISO_THRESHOLD * min(dataset.spacing):
        lines.append("WARNING: the weights were trained on isotropic voxels, and this network pools all axes equally")
    return lines
