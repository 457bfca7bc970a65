"""MONAI's SwinUNETR (arXiv 2201.01266) as a network that plans can name."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import MissingPackageError, UnsupportedConfigurationError

NETWORK = f"{__name__}.SwinUNETR"
STRIDES = [[1] * 3, *[[2] * 3] * 5]
STRIDE = 32  # of the deepest map
AXES = (2, 1, 0)
WIDTH_UNIT = 12  # MONAI's own rule


def check_patch(size: Sequence[int]) -> None:
    """Check that a patch can be halved five times and that the deepest map has more than one voxel, for its norm.

    Raises:
        UnsupportedConfigurationError: it is not so.
    """
    if len(size) != 3 or any(n % STRIDE or n < STRIDE for n in size) or max(size) == STRIDE:
        raise UnsupportedConfigurationError(
            f"SwinUNETR was given a patch of {list(size)} voxels; expected three sides, each a multiple of {STRIDE}, "
            f"one of them at least {2 * STRIDE}. Change the patch in the plans copy, or take the file's: "
            "nnunet-invariance weights plan DATASET FILE --keep checkpoint"
        )


def features(width: int) -> list[int]:
    """Channels of the encoder's maps for a width; the first entry is the decoder's last width, not the image's.

    >>> features(48)
    [48, 48, 96, 192, 384, 768]
    """
    return [width, *(width * 2**stage for stage in range(5))]


def arch_kwargs(width: int, version: Literal[1, 2], axes: Sequence[int] = AXES) -> dict[str, object]:
    """Arguments of the network for plans."""
    sizes = {"n_stages": len(STRIDES), "features_per_stage": features(width), "strides": STRIDES}
    return {**sizes, "axes": list(axes), "version": version}


class _NumbersOnCPU(TorchFunctionMode):
    """Sends ``torch.linspace`` to the CPU: MONAI reads its numbers, which the meta device does not have."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.linspace:
            kwargs = {**(kwargs or {}), "device": "cpu"}
        return func(*args, **(kwargs or {}))


def monai_network(input_channels: int, num_classes: int, width: int, version: int) -> Any:
    """MONAI's own network, on the default device.

    Raises:
        MissingPackageError: MONAI is not installed.
    """
    if importlib.util.find_spec("monai") is None:
        msg = "SwinUNETR is MONAI's network, and monai is not installed. "
        raise MissingPackageError(f"{msg}Install it: {install_command('swin')}")
    from monai.networks.nets import SwinUNETR as Theirs  # the import takes seconds

    with _NumbersOnCPU():
        return Theirs(input_channels, num_classes, feature_size=width, use_v2=version == 2)


class SwinEncoder(nn.Module):
    """MONAI's Swin transformer; ``output_channels`` and ``strides`` as nnU-Net's encoders have them.

    Args:
        swin: MONAI's ``SwinTransformer``.
        input_channels, width: channels of the image and of the first stage.
        axes: order in which the image's spatial axes are read; (2, 1, 0) changes nnU-Net's z, y, x to the x, y, z
            of MONAI's pre-training.
        refine: a module that is applied to the deepest map.
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
        """The image, then the layer-normalised maps at strides 2 to 32, finest first, in the image's order of axes.

        Raises:
            UnsupportedConfigurationError: the patch does not fit.
        """
        check_patch(image.shape[2:])
        *maps, deepest = self.swin(permute_axes(image, self.axes), True)
        return [image, *(permute_axes(x, self.axes, inverse=True) for x in (*maps, self.refine(deepest)))]


class SwinDecoder(nn.Module):
    """The convolutional part of MONAI's network under its own names, and a 1x1x1 segmentation layer per level.

    Attributes:
        deep_supervision: nnU-Net's trainer sets it; the parameters do not depend on it.
        seg_layers: the segmentation layers, coarsest first; the last one is MONAI's ``out``.
    """

    encoder1: nn.Module
    encoder2: nn.Module
    encoder3: nn.Module
    encoder4: nn.Module
    encoder10: nn.Module
    decoder1: nn.Module
    decoder2: nn.Module
    decoder3: nn.Module
    decoder4: nn.Module
    decoder5: nn.Module

    def __init__(self, network: Any, axes: Sequence[int], num_classes: int, deep_supervision: bool) -> None:
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
        image, *maps = (permute_axes(x, self.axes) for x in skips)
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
            return permute_axes(self.seg_layers[-1](x), self.axes, inverse=True)
        pairs = zip(self.seg_layers, levels, strict=True)
        return [permute_axes(head(level), self.axes, inverse=True) for head, level in pairs][::-1]


class SwinUNETR(nn.Module):
    """:class:`SwinEncoder` and :class:`SwinDecoder`, made of MONAI's network with its depths, heads and windows.

    >>> SwinUNETR(1, 3)(torch.rand(1, 1, 64, 64, 64)).shape  # doctest: +SKIP
    torch.Size([1, 3, 64, 64, 64])

    Args:
        n_stages, strides: of the encoder's maps, with the image as the first; nnU-Net reads them from the plans.
        features_per_stage: the result of :func:`features` for a width that is a multiple of 12.
        axes: see :class:`SwinEncoder`.
        version: version 2 has a convolutional block before every stage (MONAI's ``use_v2``).

    Raises:
        MissingPackageError: MONAI is not installed.
        UnsupportedConfigurationError: the network has other stages, strides or widths.
    """

    #: The first layer, for the transfer to other numbers of channels.
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
        if found != wanted or width < 1 or width % WIDTH_UNIT or version not in (1, 2):
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
        """The module that is applied to the deepest map; None here."""
        return None

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, classes, *spatial) of an image (B, C, *spatial); a list, finest first, with deep supervision."""
        return self.decoder(self.encoder(x))


def permute_axes(x: Tensor, axes: Sequence[int], inverse: bool = False) -> Tensor:
    """Permute the spatial axes of (B, C, *spatial), or undo it.

    >>> permute_axes(torch.zeros(1, 1, 2, 3, 4), (2, 0, 1)).shape
    torch.Size([1, 1, 4, 2, 3])
    """
    order = [axes.index(axis) for axis in range(3)] if inverse else axes
    return x.permute(0, 1, *(2 + axis for axis in order)).contiguous()
