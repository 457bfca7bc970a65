"""MONAI's SwinUNETR (arXiv 2201.01266) as a network that plans can name."""

import importlib.util
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import MissingPackageError, UnsupportedConfigurationError

NETWORK = f"{__name__}.SwinUNETR"
STRIDES = [[1] * 3, *[[2] * 3] * 5]
STRIDE = 32  # of the deepest map
AXES = (2, 1, 0)
WIDTH_UNIT = 12  # MONAI's own rule


def check_patch(size: Sequence[int]) -> None:
    """Refuse patches that cannot be halved five times, or whose deepest map is one voxel, which no norm can take.

    Raises:
        UnsupportedConfigurationError
    """
    if len(size) != 3 or any(n % STRIDE or n < STRIDE for n in size) or max(size) == STRIDE:
        raise UnsupportedConfigurationError(
            f"SwinUNETR was given a patch of {list(size)} voxels; expected three sides, each a multiple of {STRIDE}, "
            f"one of them at least {2 * STRIDE}. Change the patch in the plans copy, or take the file's: "
            "nnunet-invariance weights plan DATASET FILE --keep checkpoint"
        )


def features(width: int) -> list[int]:
    """Channels of the encoder's maps of a network of this width; in place of the image's, the decoder's last."""
    return [width, *(width * 2**stage for stage in range(5))]


def arch_kwargs(width: int, version: Literal[1, 2], axes: Sequence[int] = AXES) -> dict[str, object]:
    """Arguments of the network for plans."""
    sizes = {"n_stages": len(STRIDES), "features_per_stage": features(width), "strides": STRIDES}
    return {**sizes, "axes": list(axes), "version": version}


def monai_network(input_channels: int, num_classes: int, width: int, version: int) -> nn.Module:
    """MONAI's own network, on the CPU.

    Raises:
        MissingPackageError
    """
    if importlib.util.find_spec("monai") is None:
        msg = "SwinUNETR is MONAI's network, and monai is not installed. "
        raise MissingPackageError(f"{msg}Install it: {install_command('swin')}")
    from monai.networks.nets import SwinUNETR as Theirs  # takes seconds

    # MONAI reads numbers out of a tensor, which a device without memory does not have.
    with torch.device("cpu"):
        return Theirs(input_channels, num_classes, feature_size=width, use_v2=version == 2)


class SwinEncoder(nn.Module):
    """MONAI's Swin transformer; ``output_channels`` and ``strides`` as nnU-Net's encoders have them.

    Args:
        swin: MONAI's ``SwinTransformer``.
        input_channels, width: of the image, and of the first stage.
        axes: order in which the image's spatial axes are read; (2, 1, 0) turns nnU-Net's z, y, x into the x, y, z that
            MONAI's pre-training saw.
        refine: works on the deepest map.
    """

    def __init__(
        self, swin: nn.Module, input_channels: int, width: int, axes: Sequence[int], refine: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.swin = swin
        self.axes = tuple(axes)
        self.refine = refine or nn.Identity()
        self.output_channels = [input_channels, *features(width)[1:]]
        self.strides = STRIDES

    def forward(self, image: Tensor) -> list[Tensor]:
        """The image, then the maps at strides 2 to 32 without their scale (layer norm), finest first, in its axes.

        Raises:
            UnsupportedConfigurationError: a patch that does not fit.
        """
        check_patch(image.shape[2:])
        *maps, deepest = self.swin(turned(image, self.axes), True)
        return [image, *(turned(x, self.axes, back=True) for x in (*maps, self.refine(deepest)))]


class SwinDecoder(nn.Module):
    """The convolutional rest of MONAI's network by its own names, and a 1x1x1 head on every level.

    Attributes:
        deep_supervision: settable, as nnU-Net's trainer does; the parameters are the same either way.
        seg_layers: the heads, coarsest first; the last is MONAI's ``out``.
    """

    def __init__(self, network: nn.Module, axes: Sequence[int], num_classes: int, deep_supervision: bool) -> None:
        super().__init__()
        self.axes = tuple(axes)
        self.deep_supervision = deep_supervision
        for name, module in network.named_children():
            if name not in ("swinViT", "out"):
                self.add_module(name, module)
        width = network.out.conv.conv.in_channels
        self.seg_layers = nn.ModuleList(nn.Conv3d(width * n, num_classes, 1) for n in (8, 4, 2, 1, 1))

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Skips (B, C_s, *spatial_s), finest first, to logits (B, classes, *spatial); a list with deep supervision."""
        image, *maps = (turned(x, self.axes) for x in skips)
        x = self.decoder5(self.encoder10(maps[4]), maps[3])
        levels = [x]
        steps = (
            (self.decoder4, self.encoder4, maps[2]),
            (self.decoder3, self.encoder3, maps[1]),
            (self.decoder2, self.encoder2, maps[0]),
            (self.decoder1, self.encoder1, image),
        )
        for up, block, skip in steps:
            x = up(x, block(skip))
            levels.append(x)
        if not self.deep_supervision:
            return turned(self.seg_layers[-1](x), self.axes, back=True)
        pairs = zip(self.seg_layers, levels, strict=True)
        return [turned(head(level), self.axes, back=True) for head, level in pairs][::-1]


class SwinUNETR(nn.Module):
    """:class:`SwinEncoder` and :class:`SwinDecoder`, made of MONAI's network with its depths, heads and windows.

    Args:
        n_stages, strides: of the encoder's maps, the image as the first; nnU-Net reads them in the plans.
        features_per_stage: those of :func:`features` for a width that is a multiple of 12.
        axes: see :class:`SwinEncoder`.
        version: 2 has a convolutional block in front of every stage (MONAI's ``use_v2``).

    Raises:
        MissingPackageError: no MONAI. UnsupportedConfigurationError: stages, strides or widths of another network.
    """

    #: The layer that takes the image, for transfer to other numbers of channels.
    keys_to_in_proj = ("encoder.swin.patch_embed.proj",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int = 6,
        features_per_stage: Sequence[int] = (48, 48, 96, 192, 384, 768),
        strides: Sequence[Sequence[int]] = STRIDES,
        axes: Sequence[int] = AXES,
        version: Literal[1, 2] = 1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        width = features_per_stage[0]
        found = (n_stages, list(features_per_stage), [list(stride) for stride in strides], sorted(axes))
        wanted = (len(STRIDES), features(width), STRIDES, [0, 1, 2])
        if found != wanted or width % WIDTH_UNIT or version not in (1, 2):
            raise UnsupportedConfigurationError(
                f"SwinUNETR was given stages, widths, strides and axes {found} and version {version!r}; expected "
                f"{wanted} with a width that is a multiple of {WIDTH_UNIT}, and version 1 or 2. Take the plans that "
                "`nnunet-invariance weights plan DATASET FILE --keep checkpoint` writes."
            )
        network = monai_network(input_channels, num_classes, width, version)
        self.version = version
        self.encoder = SwinEncoder(network.swinViT, input_channels, width, axes, self.refinement(width))
        self.decoder = SwinDecoder(network, axes, num_classes, deep_supervision)

    def refinement(self, width: int) -> nn.Module | None:
        """What works on the deepest map; nothing here."""
        return None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *spatial) to logits (B, classes, *spatial); a list, finest first, with deep supervision."""
        return self.decoder(self.encoder(x))


def turned(x: Tensor, axes: Sequence[int], back: bool = False) -> Tensor:
    """The spatial axes of (B, C, *spatial) in another order, or the way back."""
    order = [axes.index(axis) for axis in range(3)] if back else axes
    return x.permute(0, 1, *(2 + axis for axis in order)).contiguous()
