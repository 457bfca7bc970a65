"""Build the network of a plans file, choose its token stage, and compute the features of its decoder stages."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnunet_invariance.errors import UnsupportedConfigurationError

#: A network that nnU-Net builds from plans, or its encoder or decoder. Their classes do not declare their attributes: a
#: network has ``encoder`` and ``decoder``; an encoder has at least ``output_channels`` and ``strides``.
PlannedModule: TypeAlias = Any
#: Errors that network classes raise for arguments that they do not take.
_REFUSALS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ImportError, ZeroDivisionError)


@dataclass(frozen=True)
class Architecture:
    """Description of a network in a plans file, from which the network can be built.

    >>> kwargs = {"variant": "anatomix", "strides": [[1, 1, 1]] + 4 * [[2, 2, 2]], "channels": "averaged"}
    >>> name = "nnunet_invariance.networks.architectures.anatomix_unet.AnatomixUNet"
    >>> Architecture(name, kwargs, (), input_channels=1, num_classes=2).to_dict()["input_channels"]
    1

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

    def build(self) -> PlannedModule:
        """Build the network with nnU-Net's own initialisation and without deep supervision.

        Raises:
            UnsupportedConfigurationError: the class does not exist, or does not take the arguments.
        """
        try:
            return get_network_from_plans(
                self.network_class_name,
                self.arch_kwargs,
                list(self._kw_requires_import),
                self.input_channels,
                self.num_classes,
                allow_init=True,
                deep_supervision=False,
            )
        except _REFUSALS as error:
            msg = f"The network {self.network_class_name} cannot be built ({type(error).__name__}: {error}); expected "
            remedy = "Plan again, or correct the entry 'architecture' of the plans."
            raise UnsupportedConfigurationError(
                f"{msg}a class and arguments as nnU-Net plans them. {remedy}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Convert to built-in types, for the header of a checkpoint."""
        return {**asdict(self), "_kw_requires_import": list(self._kw_requires_import)}


def cumulative_strides(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Strides of each encoder stage with respect to the input, in voxels per axis, finest first.

    >>> cumulative_strides([[1, 1], [2, 2], [1, 2]])
    [(1, 1), (2, 2), (2, 4)]
    """
    total = [1] * len(strides[0])
    result = []
    for stride in strides:
        total = [t * int(s) for t, s in zip(total, stride, strict=True)]
        result.append(tuple(total))
    return result


def token_stage(strides: Sequence[Sequence[int]], wanted: int = 16) -> int:
    """Index of the encoder stage whose cumulative stride is nearest to ``wanted`` voxels per axis.

    The distance is the sum over axes of |log2(stride / wanted)|. In shallow plans this is the deepest stage.

    >>> token_stage([[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]])
    4
    """
    distance = [sum(abs(math.log2(s / wanted)) for s in stage) for stage in cumulative_strides(strides)]
    return min(range(len(distance)), key=distance.__getitem__)


def decode(decoder: PlannedModule, skips: Sequence[Tensor]) -> list[Tensor]:
    """Compute the feature maps of all decoder stages, coarsest first; the last one is at full resolution.

    nnU-Net's ``UNetDecoder`` (``transpconvs``, ``stages``) returns only logits from ``forward``. If a decoder has a
    method ``refine``, the skips pass through it first.

    Args:
        decoder: nnU-Net's decoder, or one with the same attributes.
        skips: the encoder's maps (B, C_s, *spatial_s), finest first.
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
    """Parameters and buffers by name, each tensor once (nnU-Net's ``state_dict()`` contains many under two names).

    Non-persistent buffers are excluded.

    >>> sorted(unique_tensors(nn.Linear(2, 3)))
    ['bias', 'weight']
    """
    saved = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    buffers = {name: tensor for name, tensor in module.named_buffers() if id(tensor) in saved}
    return {**dict(module.named_parameters()), **buffers}


def to_tokens(feature_map: Tensor) -> Tensor:
    """Reshape (B, C, *spatial) to (B, N, C), where N is the product of the spatial sizes.

    >>> to_tokens(torch.zeros(2, 8, 4, 4, 4)).shape
    torch.Size([2, 64, 8])
    """
    return feature_map.flatten(2).transpose(1, 2)
