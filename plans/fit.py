"""Fitting plans to a checkpoint, or a checkpoint to plans; every decision is said."""

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from nnunet_invariance.errors import OptionError, WeightsIncompatibleError
from nnunet_invariance.networks.planned import Architecture, cumulative_strides
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.plans.anatomix import fit_anatomix, holds_anatomix
from nnunet_invariance.plans.copies import FittedPlans, write_plans_copy
from nnunet_invariance.plans.nnformer import read_axes
from nnunet_invariance.plans.options import BLOCK
from nnunet_invariance.registry import trainer_for_weights
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint
from nnunet_invariance.weights.nnssl_format import is_known_to_nnssl, pretrain_info, recommended_patch
from nnunet_invariance.weights.transfer import load_pretrained
from nnunet_invariance.weights.trusted_architecture import trusted_architecture

#: Arguments of nnU-Net's networks that decide the shapes of the encoder; those with one value a stage first.
PER_STAGE = ("features_per_stage", "n_conv_per_stage", "n_blocks_per_stage")
WHOLE = ("conv_op", "conv_bias", "norm_op", "norm_op_kwargs")
#: What a file need not say of its preprocessing.
UNSAID = {"spacing": "spacing", "normalization_schemes": "normalisation"}


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
    """Write a copy of a dataset's plans whose options block names a checkpoint.

    For the anatomix U-Nets, see :func:`~nnunet_invariance.plans.anatomix.fit_anatomix`; ``keep`` and ``min_coverage``
    are for the others. Batch size, and all that is not named below, stays the plans' own.

    Args:
        new_plans_name: default ``<base>_<method>``.
        keep: ``"plans"``: architecture, patch, spacing and normalisation stay the plans' own, and the encoder in the
            file is adapted by the rules of :func:`.load_pretrained` (input channels, kernels
            of one tap, the stages that both have). ``"checkpoint"``: they become the file's, and where that changes
            preprocessing, the copy has its own ``data_identifier``.
        min_coverage: least share of the encoder that must come from the file; goes into the block where it is below 1,
            and then stages of another width or length are left to it.
        frozen_features: of an anatomix U-Net, in front of the planned network.

    Raises:
        OptionError: frozen features of a network that is no anatomix U-Net.
        WeightsIncompatibleError: the encoder in the file is not the planned one (says which stage differs), too little
            of it fits, or the dataset cannot take the file's patch or normalisation.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    dataset = open_planned_dataset(dataset_name, configuration, base_plans_name)
    if holds_anatomix(checkpoint):
        return fit_anatomix(dataset, checkpoint, new_plans_name, frozen_features)
    if frozen_features:
        kind = checkpoint.metadata["architecture"]["network_class_name"].rsplit(".", 1)[-1]
        msg = f"{checkpoint.path} holds a {kind}; frozen features are those of an anatomix U-Net. "
        raise OptionError(msg + "Leave --frozen-features away, or give such a checkpoint.")
    _check_dimensions(checkpoint, dataset)
    decisions = _channel_decision(checkpoint, dataset)
    if keep == "plans":
        decisions += _keep_plans(checkpoint, dataset, strict=min_coverage == 1)
        changes: dict[str, Any] = {}
    else:
        changes = _keep_checkpoint(checkpoint, dataset)
        before = dataset.configuration.configuration
        decisions += [_changed(key, before.get(key), value) for key, value in changes.items() if key != "architecture"]
        unsaid = [words for key, words in UNSAID.items() if not checkpoint.metadata[key]]
        decisions += [f"{words}: the plans' own, the file does not say its own" for words in unsaid]
        decisions.append("architecture: the file's; batch size: the plans' own")
    branch: Literal["teacher", "student"] = "teacher" if checkpoint.section("teacher") else "student"
    planned = changes.get("architecture") or dataset.configuration.configuration["architecture"]
    network = Architecture.from_plans(planned, len(dataset.channel_names), 1).build()
    report = load_pretrained(network, checkpoint, branch=branch, min_coverage=min_coverage)
    rules = Counter(entry.rule for entry in report.adapted)
    decisions += [f"adapted: {rule} ({number} tensors)" for rule, number in rules.items()]
    decisions.append(f"encoder: {report.coverage:.2%} from the file")

    method = checkpoint.metadata["method"]
    name = new_plans_name or f"{base_plans_name}_{method}"
    block = {"checkpoint": str(checkpoint.path.absolute()), "branch": branch}
    block |= {"min_coverage": min_coverage} if min_coverage < 1 else {}
    nnssl = checkpoint.path.absolute().with_suffix(".nnssl.pth")
    info = pretrain_info(checkpoint, nnssl) if is_known_to_nnssl(network) else None
    path = write_plans_copy(dataset.name, base_plans_name, name, configuration, block, changes, info)
    options = ", ".join(f"{key}: {value}" for key, value in block.items())
    decisions += [_progress(checkpoint), f'block "{BLOCK}": {options}']
    if info:
        export = f"nnunet-invariance weights export {checkpoint.path} {nnssl} --format nnssl --branch {branch}"
        decisions.append(f'block "pretrain_info" for nnU-Net\'s own fine-tuning, once it is exported: {export}')
    decisions.append(f"plans copy: {path}")
    return FittedPlans(path, tuple(decisions), trainer_for_weights(method))


def _network_name(architecture: Mapping[str, Any]) -> str:
    """Name of the network class that plans, or a checkpoint's header, give."""
    return architecture["network_class_name"].rsplit(".", 1)[-1]


