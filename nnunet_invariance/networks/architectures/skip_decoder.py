"""A U-shaped convolutional decoder for encoders that are not convolutional."""

from collections.abc import Sequence

from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from torch import Tensor, nn

from nnunet_invariance.networks.planned import PlannedModule, decode


def _block(channels: int, width: int) -> BasicBlockD:
    norm = {"eps": 1e-5, "affine": True}
    return BasicBlockD(
        nn.Conv3d,
        channels,
        width,
        3,
        1,
        True,
        nn.InstanceNorm3d,
        norm,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


class SkipDecoder(nn.Module):
    """A residual block per skip, then the upsampling path of nnU-Net's decoder (UNETR, arXiv 2103.10504).

    >>> from types import SimpleNamespace
    >>> import torch
    >>> encoder = SimpleNamespace(output_channels=[1, 8], strides=[[1, 1, 1], [2, 2, 2]])
    >>> skips = [torch.rand(1, 1, 8, 8, 8), torch.rand(1, 8, 4, 4, 4)]
    >>> SkipDecoder(encoder, num_classes=3, width=4, deep_supervision=False)(skips).shape
    torch.Size([1, 3, 8, 8, 8])

    Args:
        encoder: has ``output_channels`` and ``strides`` of its maps, finest first; the first may be the image itself.
        num_classes: output channels.
        width: channels at full resolution.
        deep_supervision: return one output per stage, finest first, instead of the finest alone.
    """

    def __init__(self, encoder: PlannedModule, num_classes: int, width: int, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        widths = [width, *encoder.output_channels[1:]]
        self.skip_blocks = nn.ModuleList(_block(c, w) for c, w in zip(encoder.output_channels, widths, strict=True))
        finer, coarser = widths[-2::-1], widths[:0:-1]
        strides = [tuple(stride) for stride in encoder.strides[:0:-1]]
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(below, above, stride, stride)
            for below, above, stride in zip(coarser, finer, strides, strict=True)
        )
        self.stages = nn.ModuleList(_block(2 * above, above) for above in finer)
        self.seg_layers = nn.ModuleList(nn.Conv3d(above, num_classes, 1) for above in finer)

    def refine(self, skips: Sequence[Tensor]) -> list[Tensor]:
        """Apply one residual block to each skip."""
        return [block(skip) for block, skip in zip(self.skip_blocks, skips, strict=True)]

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Skips (B, C_s, *spatial_s), finest first, to logits (B, classes, *spatial); a list with deep supervision."""
        features = decode(self, skips)
        if not self.deep_supervision:
            return self.seg_layers[-1](features[-1])
        return [layer(x) for layer, x in zip(self.seg_layers, features, strict=True)][::-1]
