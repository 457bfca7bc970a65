"""The network that nnU-Net planned: building it, choosing its token stage, and reading its decoder stage by stage."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """What a plans file says of a network, enough to build it again.

    Attributes:
        network_class_name: dotted path, as in ``plans["configurations"][c]["architecture"]``.
        arch_kwargs: arguments of the constructor, as in the plans.
        _kw_requires_import: names among them that are dotted paths of classes.
        input_channels: channels of the image.
        num_classes: channels of the output.
    """

    network_class_name: str
    arch_kwargs: dict[str, Any]
    _kw_requires_import: tuple[str, ...]
    input_channels: int
    num_classes: int

    @classmethod
    def from_plans(cls, architecture: dict[str, Any], input_channels: int, num_classes: int) -> "Architecture":
        """Read the ``architecture`` entry of a configuration."""
        return cls(
            architecture["network_class_name"],
            dict(architecture["arch_kwargs"]),
            tuple(architecture["_kw_requires_import"]),
            input_channels,
            num_classes,
        )

    def build(self) -> nn.Module:
        """The network with nnU-Net's own initialisation, deep supervision off (one output at full resolution)."""
        return get_network_from_plans(
            self.network_class_name,
            self.arch_kwargs,
            list(self._kw_requires_import),
            self.input_channels,
            self.num_classes,
            allow_init=True,
            deep_supervision=False,
        )

    def to_dict(self) -> dict[str, Any]:
        """Native types, for the header of a checkpoint."""
        return {**asdict(self), "_kw_requires_import": list(self._kw_requires_import)}


def cumulative_strides(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Strides of each encoder stage with respect to the input, in voxels per axis, finest first."""
    total = [1] * len(strides[0])
    result = []
    for stride in strides:
        total = [t * int(s) for t, s in zip(total, stride, strict=True)]
        result.append(tuple(total))
    return result


def token_stage(strides: Sequence[Sequence[int]], wanted: int = 16) -> int:
    """Index of the encoder stage whose cumulative stride is nearest ``wanted`` voxels on every axis.

    Distance is the sum over axes of |log2(stride / wanted)|. In shallow plans this is the deepest stage.
    """
    distance = [sum(abs(math.log2(s / wanted)) for s in stage) for stage in cumulative_strides(strides)]
    return min(range(len(distance)), key=distance.__getitem__)


def decode(decoder: nn.Module, skips: Sequence[Tensor]) -> list[Tensor]:
    """Feature maps of every decoder stage, coarsest first; the last one is at full resolution.

    Reads nnU-Net's ``UNetDecoder`` (``transpconvs``, ``stages``), whose own ``forward`` returns logits only. A decoder
    that works on the skips first (``refine``) may do so.
    """
    if hasattr(decoder, "refine"):
        skips = decoder.refine(skips)
    x = skips[-1]
    features = []
    for upsample, stage, skip in zip(decoder.transpconvs, decoder.stages, reversed(skips[:-1]), strict=True):
        x = stage(torch.cat((upsample(x), skip), 1))
        features.append(x)
    return features


def unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once (nnU-Net's ``state_dict()`` names many of them twice).

    Without buffers that a module makes anew and never saves.
    """
    saved = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    buffers = {name: tensor for name, tensor in module.named_buffers() if id(tensor) in saved}
    return {**dict(module.named_parameters()), **buffers}


def to_tokens(feature_map: Tensor) -> Tensor:
    """(B, C, *spatial) to (B, N, C), N the product of the spatial sizes."""
    return feature_map.flatten(2).transpose(1, 2)
