"""The encoder of Alice's release (an nnFormer, arXiv 2109.03201) with a convolutional U-Net decoder."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.networks.architectures.skip_decoder import SkipDecoder
from nnunet_invariance.networks.architectures.window_attention import WindowBlock

NNFORMER = "NNFormerUNet"  # the class below, as plans name it
WINDOWS = (4, 4, 8, 4)
DEPTH = 2  # blocks per stage: one with regular, one with shifted windows
HEAD_CHANNELS = 8
STRIDE = 16  # of the deepest map
SMALLEST = 64  # voxels; in smaller patches, the deepest map is smaller than a window


def check_patch(size: Sequence[int]) -> None:
    """Check that the encoder can halve a patch four times and that the deepest map is as large as a window.

    Raises:
        UnsupportedConfigurationError: it is not so.
    """
    if len(size) != 3 or any(n % STRIDE or n < SMALLEST for n in size):
        raise UnsupportedConfigurationError(
            f"The nnFormer encoder was given a patch of {tuple(size)} voxels; expected three sides, each a multiple of "
            f"{STRIDE} and at least {SMALLEST}. Write plans: nnunet-invariance weights plan DATASET --preset nnformer"
        )


def channels_last(x: Tensor) -> Tensor:
    """(B, C, D, H, W) to (B, D, H, W, C)."""
    return x.permute(0, 2, 3, 4, 1)


def channels_first(x: Tensor) -> Tensor:
    """(B, D, H, W, C) to (B, C, D, H, W)."""
    return x.permute(0, 4, 1, 2, 3)


class _Projection(nn.Module):
    """Two 3x3x3 convolutions; GELU and layer norm after the first, and after the second where ``last`` is False."""

    def __init__(self, inputs: int, channels: int, stride: int, last: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, channels, 3, stride, 1)
        self.conv2 = nn.Conv3d(channels, channels, 3, 1, 1)
        self.norm1 = nn.LayerNorm(channels)
        if not last:
            self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_first(self.norm1(channels_last(F.gelu(self.conv1(x)))))
        x = self.conv2(x)
        return channels_first(self.norm2(channels_last(F.gelu(x)))) if hasattr(self, "norm2") else x


class _PatchEmbedding(nn.Module):
    """(B, C, *size) to (B, *size / 2, width)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.proj1 = _Projection(inputs, width // 2, 2, last=False)
        self.proj2 = _Projection(width // 2, width, 1, last=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(channels_last(self.proj2(self.proj1(x))))


class _Downsampling(nn.Module):
    """GELU, layer norm, and a convolution of stride 2 to twice the channels; channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduction = nn.Conv3d(channels, 2 * channels, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(self.reduction(channels_first(self.norm(F.gelu(x)))))


class _Stage(nn.Module):
    """Blocks at one resolution, and the downsampling to the next."""

    def __init__(self, channels: int, window: int, drop_paths: Sequence[float], last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            WindowBlock(channels, channels // HEAD_CHANNELS, window, shifted=bool(i % 2), drop_path=p)
            for i, p in enumerate(drop_paths)
        )
        self.downsample = None if last else _Downsampling(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map of this stage, and the input of the next stage; the last stage has the same twice."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class NNFormerEncoder(nn.Module):
    """Four stages of shifted-window attention at strides 2 to 16; the shapes of its tensors do not depend on the patch.

    The position table is learned on a grid of 32^3 positions, for a patch of 64^3, and interpolated to other patches.
    If a map is no multiple of the window, it is padded, and the padding gets no attention.

    >>> import torch
    >>> [tuple(x.shape[1:]) for x in NNFormerEncoder(1, width=8)(torch.zeros(1, 1, 64, 64, 64))][::4]
    [(1, 64, 64, 64), (64, 4, 4, 4)]

    Args:
        input_channels: channels of the image.
        width: channels of the first stage, a multiple of 8; every stage doubles them.
        axes: order in which the image's spatial axes are read; (2, 1, 0) changes nnU-Net's z, y, x to the x, y, z
            of the release.
        drop_path: probability of dropping a residual branch in the last block; it rises linearly from 0.
    """

    def __init__(
        self, input_channels: int, width: int = 48, axes: Sequence[int] = (2, 1, 0), drop_path: float = 0.2
    ) -> None:
        super().__init__()
        self.axes = tuple(axes)
        widths = [width * 2**stage for stage in range(len(WINDOWS))]
        self.output_channels = [input_channels, *widths]
        self.strides = [[1] * 3, *[[2] * 3] * len(WINDOWS)]
        rates = torch.linspace(0, drop_path, DEPTH * len(WINDOWS), device="cpu").view(-1, DEPTH).tolist()
        self.patch_embed = _PatchEmbedding(input_channels, width)
        self.position = nn.Parameter(torch.zeros(1, width, *[SMALLEST // 2] * 3))
        self.layers = nn.ModuleList(
            _Stage(c, window, rate, last=c == widths[-1])
            for c, window, rate in zip(widths, WINDOWS, rates, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        """The image, then the normalised maps of the stages (B, C_s, *spatial / 2^s), in the image's order of axes.

        Raises:
            UnsupportedConfigurationError: the patch does not fit.
        """
        check_patch(image.shape[2:])
        forth = [0, 1, *(2 + axis for axis in self.axes)]
        back = [0, 1, *(2 + self.axes.index(axis) for axis in range(3))]
        x = self.patch_embed(image.permute(forth))
        x = x + channels_last(F.interpolate(self.position, x.shape[1:4], mode="trilinear").to(x.dtype))
        maps = [image]
        for stage, norm in zip(self.layers, self.norms, strict=True):
            feature_map, x = stage(x)
            maps.append(channels_first(norm(feature_map)).permute(back).contiguous())
        return maps


class NNFormerUNet(nn.Module):
    """:class:`NNFormerEncoder` with :class:`SkipDecoder`, as a network that plans can name.

    >>> import torch
    >>> network = NNFormerUNet(1, 3, features_per_stage=(8, 8, 16, 32, 64), deep_supervision=False)
    >>> network(torch.rand(1, 1, 64, 64, 64)).shape
    torch.Size([1, 3, 64, 64, 64])

    Args:
        n_stages, strides: of the encoder's maps, with the image as the first; nnU-Net reads them from the plans.
        features_per_stage: channels of the maps; the first is the decoder's width at full resolution.
        axes: see :class:`NNFormerEncoder`.

    Raises:
        UnsupportedConfigurationError: the encoder has other stages, strides or widths.
    """

    #: The first layer, for the transfer to other numbers of channels.
    keys_to_in_proj = ("encoder.patch_embed.proj1.conv1",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int = 5,
        features_per_stage: Sequence[int] = (48, 48, 96, 192, 384),
        strides: Sequence[Sequence[int]] = ((1, 1, 1), *((2, 2, 2),) * 4),
        axes: Sequence[int] = (2, 1, 0),
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        width = features_per_stage[1]
        self.encoder = NNFormerEncoder(input_channels, width, axes)
        found = (n_stages, list(features_per_stage[1:]), [list(stride) for stride in strides], sorted(axes))
        wanted = (5, self.encoder.output_channels[1:], self.encoder.strides, [0, 1, 2])
        if found != wanted or width % HEAD_CHANNELS:
            raise UnsupportedConfigurationError(
                f"NNFormerUNet was given stages, widths, strides and axes {found}; expected {wanted} with a width that "
                f"is a multiple of {HEAD_CHANNELS}. Write plans: nnunet-invariance weights plan DATASET "
                "--preset nnformer"
            )
        self.decoder = SkipDecoder(self.encoder, num_classes, features_per_stage[0], deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, classes, *spatial) of an image (B, C, *spatial); a list, finest first, with deep supervision."""
        return self.decoder(self.encoder(x))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Truncated normal for linear layers; convolutions as in nnU-Net."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
