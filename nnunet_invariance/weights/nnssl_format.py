"""Keys of nnssl's checkpoint format, which nnU-Net's fine-tuning reads too, and their values for our checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.weights.checkpoint import IMPORTED, Checkpoint
from nnunet_invariance.weights.trusted_architecture import trusted_architecture

NAMES = ("key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe")
_CARRIED = (
    "data_identifier",
    "preprocessor_name",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "spacing",
    "patch_size",
)


def is_known_to_nnssl(network: nn.Module) -> bool:
    """Whether the network names its parts as nnssl's tools require."""
    return hasattr(network, NAMES[0])


def names_of(architecture: Architecture) -> dict[str, Any]:
    """Names of encoder, stem, first convolution and position embedding in the network; None for a part it lacks.

    Raises:
        WeightsIncompatibleError: a network that nnssl does not know.
    """
    with torch.device("meta"):
        network = architecture.build()
    if not is_known_to_nnssl(network):
        msg = f"The format of nnssl does not support a {type(network).__name__}. "
        raise WeightsIncompatibleError(msg + "Export it for nnU-Net instead (--format nnunet).")
    return {name: list(v) if isinstance(v := getattr(network, name), tuple) else v for name in NAMES}


def recommended_patch(metadata: Mapping[str, Any]) -> list[int]:
    """The patch size that the authors recommend for fine-tuning; default: the patch size of the pre-training."""
    return list(metadata["options"].get("recommended_downstream_patchsize") or metadata["patch_size"])


def citations_of(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The citation in the form that nnU-Net's fine-tuning prints."""
    return [{"type": "Pre-training", "name": metadata["method"], "apa_citations": [str(metadata["citation"])]}]


def adaptation_plan(checkpoint: Checkpoint) -> dict[str, Any]:
    """The ``nnssl_adaptation_plan`` of one of our checkpoints.

    Two values are not in our checkpoints and describe the preprocessed files: ``transpose_forward`` is 0, 1, 2, and the
    median spacing is the spacing of the configuration.
    """
    metadata, architecture = checkpoint.metadata, trusted_architecture(checkpoint)
    spacing, axes = metadata["spacing"], list(range(len(metadata["patch_size"])))
    entry = {key: metadata["plans"].get(key) for key in _CARRIED} | {
        key: metadata[key] for key in ("data_identifier", "normalization_schemes", "spacing", "patch_size")
    }
    entry["spacing_style"] = "onemmiso" if spacing and all(s == 1 for s in spacing) else "median"
    entry["resampling_fn_mask"] = metadata["plans"].get("resampling_fn_seg")
    entry["resampling_fn_mask_kwargs"] = metadata["plans"].get("resampling_fn_seg_kwargs")
    return {
        "architecture_plans": {
            "arch_class_name": architecture.network_class_name.rsplit(".", 1)[-1],
            "arch_kwargs": architecture.arch_kwargs,
            "arch_kwargs_requiring_import": list(architecture._kw_requires_import),
        },
        "pretrain_plan": {
            "dataset_name": metadata["dataset_name"],
            "plans_name": metadata["plans_name"],
            "original_median_spacing_after_transp": spacing,
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": axes,
            "transpose_backward": axes,
            "configurations": {metadata["configuration"]: entry},
            "experiment_planner_used": "nnunet_invariance",
        },
        "pretrain_num_input_channels": architecture.input_channels,
        "recommended_downstream_patchsize": recommended_patch(metadata),
        **names_of(architecture),
    }


def pretrain_info(checkpoint: Checkpoint, nnssl_path: Path) -> dict[str, Any]:
    """The block of a plans file that nnU-Net's own fine-tuning reads; ``nnssl_path`` is the exported file."""
    metadata = checkpoint.metadata
    architecture = trusted_architecture(checkpoint)
    return {
        "checkpoint_path": str(nnssl_path),
        "checkpoint_name": f"{metadata['method'].removeprefix(IMPORTED)}_{metadata['sha256'][:8]}",
        **names_of(architecture),
        "pt_num_in_channels": architecture.input_channels,
        "pt_used_patchsize": list(metadata["patch_size"]),
        "pt_recommended_downstream_patchsize": recommended_patch(metadata),
        "citations": citations_of(metadata),
    }
