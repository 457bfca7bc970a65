"""The network of PUIR on nnU-Net's planned U-Net (arXiv 2411.06106): one encoder for all modalities."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_invariance.networks.architectures.fusion import GatedFusion
from nnunet_invariance.networks.architectures.prior import Personalization
from nnunet_invariance.networks.planned import Architecture, cumulative_strides
from nnunet_invariance.networks.presence import over_maps, present_channels

#: nnU-Net's own scale: a 3-D network of so many feature voxels a sample takes 8 GB with two samples.
FEATURE_VOXELS, GIGABYTES, SAMPLES = 560e6, 8.0, 2


class Estimates(NamedTuple):
    """What the encoder says of each modality.

    Attributes:
        skips: maps (B, C, F_s, *spatial_s) of all stages but the deepest, finest first.
        profiles: (B, C, F, *spatial), each modality's own estimate of X_h.
        present: (B, C) bool, the modalities that count.
    """

    skips: list[Tensor]
    profiles: Tensor
    present: Tensor


class PUIRNet(nn.Module):
    """Shared encoder, X_h of each modality with the help of the prior, gated fusion, nnU-Net's decoder.

    ``encoder`` and ``decoder`` are those of the planned network with one input channel, so that any encoder that was
    pre-trained on one channel fits. Channel i of the image is modality i; a modality that is missing is a constant
    (:func:`present_channels`) and has no influence on the output, nor a gradient.

    Args:
        architecture: planned; its input channels are the modalities.
        patch_size: voxels.
        tokens, length: of the prior, see :class:`PriorAttention`.
    """

    #: Parameters beside encoder and decoder that pre-training leaves; modality tables are those that end so.
    shared = ("personalization.", "fusions.")
    table = ".modality"

    def __init__(
        self, architecture: Architecture, patch_size: Sequence[int], tokens: str = "spatial", length: int = 64
    ) -> None:
        super().__init__()
        planned = replace(architecture, input_channels=1).build()
        self.planned_class = type(planned).__name__
        self.keys_to_in_proj = planned.keys_to_in_proj
        self.encoder, self.decoder = planned.encoder, planned.decoder
        self.modalities = architecture.input_channels
        strides = cumulative_strides(self.encoder.strides)[-1]
        map_size = [p // s for p, s in zip(patch_size, strides, strict=True)]
        self.personalization = Personalization(self.encoder, map_size, tokens, length)
        widths = self.encoder.output_channels
        self.fusions = nn.ModuleList(GatedFusion(self.encoder.conv_op, width, self.modalities) for width in widths)
        #: Keep no activations of the encoder and of the fusion; they are computed again for the gradient.
        self.checkpointing = False

    def estimate(self, x: Tensor, present: Tensor | None = None) -> Estimates:
        """Encode each modality of (B, C, *spatial).

        ``present`` (B, C) takes modalities out beside those that are constant. Their estimates are there, for losses;
        of a modality that is constant, and where none is left, the input is 0.
        """
        given = present_channels(x)
        counts = given if present is None else given & present
        x = torch.where(over_maps(given & counts.any(1, keepdim=True), x), x, 0)
        skips = self._encode(x)
        profiles = self.personalization(skips[-1].flatten(0, 1)).unflatten(0, x.shape[:2])
        # A softmax over nothing is NaN; where no modality is present all count, and all are 0.
        return Estimates(skips[:-1], profiles, counts | ~counts.any(1, keepdim=True))

    def fuse(self, estimates: Estimates) -> list[Tensor]:
        """One map (B, F_s, *spatial_s) a stage, finest first; the last is X_h."""
        maps = [*estimates.skips, estimates.profiles]
        if not (self.checkpointing and torch.is_grad_enabled()):
            return [fusion(m, estimates.present) for fusion, m in zip(self.fusions, maps, strict=True)]
        return [
            checkpoint(fusion, m, estimates.present, use_reentrant=False)
            for fusion, m in zip(self.fusions, maps, strict=True)
        ]

    def forward(
        self, x: Tensor, present: Tensor | None = None, return_estimates: bool = False
    ) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], Estimates, Tensor]:
        """Logits as nnU-Net's network gives them, of (B, C, *spatial); with estimates also these and X_h."""
        estimates = self.estimate(x, present)
        fused = self.fuse(estimates)
        logits = self.decoder(fused)
        return (logits, estimates, fused[-1]) if return_estimates else logits

    def compute_conv_feature_map_size(self, size: Sequence[int]) -> np.int64:
        """Feature voxels of one sample, see :func:`feature_voxels`."""
        return feature_voxels(self, self.modalities, size)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Maps (B, C, F_s, *spatial_s) of each stage."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return [skip.unflatten(0, x.shape[:2]) for skip in self.encoder(x.flatten(0, 1)[:, None])]
        # One modality after the other: the activations of one are held at a time, also while they are made again.
        each = [checkpoint(self.encoder, x[:, i : i + 1], use_reentrant=False) for i in range(x.shape[1])]
        return [torch.stack(maps, 1) for maps in zip(*each, strict=True)]


def feature_voxels(network: nn.Module, modalities: int, size: Sequence[int]) -> np.int64:
    """What one sample of a training step keeps for the gradient, counted as nnU-Net's planners do: voxels of maps.

    The encoder and the gates of the skip connections once a modality; the decoder of the segmentation and that of the
    reconstruction once. A voxel stands for two numbers, what a convolution and its norm keep; a gate keeps as many.

    Args:
        network: has the planned encoder and decoder.
    """
    encoder = network.encoder
    widths, strides = encoder.output_channels, cumulative_strides(encoder.strides)
    voxels = [math.prod(n // s for n, s in zip(size, stride, strict=True)) for stride in strides]
    gates = sum(width * n for width, n in zip(widths, voxels, strict=True))
    # A stage of the reconstruction convolves to the next finer width; what it draws larger keeps one number.
    narrowed = [widths[0], *widths[:-1]]
    rebuilt = sum(width * n for width, n in zip(narrowed, voxels, strict=True))
    rebuilt += sum(width * n for width, n in zip(widths[:-1], voxels[:-1], strict=True)) // 2
    each = encoder.compute_conv_feature_map_size(size) + gates
    return modalities * each + network.decoder.compute_conv_feature_map_size(size) + rebuilt


def gigabytes(feature_voxels: float, batch_size: int) -> float:
    """Memory of training a 3-D network on nnU-Net's own scale; what its planners fit batches by."""
    return feature_voxels / FEATURE_VOXELS * GIGABYTES * batch_size / SAMPLES
