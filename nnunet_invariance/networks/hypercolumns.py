"""Hypercolumns: the features of all encoder and decoder stages at a voxel, concatenated to one vector."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.networks.interpolation import LINEAR
from nnunet_invariance.networks.planned import decode


@dataclass(frozen=True)
class HypercolumnMaps:
    """The feature maps of one forward pass.

    Attributes:
        names: ``encoder_0`` (finest) to ``encoder_S``, then ``decoder_S-1`` to ``decoder_0`` (finest).
        maps: one tensor (B, C_m, *spatial_m) per name.

    >>> HypercolumnMaps(("encoder_0",), (torch.zeros(1, 8, 4, 4, 4),)).channels
    [8]
    """

    names: tuple[str, ...]
    maps: tuple[Tensor, ...]

    @property
    def channels(self) -> list[int]:
        """Number of features of each map."""
        return [feature_map.shape[1] for feature_map in self.maps]

    def only(self, name: str) -> "HypercolumnMaps":
        """Select one map by its name."""
        return HypercolumnMaps((name,), (self.maps[self.names.index(name)],))


def require_stages(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return encoder and decoder of a U-Net whose stages :func:`compute_hypercolumns` can read.

    Raises:
        UnsupportedConfigurationError: the network has no such encoder and decoder.
    """
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    if encoder is None or decoder is None or not (hasattr(decoder, "transpconvs") and hasattr(decoder, "stages")):
        raise UnsupportedConfigurationError(
            f"A probe reads the stages of a U-Net, but {type(network).__name__} has no encoder and decoder with "
            "stages. Use plans with PlainConvUNet or ResidualEncoderUNet."
        )
    return encoder, decoder


def compute_hypercolumns(network: nn.Module, image: Tensor) -> HypercolumnMaps:
    """Run a planned U-Net and return the outputs of all its stages, in float32 (float64 stays float64).

    Args:
        network: has ``encoder`` (which returns skips, finest first) and ``decoder`` as nnU-Net's U-Nets do.
        image: (B, C, *spatial).

    Raises:
        UnsupportedConfigurationError: the network has no such encoder and decoder.
    """
    encoder, decoder = require_stages(network)
    skips = list(encoder(image))
    decoded = decode(decoder, skips)
    names = [f"encoder_{stage}" for stage in range(len(skips))]
    names += [f"decoder_{stage}" for stage in reversed(range(len(decoded)))]
    return HypercolumnMaps(tuple(names), tuple(map(at_least_float32, (*skips, *decoded))))


def sample_hypercolumns(maps: HypercolumnMaps, size: Sequence[int], positions: Tensor) -> Tensor:
    """Interpolate hypercolumns at positions of each image, without upsampling whole maps.

    Each map is interpolated linearly, exactly as ``F.interpolate(..., align_corners=False)`` upsamples it.

    Args:
        size: spatial size of the image in voxels.
        positions: (B, N, D) in voxels; integer coordinates are voxel centres.

    Returns:
        (B, N, sum of C_m).

    >>> maps = HypercolumnMaps(("encoder_0",), (torch.arange(4.0).reshape(1, 1, 2, 2),))
    >>> sample_hypercolumns(maps, (2, 2), torch.tensor([[[0.0, 1.0], [0.5, 0.5]]])).flatten()
    tensor([1.0000, 1.5000])
    """
    extent = copy_to(positions.device, size, torch.float32)
    grid = ((2 * positions.to(maps.maps[0].dtype) + 1) / extent - 1).flip(-1)  # grid_sample expects the last axis first
    grid = grid.reshape(len(grid), *[1] * (len(size) - 1), *grid.shape[1:])
    columns = [
        F.grid_sample(feature_map, grid, mode="bilinear", padding_mode="border", align_corners=False).flatten(2)
        for feature_map in maps.maps
    ]
    return torch.cat(columns, 1).transpose(1, 2)


def linear_map(maps: HypercolumnMaps, weight: Tensor, bias: Tensor, size: Sequence[int]) -> Tensor:
    """Apply a linear map to the hypercolumn of every voxel: (B, K, *size).

    A linear map commutes with linear interpolation, so each map is projected to K channels before it is upsampled.

    Args:
        weight: (K, sum of C_m). bias: (K,).
    """
    dimensions = len(size)
    total = bias.reshape(1, -1, *[1] * dimensions)
    for feature_map, part in zip(maps.maps, weight.split(maps.channels, dim=1), strict=True):
        projected = torch.einsum("kc,bc...->bk...", part, feature_map)
        total = total + F.interpolate(projected, size=tuple(size), mode=LINEAR[dimensions], align_corners=False)
    return total
