"""Fit plans to a checkpoint or a checkpoint to plans, and explain every decision."""

import os
from collections import Counter
from typing import Any, Literal

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import OptionError
from nnunet_invariance.networks.planned import Architecture, cumulative_strides
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.plans.anatomix import fit_anatomix, holds_anatomix
from nnunet_invariance.plans.copies import FittedPlans, write_plans_copy
from nnunet_invariance.plans.differences import (
    check_dimensions,
    encoder_differences,
    misfit,
    network_name,
    preprocessing_differences,
)
from nnunet_invariance.plans.nnformer import read_axes
from nnunet_invariance.plans.options import BLOCK
from nnunet_invariance.registry import trainer_for_weights
from nnunet_invariance.weights.checkpoint import IMPORTED, Checkpoint, load_checkpoint
from nnunet_invariance.weights.nnssl_format import is_known_to_nnssl, pretrain_info, recommended_patch
from nnunet_invariance.weights.transfer import default_branch, load_pretrained
from nnunet_invariance.weights.trusted_architecture import trusted_architecture

#: Optional metadata about preprocessing, and their names in messages.
OPTIONAL = {"spacing": "spacing", "normalization_schemes": "normalisation"}


def fit_plans_to_checkpoint(
    dataset_name: str,
    checkpoint_path: str | os.PathLike,
    base_plans_name: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    new_plans_name: str | None = None,
    keep: Literal["plans", "checkpoint"] = "plans",
    min_coverage: float = 1.0,
    frozen_features: bool = False,
) -> FittedPlans:
    """Write a copy of a data set's plans whose options block names a checkpoint.

    :func:`~nnunet_invariance.plans.anatomix.fit_anatomix` does this for anatomix U-Nets, which ignore ``keep`` and
    ``min_coverage``. Everything that is not named below, and the batch size, stays as planned.

    Args:
        new_plans_name: default ``<base>_<method>``.
        keep: ``"plans"`` keeps architecture, patch, spacing and normalisation of the plans; the encoder in the file is
            adapted by the rules of :func:`.load_pretrained` (input channels, kernels of one tap, shared stages).
            ``"checkpoint"`` takes them from the file; if that changes preprocessing, the copy has its own
            ``data_identifier``.
        min_coverage: minimum fraction of the encoder that must come from the file. A value below 1 is written into the
            block, and stages of another width or length are allowed then.
        frozen_features: use the anatomix U-Net's frozen features in front of the planned network.

    Raises:
        OptionError: frozen features of a network that is no anatomix U-Net.
        WeightsIncompatibleError: the encoder in the file differs from the planned one (names the stage), too little of
            it fits, or the data set does not allow the file's patch or normalisation.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    dataset = open_planned_dataset(dataset_name, configuration, base_plans_name)
    if holds_anatomix(checkpoint):
        return fit_anatomix(dataset, checkpoint, new_plans_name, frozen_features)
    if frozen_features:
        kind = network_name(checkpoint.metadata["architecture"])
        msg = f"{checkpoint.path} contains a {kind}; frozen features are those of an anatomix U-Net. "
        raise OptionError(msg + "Remove --frozen-features, or give a checkpoint of an anatomix U-Net.")
    check_dimensions(checkpoint, dataset)
    changes, decisions = _changes(checkpoint, dataset, keep, strict=min_coverage == 1)
    method = checkpoint.metadata["method"].removeprefix(IMPORTED)
    name = new_plans_name or f"{base_plans_name}_{method}"
    return _write(checkpoint, dataset, name, changes, decisions, min_coverage)


def _changes(
    checkpoint: Checkpoint, dataset: PlannedDataset, keep: str, strict: bool
) -> tuple[dict[str, Any], list[str]]:
    """Keys of the configuration to replace, and one line per decision."""
    found, expected = len(checkpoint.metadata["channel_names"]), len(dataset.channel_names)
    decisions = []
    if found != expected:
        decisions.append(f"input channels: {found} in the file, {expected} in the data set; the first layer is adapted")
    if keep == "plans":
        return {}, decisions + _keep_plans(checkpoint, dataset, strict)
    changes, before = _keep_checkpoint(checkpoint, dataset), dataset.configuration.configuration
    decisions += [
        f"{key}: {value}, the file's value; the plans had {before.get(key)}"
        for key, value in changes.items()
        if key != "architecture"
    ]
    missing = [words for key, words in OPTIONAL.items() if not checkpoint.metadata[key]]
    decisions += [f"{words}: the plans' value; the file does not give its own" for words in missing]
    return changes, [*decisions, "architecture: the file's; batch size: as planned"]


def _keep_plans(checkpoint: Checkpoint, dataset: PlannedDataset, strict: bool) -> list[str]:
    """One line per value that the plans keep; refuses encoders that differ."""
    found = checkpoint.metadata["architecture"]
    expected = dataset.configuration.configuration["architecture"]
    classes = [network_name(a) for a in (found, expected)]
    if classes[0] != classes[1]:
        raise misfit(checkpoint, dataset, [f"architecture: {classes[0]} in the file, {classes[1]} in the plans"])
    differences = encoder_differences(found["arch_kwargs"], expected["arch_kwargs"])
    if differences and strict:
        raise misfit(checkpoint, dataset, differences)
    stages = [a["arch_kwargs"]["n_stages"] for a in (found, expected)]
    lines = [f"architecture: {classes[1]}, the same in file and plans"]
    if stages[0] != stages[1]:
        lines.append(f"stages: {stages[1]} as planned, the file has {stages[0]}; the first {min(stages)} are shared")
    return lines + differences + preprocessing_differences(checkpoint, dataset)


def _keep_checkpoint(checkpoint: Checkpoint, dataset: PlannedDataset) -> dict[str, Any]:
    """Keys of the configuration that get the file's values."""
    metadata, before = checkpoint.metadata, dataset.configuration.configuration
    changes = _architecture_and_patch(checkpoint, dataset)
    if metadata["spacing"]:
        changes["spacing"] = list(metadata["spacing"])
    schemes, channels = list(metadata["normalization_schemes"]), len(dataset.channel_names)
    if len(set(schemes)) > 1 and len(schemes) != channels:
        line = f"normalisation: {schemes} in the file, which does not say how {channels} channels are normalised"
        raise misfit(checkpoint, dataset, [line])
    if schemes:
        changes["normalization_schemes"] = schemes if len(schemes) == channels else schemes[:1] * channels
    masks = metadata["plans"].get("use_mask_for_norm") or []
    if len(masks) == channels:
        changes["use_mask_for_norm"] = list(masks)
    return {key: value for key, value in changes.items() if key == "architecture" or value != before.get(key)}