def _check_dimensions(checkpoint: Checkpoint, dataset: PlannedDataset) -> None:
    stride = cumulative_strides(checkpoint.metadata["architecture"]["arch_kwargs"]["strides"])[-1]
    found, wanted = len(stride), len(dataset.patch_size)
    if found != wanted:
        raise _misfit(checkpoint, dataset, [f"dimensions: {found}-D in the file, {wanted}-D in the plans"])


def _keep_plans(checkpoint: Checkpoint, dataset: PlannedDataset, strict: bool) -> list[str]:
    """The plans' own, and what of the file differs from them."""
    found = checkpoint.metadata["architecture"]
    wanted = dataset.configuration.configuration["architecture"]
    classes = [_network_name(a) for a in (found, wanted)]
    if classes[0] != classes[1]:
        raise _misfit(checkpoint, dataset, [f"architecture: {classes[0]} in the file, {classes[1]} in the plans"])
    differences = _argument_differences(found["arch_kwargs"], wanted["arch_kwargs"])
    if differences and strict:
        raise _misfit(checkpoint, dataset, differences)
    stages = [a["arch_kwargs"]["n_stages"] for a in (found, wanted)]
    lines = [f"architecture: {classes[1]}, the same in file and plans"]
    if stages[0] != stages[1]:
        lines.append(f"stages: {stages[1]}, plans' own kept, file has {stages[0]}; the first {min(stages)} are shared")
    return lines + differences + _kept(checkpoint, dataset)


def _keep_checkpoint(checkpoint: Checkpoint, dataset: PlannedDataset) -> dict[str, Any]:
    """Keys of the configuration that become the file's."""
    metadata, before = checkpoint.metadata, dataset.configuration.configuration
    architecture = trusted_architecture(checkpoint).to_dict()
    keys = ("network_class_name", "arch_kwargs", "_kw_requires_import")
    changes: dict[str, Any] = {"architecture": {key: architecture[key] for key in keys}}
    patch, arguments = recommended_patch(metadata), architecture["arch_kwargs"]
    if "axes" in arguments:
        arguments["axes"] = read_axes(dataset.plans.transpose_forward)
    if "input_shape" in arguments:
        arguments["input_shape"] = patch
    deepest = cumulative_strides(arguments["strides"])[-1]
    if any(size % stride for size, stride in zip(patch, deepest, strict=True)):
        raise _misfit(
            checkpoint, dataset, [f"patch size: {patch} in the file, not a multiple of its strides {deepest}"]
        )
    changes["patch_size"] = patch
    if metadata["spacing"]:
        changes["spacing"] = list(metadata["spacing"])
    schemes, channels = list(metadata["normalization_schemes"]), len(dataset.channel_names)
    if len(set(schemes)) > 1 and len(schemes) != channels:
        line = f"normalisation: {schemes} in the file, which does not say how {channels} channels are normalised"
        raise _misfit(checkpoint, dataset, [line])
    if schemes:
        changes["normalization_schemes"] = schemes if len(schemes) == channels else schemes[:1] * channels
    masks = metadata["plans"].get("use_mask_for_norm") or []
    if len(masks) == channels:
        changes["use_mask_for_norm"] = list(masks)
    return {key: value for key, value in changes.items() if key == "architecture" or value != before.get(key)}


def _misfit(checkpoint: Checkpoint, dataset: PlannedDataset, differences: list[str]) -> WeightsIncompatibleError:
    msg = (
        f"{checkpoint.path} does not fit plans {dataset.plans.plans_name}, configuration "
        f"{dataset.configuration_name} of {dataset.name}:\n  " + "\n  ".join(differences) + "\n"
        "Give other plans with -p or -c, take the file's architecture with --keep checkpoint, or pre-train under these "
        f"plans: nnunet-invariance pretrain {_pretraining(checkpoint)} {dataset.name} {dataset.configuration_name} "
        f"-p {dataset.plans.plans_name}"
    )
    return WeightsIncompatibleError(msg)


def _pretraining(checkpoint: Checkpoint) -> str:
    """An imported file's method is its branch, which no command of ours trains."""
    return "METHOD" if "imported" in checkpoint.metadata["options"] else checkpoint.metadata["method"]


def _argument_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What no rule of transfer adapts, in the stages that both have."""
    stages = range(min(found["n_stages"], wanted["n_stages"]))
    lines = []
    for key in PER_STAGE:
        ours, theirs = (_by_stage(a.get(key), a["n_stages"]) for a in (wanted, found))
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


def _kept(checkpoint: Checkpoint, dataset: PlannedDataset) -> list[str]:
    """What the plans keep although the file was trained with something else."""
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
        same = theirs is not None and list(theirs) == list(ours)
        kept = f"plans' own kept, file had {theirs}" if theirs else "plans' own, the file does not say its own"
        lines.append(f"{name}: {ours}, " + ("the same in file and plans" if same else kept))
    return lines


def _channel_decision(checkpoint: Checkpoint, dataset: PlannedDataset) -> list[str]:
    found, wanted = len(checkpoint.metadata["channel_names"]), len(dataset.channel_names)
    if found == wanted:
        return []
    return [f"input channels: {found} in the file, {wanted} in the dataset; first layer is adapted"]


def _changed(key: str, before: Any, value: Any) -> str:
    return f"{key}: {value}, the file's; the plans had {before}"


def _progress(checkpoint: Checkpoint) -> str:
    metadata = checkpoint.metadata
    state = "finished" if metadata["finished"] else "NOT finished"
    return f"pre-training: {metadata['method']}, step {metadata['step']} of {metadata['total_steps']}, {state}"
