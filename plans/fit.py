"""Fitting plans to a checkpoint: the user's plans stay in force, and every decision is said."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.plans.copies import write_plans_copy
from nnunet_invariance.plans.options import BLOCK
from nnunet_invariance.pretraining.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint

#: Arguments of nnU-Net's networks that decide the shapes of the encoder; those with one value a stage first.
PER_STAGE = ("features_per_stage", "kernel_sizes", "n_conv_per_stage", "n_blocks_per_stage")
WHOLE = ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs")


@dataclass(frozen=True)
class FittedPlans:
    """The plans copy, and one line for each decision."""

    path: Path
    decisions: tuple[str, ...]


def fit_plans_to_checkpoint(
    dataset_name: str,
    checkpoint_path: str | os.PathLike,
    base_plans_name: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    new_plans_name: str | None = None,
) -> FittedPlans:
    """Write a copy of a dataset's plans whose options block names a checkpoint.

    Architecture, patch, spacing and normalisation stay the plans' own; so the file must hold the planned encoder.

    Args:
        new_plans_name: default ``<base>_<method>``.

    Raises:
        WeightsIncompatibleError: the encoder in the file is not the planned one; says which stage differs.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    dataset = open_planned_dataset(dataset_name, configuration, base_plans_name)
    _check_encoder(checkpoint, dataset)
    method = checkpoint.metadata["method"]
    name = new_plans_name or f"{base_plans_name}_{method}"
    source = "teacher" if checkpoint.section("teacher") else "student"
    block = {"checkpoint": str(checkpoint.path.resolve()), "source": source}
    path = write_plans_copy(dataset.name, base_plans_name, name, configuration, block)
    options = ", ".join(f"{key}: {value}" for key, value in block.items())
    return FittedPlans(path, (*_decisions(checkpoint, dataset), f'block "{BLOCK}": {options}', f"plans copy: {path}"))


def _check_encoder(checkpoint: Checkpoint, dataset: PlannedDataset) -> None:
    found = checkpoint.metadata["architecture"]
    wanted = dataset.configuration.configuration["architecture"]
    classes = [a["network_class_name"].rsplit(".", 1)[-1] for a in (found, wanted)]
    differences = (
        [f"architecture: {classes[0]} in the file, {classes[1]} in the plans"] if classes[0] != classes[1] else []
    )
    differences += _argument_differences(found["arch_kwargs"], wanted["arch_kwargs"])
    if differences:
        msg = (
            f"{checkpoint.path} does not fit plans {dataset.plans.plans_name}, configuration "
            f"{dataset.configuration_name} of {dataset.name}:\n  " + "\n  ".join(differences) + "\n"
            "Give other plans with -p or -c, or pre-train under these plans: nnunet-invariance pretrain "
            f"{checkpoint.metadata['method']} {dataset.name} {dataset.configuration_name} -p {dataset.plans.plans_name}"
        )
        raise WeightsIncompatibleError(msg)


def _argument_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    if found["n_stages"] != wanted["n_stages"]:
        return [f"n_stages: {found['n_stages']} in the file, {wanted['n_stages']} in the plans"]
    stages = range(wanted["n_stages"])
    lines = []
    for key in PER_STAGE:
        ours, theirs = (_by_stage(arguments.get(key), len(stages)) for arguments in (wanted, found))
        lines += [
            f"{key}, stage {s}: {theirs[s]} in the file, {ours[s]} in the plans" for s in stages if ours[s] != theirs[s]
        ]
    for key in WHOLE:
        if found.get(key) != wanted.get(key):
            lines.append(f"{key}: {found.get(key)} in the file, {wanted.get(key)} in the plans")
    return lines


def _by_stage(value: Any, stages: int) -> list[Any]:
    """One number for all stages is allowed in plans."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * stages


def _decisions(checkpoint: Checkpoint, dataset: PlannedDataset) -> list[str]:
    """What the plans keep although the file was trained with something else."""
    metadata, plans = checkpoint.metadata, dataset.configuration.configuration
    lines = [
        f"encoder: {metadata['architecture']['network_class_name'].rsplit('.', 1)[-1]}, the same in file and plans"
    ]
    channels = [len(metadata["channel_names"]), len(dataset.channel_names)]
    if channels[0] != channels[1]:
        lines.append(f"input channels: {channels[0]} in the file, {channels[1]} in the dataset; first layer is adapted")
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
    for name, theirs, ours in pairs:
        kept = "the same in file and plans" if list(theirs) == list(ours) else f"plans' own kept, file had {theirs}"
        lines.append(f"{name}: {ours}, {kept}")
    state = "finished" if metadata["finished"] else "NOT finished"
    lines.append(f"pre-training: {metadata['method']}, step {metadata['step']} of {metadata['total_steps']}, {state}")
    return lines
