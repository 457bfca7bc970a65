"""A decoder without skip connections."""

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.networks.interpolation import LINEAR
from nnunet_invariance.networks.planned import PlannedModule


class BottleneckDecoder(nn.Module):
    """Reconstructs every modality at full resolution from the deepest map alone, so that no skip can bypass it.

    >>> from types import SimpleNamespace
    >>> import torch
    >>> encoder = SimpleNamespace(output_channels=[4, 8], strides=[[1, 1], [2, 2]], conv_op=nn.Conv2d,
    ...                           norm_op=nn.InstanceNorm2d, norm_op_kwargs=None)
    >>> BottleneckDecoder(encoder, outputs=3)(torch.rand(1, 8, 4, 4)).shape
    torch.Size([1, 3, 8, 8])

    Each stage convolves, normalises and upsamples (linearly) by the encoder's stride, with the encoder's channels.

    Args:
        encoder: the encoder of nnU-Net's planned network.
        outputs: channels of the image.
    """

    def __init__(self, encoder: PlannedModule, outputs: int) -> None:
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
        for stage, stride in zip(self.stages, reversed(self.strides), strict=True):
            x = stage(x)
            if max(stride) > 1:
                x = F.interpolate(x, scale_factor=stride, mode=LINEAR[x.ndim - 2])
        return self.output(x)
