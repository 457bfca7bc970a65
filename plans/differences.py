"""Differences between the network in a checkpoint and the network in plans, in words."""

from collections.abc import Mapping
from typing import Any

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.planned import cumulative_strides
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.weights.checkpoint import Checkpoint
from nnunet_invariance.weights.trusted_architecture import trusted_architecture

#: Arguments of nnU-Net's networks that decide the shapes of the encoder: with one value per stage, and with one value.
PER_STAGE = ("features_per_stage", "n_conv_per_stage", "n_blocks_per_stage")
SINGLE = ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs")


def check_dimensions(checkpoint: Checkpoint, dataset: PlannedDataset) -> None:
    """Refuse a file whose network no trainer can use, or has another number of spatial dimensions than the plans.

    Raises:
        WeightsIncompatibleError
    """
    architecture = trusted_architecture(checkpoint)
    if "strides" not in architecture.arch_kwargs:  # a network without a decoder
        msg = f"{checkpoint.path} contains a {network_name(architecture.to_dict())}, which our trainers cannot use. "
        raise WeightsIncompatibleError(msg + "Pre-train the planned network, or give a checkpoint of another network.")
    found = len(cumulative_strides(architecture.arch_kwargs["strides"])[-1])
    expected = len(dataset.patch_size)
    if found != expected:
        raise misfit(checkpoint, dataset, [f"dimensions: {found}-D in the file, {expected}-D in the plans"])


def network_name(architecture: Mapping[str, Any]) -> str:
    """Name of the network class in plans or in the header of a checkpoint.

    >>> network_name({"network_class_name": "package.unet.PlainConvUNet"})
    'PlainConvUNet'
    """
    return architecture["network_class_name"].rsplit(".", 1)[-1]


def encoder_differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """List the differences that no transfer rule adapts, in the stages that both encoders have.

    Args:
        found, expected: network arguments of the file and of the plans.

    >>> file, plans = ({"n_stages": 1, "features_per_stage": [n], "conv_bias": True} for n in (8, 16))
    >>> encoder_differences(file, plans)
    ['features_per_stage, stage 0: 8 in the file, 16 in the plans']
    """
    stages = range(min(found["n_stages"], expected["n_stages"]))
    lines = []
    for key in PER_STAGE:
        theirs, ours = (_by_stage(a.get(key), a["n_stages"]) for a in (found, expected))
        lines += [
            f"{key}, stage {s}: {theirs[s]} in the file, {ours[s]} in the plans" for s in stages if ours[s] != theirs[s]
        ]
    for key in SINGLE:
        if found.get(key) != expected.get(key):
            lines.append(f"{key}: {found.get(key)} in the file, {expected.get(key)} in the plans")
    return lines


def _by_stage(value: Any, stages: int) -> list[Any]:
    """Plans may give one number for all stages."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * stages


def preprocessing_differences(checkpoint: Checkpoint, dataset: PlannedDataset) -> list[str]:
    """List the values that the plans keep, and what the file was trained with."""
    metadata, plans = checkpoint.metadata, dataset.configuration.configuration
    pairs = (
        (
            "strides",
            metadata["architecture"]["arch_kwargs"]["strides"],
            plans["architecture"]["arch_kwargs"]["strides"],
        ),
        ("patch size (voxels)", metadata["patch_size"], list(dataset.patch_size)),
        ("spacing (mm)", metadata["spacing"], list(dataset.spacing)),
        ("normalisation", metadata["normalization_schemes"], plans["normalization_schemes"]),
    )
    lines = []
    for name, theirs, ours in pairs:
        if not theirs:
            comparison = "the plans' value; the file does not give its own"
        elif list(theirs) == list(ours):
            comparison = "the same in file and plans"
        else:
            comparison = f"the plans' value; the file had {theirs}"
        lines.append(f"{name}: {ours}, {comparison}")
    return lines


def misfit(checkpoint: Checkpoint, dataset: PlannedDataset, differences: list[str]) -> WeightsIncompatibleError:
    """The error for a file that does not fit the plans, with the differences and the remedies."""
    # The method of an imported file may be one that this package cannot pre-train.
    imported = "imported" in checkpoint.metadata["options"]
    method = "METHOD" if imported else checkpoint.metadata["method"]
    return WeightsIncompatibleError(
        f"{checkpoint.path} does not fit the plans {dataset.plans.plans_name}, configuration "
        f"{dataset.configuration_name} of {dataset.name}:\n  " + "\n  ".join(differences) + "\n"
        "Choose other plans with -p or -c, use the file's architecture with --keep checkpoint, or pre-train with these "
        f"plans: nnunet-invariance pretrain {method} {dataset.name} {dataset.configuration_name} "
        f"-p {dataset.plans.plans_name}"
    )
