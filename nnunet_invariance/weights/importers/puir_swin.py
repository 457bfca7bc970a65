"""Importer of the weights of PUIR's authors (arXiv 2411.06106): a SwinUNETR with a prior, for four tiled channels."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.architectures.puir_swin import PATCH, SIDE, PUIRSwinUNETR
from nnunet_invariance.networks.architectures.swin_unetr import WIDTH_UNIT, arch_kwargs, features
from nnunet_invariance.networks.planned import unique_tensors
from nnunet_invariance.weights.importers.monai_swin import own_name, swin_network
from nnunet_invariance.weights.importers.network import ForeignNetwork, without_wrappers
from nnunet_invariance.weights.transfer_report import shortened
from nnunet_invariance.weights.trusted_architecture import PUIR_SWIN

DESCRIPTION = "the SwinUNETR with a prior that PUIR's authors release"
KEYS = ("static_prior", "swinViT1.patch_embed.proj.", "attn_for_x.", "fuse_to_X.")
CITATION = "PUIR, ICCV 2025, arXiv 2411.06106 (its repository names no licence: ask the authors about the weights)"
CHANNELS = 4  # one image, tiled; kernels summed over the channels compute the same function of that image
STEM = ("swinViT1.patch_embed.proj.weight", "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight")
PRIOR = ("static_prior", "attn_for_x.", "tansfer_for_mod.", "fuse_to_X.")


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this importer reads a file with this content."""
    state = _state(content)
    return all(any(key.startswith(own) for key in state) for own in KEYS)


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The network of the file for one channel; ``plans`` and ``configuration`` are ignored.

    Every key and every shape is checked. The kernels that take the image are summed over their four input channels,
    ``w'[o] = sum_i w[o, i]``, because the release gives all of them the same image.

    Raises:
        WeightsIncompatibleError: a key or a shape differs from the release.
    """
    state = _state(content)
    stem = state[STEM[0]]
    _check(path, state, stem.shape[0] if stem.ndim else 0)
    summed = {key: value.sum(1, keepdim=True) if key in STEM else value for key, value in state.items()}
    named = {_own(key): value for key, value in summed.items()}
    network = swin_network(path, named, CITATION, PUIR_SWIN)
    network.facts.update(patch_size=PATCH, normalization_schemes=["ZScoreNormalization"], channel_names=["any MRI"])
    network.notes.update(channels_summed=CHANNELS)
    return network


def layout(width: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the released file, of a network of this width; 48 is the release's.

    Raises:
        UnsupportedConfigurationError: the width is not a multiple of 12.
    """
    with torch.device("meta"):
        arguments: dict[str, Any] = arch_kwargs(width, 1)
        network = PUIRSwinUNETR(CHANNELS, CHANNELS, **arguments)
    ours = {name: tuple(tensor.shape) for name, tensor in unique_tensors(network).items()}
    kept = {theirs: shape for name, shape in ours.items() if (theirs := _theirs(name))}
    return {**kept, **dict(_beside(width))}


def _beside(width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Further tensors of the release: an attention that it never calls, two heads, two decoders of pre-training."""
    deepest, cells = features(width)[-1], SIDE**3
    yield "attn_for_mod.in_proj_weight", (3 * cells, cells)
    yield "attn_for_mod.in_proj_bias", (3 * cells,)
    yield "attn_for_mod.out_proj.weight", (cells, cells)
    yield "attn_for_mod.out_proj.bias", (cells,)
    for head, outputs in (("rotation_head", 4), ("contrastive_head", 512)):
        yield f"{head}.weight", (outputs, deepest)
        yield f"{head}.bias", (outputs,)
    channels = [*(width * n for n in (16, 8, 4, 2, 1, 1)), CHANNELS]
    for decoder in ("conv", "conv2"):
        for index, (inputs, outputs) in enumerate(pairwise(channels)):
            side = 1 if index == 5 else 3
            yield f"{decoder}.{4 * index}.weight", (outputs, inputs, side, side, side)
            yield f"{decoder}.{4 * index}.bias", (outputs,)


def _check(path: Path, state: Mapping[str, Tensor], width: int) -> None:
    if width < 1 or width % WIDTH_UNIT:
        msg = f"{path} is not {DESCRIPTION}: {STEM[0]} has {width} filters, expected a multiple of {WIDTH_UNIT}. "
        raise WeightsIncompatibleError(msg + "Use the file as it was released.")
    wanted = layout(width)
    lines = [f"  {key}: not in the file" for key in wanted if key not in state]
    lines += [f"  {key}: not in the release" for key in state if key not in wanted]
    for key, shape in wanted.items():
        if key in state and tuple(state[key].shape) != shape:
            lines.append(f"  {key}: {list(state[key].shape)} in the file, {list(shape)} in the release")
    if lines:
        msg = f"{path} is not {DESCRIPTION} ({len(state)} tensors instead of {len(wanted)}); these differ:\n"
        raise WeightsIncompatibleError(msg + "\n".join(shortened(lines)) + "\nUse the file as it was released.")


def _own(key: str) -> str:
    """Our name of a tensor of the release."""
    if key.startswith(PRIOR):
        return f"encoder.refine.{key}"
    return own_name(f"swinViT.{key.removeprefix('swinViT1.')}" if key.startswith("swinViT1.") else key)


def _theirs(name: str) -> str | None:
    """The name in the release; None for heads of deep supervision, which the release lacks."""
    if name.startswith("decoder.seg_layers."):
        head = "decoder.seg_layers.4."
        return f"out.conv.conv.{name.removeprefix(head)}" if name.startswith(head) else None
    for ours, theirs in (("encoder.refine.", ""), ("encoder.swin.", "swinViT1."), ("decoder.", "")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    box = content.get("state_dict")
    box = box if isinstance(box, Mapping) else content
    return without_wrappers({str(key): value for key, value in box.items() if isinstance(value, Tensor)})
