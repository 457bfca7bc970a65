"""A decoder without skip connections."""

import torch.nn.functional as F
from torch import Tensor, nn


class BottleneckDecoder(nn.Module):
    """Every modality from the deepest map alone, so that nothing can bypass it; full resolution, no skips.

    Each stage convolves, normalises and upsamples (linearly) by the encoder's stride; channels as in the encoder.

    Args:
        encoder: of nnU-Net's planned network.
        outputs: channels of the image.
    """

    def __init__(self, encoder: nn.Module, outputs: int) -> None:
        super().__init__()
        widths = list(encoder.output_channels)
        self.strides = [tuple(map(int, stride)) for stride in encoder.strides]
        self.stages = nn.ModuleList(
            nn.Sequential(
                encoder.conv_op(widths[s], widths[max(0, s - 1)], 3, padding=1),
                encoder.norm_op(widths[max(0, s - 1)], **(encoder.norm_op_kwargs or {})),
                nn.LeakyReLU(inplace=True),
            )
            for s in reversed(range(len(widths)))
        )
        self.output = encoder.conv_op(widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, F, *coarse) to (N, outputs, *spatial)."""
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[x.ndim - 2]
        for stage, stride in zip(self.stages, reversed(self.strides), strict=True):
            x = stage(x)
            if max(stride) > 1:
                x = F.interpolate(x, scale_factor=stride, mode=mode)
        return self.output(x)