def _architecture_and_patch(checkpoint: Checkpoint, dataset: PlannedDataset) -> dict[str, Any]:
    """The file's network, and a patch that its strides divide."""
    architecture = trusted_architecture(checkpoint).to_dict()
    patch, arguments = recommended_patch(checkpoint.metadata), architecture["arch_kwargs"]
    if "axes" in arguments:
        arguments["axes"] = read_axes(dataset.plans.transpose_forward)
    if "input_shape" in arguments:
        arguments["input_shape"] = patch
    deepest = cumulative_strides(arguments["strides"])[-1]
    if any(size % stride for size, stride in zip(patch, deepest, strict=True)):
        line = f"patch size: {patch} in the file, not a multiple of its strides {deepest}"
        raise misfit(checkpoint, dataset, [line])
    keys = ("network_class_name", "arch_kwargs", "_kw_requires_import")
    return {"architecture": {key: architecture[key] for key in keys}, "patch_size": patch}


def _write(
    checkpoint: Checkpoint,
    dataset: PlannedDataset,
    name: str,
    changes: dict[str, Any],
    decisions: list[str],
    min_coverage: float,
) -> FittedPlans:
    """Try the transfer, then write the plans copy."""
    branch = default_branch(checkpoint)
    planned = changes.get("architecture") or dataset.configuration.configuration["architecture"]
    network = Architecture.from_plans(planned, len(dataset.channel_names), 1).build()
    report = load_pretrained(network, checkpoint, branch=branch, min_coverage=min_coverage)
    rules = Counter(entry.rule for entry in report.adapted)
    decisions = decisions + [f"adapted: {rule} ({counted(number, 'tensor')})" for rule, number in rules.items()]
    decisions.append(f"encoder: {report.coverage:.2%} from the file")

    block: dict[str, Any] = {"checkpoint": str(checkpoint.path.absolute()), "branch": branch}
    block |= {"min_coverage": min_coverage} if min_coverage < 1 else {}
    nnssl = checkpoint.path.absolute().with_suffix(".nnssl.pth")
    info = pretrain_info(checkpoint, nnssl) if is_known_to_nnssl(network) else None
    path = write_plans_copy(
        dataset.name, dataset.plans.plans_name, name, dataset.configuration_name, block, changes, info
    )
    options = ", ".join(f"{key}: {value}" for key, value in block.items())
    decisions += [_progress(checkpoint), f'block "{BLOCK}": {options}']
    if info:
        export = f"nnunet-invariance weights export {checkpoint.path} {nnssl} --format nnssl --branch {branch}"
        decisions.append(f'block "pretrain_info" for nnU-Net\'s own fine-tuning, after this export: {export}')
    decisions.append(f"plans copy: {path}")
    return FittedPlans(path, tuple(decisions), trainer_for_weights(checkpoint.metadata["method"]))


def _progress(checkpoint: Checkpoint) -> str:
    metadata = checkpoint.metadata
    state = "finished" if metadata["finished"] else "NOT finished"
    return f"pre-training: {metadata['method']}, step {metadata['step']} of {metadata['total_steps']}, {state}"
