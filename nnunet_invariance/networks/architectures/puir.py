"""The network of PUIR (arXiv 2411.06106) on nnU-Net's planned U-Net: one encoder for all modalities."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunet_invariance.networks.architectures.fusion import GatedFusion
from nnunet_invariance.networks.architectures.modality_stem import WIDTH, ModalityStem
from nnunet_invariance.networks.architectures.prior import Personalization, PriorTokens
from nnunet_invariance.networks.planned import Architecture, PlannedModule, cumulative_strides
from nnunet_invariance.networks.presence import over_maps, present_channels

#: The scale of nnU-Net's planners: a 3-D network with this many feature voxels per sample needs 8 GB for two samples.
FEATURE_VOXELS, GIGABYTES, SAMPLES = 560e6, 8.0, 2


#: What is in front of the encoder: nothing, or filters of each modality.
Stem = Literal["shared", "own"]


class Estimates(NamedTuple):
    """Features and estimates of each modality.

    Attributes:
        skips: maps (B, C, F_s, *spatial_s) of all stages but the deepest, finest first.
        profiles: (B, C, F, *spatial), each modality's own estimate of X_h.
        present: (B, C) bool, the modalities that are fused.
    """

    skips: list[Tensor]
    profiles: Tensor
    present: Tensor


class PUIRNet(nn.Module):
    """Shared encoder, an estimate of X_h per modality with the prior, gated fusion, and nnU-Net's decoder.

    ``encoder`` and ``decoder`` are those of the planned network with one input channel, so any encoder that was
    pre-trained on one channel fits. Channel i of the image is modality i. A missing modality is a constant
    (:func:`present_channels`); it has no influence on the output and gets no gradient.

    >>> kwargs = {
    ...     "n_stages": 2, "features_per_stage": [4, 8], "strides": [[1] * 3, [2] * 3], "kernel_sizes": [[3] * 3] * 2,
    ...     "conv_op": "torch.nn.Conv3d", "norm_op": "torch.nn.InstanceNorm3d", "nonlin": "torch.nn.LeakyReLU",
    ...     "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1,
    ... }
    >>> name = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
    >>> planned = Architecture(name, kwargs, ("conv_op", "norm_op", "nonlin"), input_channels=3, num_classes=4)
    >>> PUIRNet(planned, patch_size=(8, 8, 8))(torch.rand(1, 3, 8, 8, 8)).shape
    torch.Size([1, 4, 8, 8, 8])

    Args:
        architecture: the planned network; its input channels are the modalities.
        patch_size: in voxels.
        tokens, length: see :class:`PriorAttention`.
        stem: "own" puts a :class:`ModalityStem` in front of the encoder.
    """

    encoder: PlannedModule
    decoder: PlannedModule
    #: Prefixes of the other parameters in a checkpoint, and suffixes of the tensors with one row per modality.
    shared = ("personalization.", "fusions.", "stem.")
    tables = (".modality", ".modality_filters", ".modality_weights")

    def __init__(
        self,
        architecture: Architecture,
        patch_size: Sequence[int],
        tokens: PriorTokens = "spatial",
        length: int = 64,
        stem: Stem = "shared",
    ) -> None:
        super().__init__()
        planned = replace(architecture, input_channels=1).build()
        self.planned_class = type(planned).__name__
        self.keys_to_in_proj = planned.keys_to_in_proj
        self.encoder, self.decoder = planned.encoder, planned.decoder
        self.modalities = architecture.input_channels
        own = stem == "own"
        self.stem = ModalityStem(self.modalities, self.encoder.kernel_sizes[0]) if own else nn.Identity()
        strides = cumulative_strides(self.encoder.strides)[-1]
        map_size = [p // s for p, s in zip(patch_size, strides, strict=True)]
        self.personalization = Personalization(self.encoder, map_size, tokens, length)
        widths = self.encoder.output_channels
        self.fusions = nn.ModuleList(GatedFusion(self.encoder.conv_op, width, self.modalities) for width in widths)
        #: Compute the activations of encoder and fusion again in the backward pass instead of storing them.
        self.checkpointing = False

    def estimate(self, x: Tensor, present: Tensor | None = None) -> Estimates:
        """Encode each modality of (B, C, *spatial).

        ``present`` (B, C) bool excludes modalities from the fusion in addition to the constant ones. They still have
        estimates, for losses. Constant modalities, and all modalities of a sample without a present one, are set to 0.
        """
        given = present_channels(x)
        fused = given if present is None else given & present
        x = torch.where(over_maps(given & fused.any(1, keepdim=True), x), x, 0)
        skips = self._encode(self.stem(x))
        profiles = self.personalization(skips[-1].flatten(0, 1)).unflatten(0, x.shape[:2])
        # A softmax over no modality is NaN. A sample without a present one fuses all of them, and all are 0.
        return Estimates(skips[:-1], profiles, fused | ~fused.any(1, keepdim=True))

    def fuse(self, estimates: Estimates) -> list[Tensor]:
        """One fused map (B, F_s, *spatial_s) per stage, finest first; the last is X_h.

        The modalities of ``estimates.present`` are fused, at least one in each sample.
        """
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
        """Logits of nnU-Net's network for (B, C, *spatial); with ``return_estimates`` also the estimates and X_h."""
        estimates = self.estimate(x, present)
        fused = self.fuse(estimates)
        logits = self.decoder(fused)
        return (logits, estimates, fused[-1]) if return_estimates else logits

    def compute_conv_feature_map_size(self, size: Sequence[int]) -> np.int64:
        """Feature voxels of one sample, see :func:`feature_voxels`."""
        stem = WIDTH * math.prod(size) if isinstance(self.stem, ModalityStem) else 0
        return feature_voxels(self, self.modalities, size) + self.modalities * stem

    def _encode(self, x: Tensor) -> list[Tensor]:
        """One map (B, C, F_s, *spatial_s) per stage."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return [skip.unflatten(0, x.shape[:2]) for skip in self.encoder(x.flatten(0, 1)[:, None])]
        # One modality after the other, so that only one has its activations in memory, also in the backward pass.
        each = [checkpoint(self.encoder, x[:, i : i + 1], use_reentrant=False) for i in range(x.shape[1])]
        return [torch.stack(maps, 1) for maps in zip(*each, strict=True)]


def feature_voxels(network: PlannedModule, modalities: int, size: Sequence[int]) -> np.int64:
    """Voxels of the feature maps that a training step stores per sample, counted like nnU-Net's planners do.

    The encoder and the gates of the skip connections count once per modality, the decoders of the segmentation and of
    the reconstruction once. A voxel stands for the two numbers that a convolution and its norm store; a gate stores as
    many.

    Args:
        network: has the planned encoder and decoder.
    """
    encoder = network.encoder
    widths, strides = encoder.output_channels, cumulative_strides(encoder.strides)
    voxels = [math.prod(n // s for n, s in zip(size, stride, strict=True)) for stride in strides]
    gates = sum(width * n for width, n in zip(widths, voxels, strict=True))
    # A stage of the reconstruction convolves to the next finer width; the upsampled map stores one number per voxel.
    narrowed = [widths[0], *widths[:-1]]
    rebuilt = sum(width * n for width, n in zip(narrowed, voxels, strict=True))
    rebuilt += sum(width * n for width, n in zip(widths[:-1], voxels[:-1], strict=True)) // 2
    each = encoder.compute_conv_feature_map_size(size) + gates
    return modalities * each + network.decoder.compute_conv_feature_map_size(size) + rebuilt


def gigabytes(feature_voxels: float, batch_size: int) -> float:
    """Memory of training a 3-D network on the scale of nnU-Net's planners.

    >>> gigabytes(560e6, batch_size=2)
    8.0
    """
    return feature_voxels / FEATURE_VOXELS * GIGABYTES * batch_size / SAMPLES
