"""Importer of MONAI's SwinUNETR: its self-supervised pre-training in both spellings, and complete networks."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.architectures.swin_unetr import arch_kwargs
from nnunet_invariance.weights.importers.network import ForeignNetwork, facts_without_plans, without_wrappers
from nnunet_invariance.weights.trusted_architecture import SWIN, architecture_of

DESCRIPTION = "a SwinUNETR of MONAI, or the transformer of its self-supervised pre-training"
KEYS = ("swinViT.patch_embed.proj.", "swinViT.layers1.0.blocks.", "swinViT.layers4.0.downsample.")
CITATION = "Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR 2022"
BOXES = ("state_dict", "network_weights", "net", "model")
PATCH = [96, 96, 96]
TRANSFORMER, OURS = "swinViT.", "encoder.swin."

_BARE = re.compile(r"(patch_embed|layers[1-4]c?)\.")
_CONVOLUTIONS = re.compile(r"(encoder(1|2|3|4|10)|decoder[1-5])\.")
_DEEPER = re.compile(r"encoder\.swin\.layers\d\.0\.blocks\.(?![01]\.)\d+\.")


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this importer reads a file with this content."""
    return has_transformer(tensors_of(content))


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The network of the file; ``plans`` and ``configuration`` are ignored.

    Raises:
        WeightsIncompatibleError: 2-D, or with more blocks than ours.
    """
    return swin_network(path, tensors_of(content), CITATION)


def tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file in MONAI's current spelling, from any of its usual containers."""
    box = next((content[name] for name in BOXES if isinstance(content.get(name), Mapping)), content)
    state = without_wrappers({str(key): value for key, value in box.items() if isinstance(value, Tensor)})
    return {spelled(key): value for key, value in state.items()}


def spelled(key: str) -> str:
    """MONAI's current name of a key: older files have ``swin_vit`` or no prefix, and ``fc1`` instead of ``linear1``."""
    key = re.sub(r"^swin_vit\.", TRANSFORMER, key)
    key = TRANSFORMER + key if _BARE.match(key) else key
    return re.sub(r"\.mlp\.fc([12])\.", r".mlp.linear\1.", key) if key.startswith(TRANSFORMER) else key


def has_transformer(state: Mapping[str, Tensor]) -> bool:
    """Whether the file has all prefixes of :data:`KEYS`."""
    return all(any(key.startswith(own) for key in state) for own in KEYS)


def swin_network(path: Path, state: Mapping[str, Tensor], citation: str, network: str = SWIN) -> ForeignNetwork:
    """A network in MONAI's spelling under our names, without the heads of its pre-training.

    Raises:
        WeightsIncompatibleError: 2-D, or with more blocks than ours.
    """
    own = {own_name(key): value for key, value in state.items()}
    kernel = own[f"{OURS}patch_embed.proj.weight"]
    if kernel.ndim != 5:
        msg = f"{path} contains a {kernel.ndim - 2}-D SwinUNETR; our trainers use 3-D ones. "
        raise WeightsIncompatibleError(msg + "Use a 3-D checkpoint.")
    if deeper := [name for name in own if _DEEPER.match(name)]:
        msg = f"{path} contains a SwinUNETR with more than two blocks per stage ({deeper[0]}). "
        raise WeightsIncompatibleError(msg + "Use one with MONAI's usual depths, 2, 2, 2, 2.")
    width, channels = kernel.shape[:2]
    version: Literal[1, 2] = 2 if any(name.startswith(f"{OURS}layers1c.") for name in own) else 1
    head = own.get("decoder.seg_layers.4.weight")
    classes = 1 if head is None else head.shape[0]
    entry = {"network_class_name": network, "arch_kwargs": arch_kwargs(width, version), "_kw_requires_import": []}
    facts = facts_without_plans(PATCH, [f"channel {i}" for i in range(channels)])
    return ForeignNetwork(own, architecture_of(path, entry, channels, classes), facts, citation=citation)


def own_name(key: str) -> str:
    """Our name of a tensor of MONAI; a tensor that our network lacks keeps its name."""
    if key.startswith(TRANSFORMER):
        return OURS + key.removeprefix(TRANSFORMER)
    if key.startswith("out.conv.conv."):
        return f"decoder.seg_layers.4.{key.removeprefix('out.conv.conv.')}"
    return f"decoder.{key}" if _CONVOLUTIONS.match(key) else key
