"""The U-Nets of anatomix as networks that plans can name (arXiv 2411.02372).

The released files number the layers of one flat list, ``model.{c}.weight``. Our names keep the numbers and add whether
a layer belongs to the encoder: ``encoder.model.{c}.weight`` up to the bottleneck,
``decoder.model.{c}.weight`` after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nnunet_invariance.errors import OptionError, ShapeError, UnsupportedConfigurationError

NETWORK = f"{__name__}.AnatomixUNet"


@dataclass(frozen=True)
class Design:
    """One released U-Net: three 3x3x3 convolutions at full resolution, two on every other level, reflected borders.

    >>> DESIGNS["anatomix"].divisor
    16

    Attributes:
        width: channels at full resolution, doubled by each pooling.
        features: channels of the output, before our 1x1x1 head.
        levels: number of poolings, by 2 on every axis.
        batch_norm: batch norm with affine parameters and running statistics; otherwise instance norm without affine
            parameters, and convolutions with a bias.
        eps: of the normalisation.
        average: average pooling and trilinear upsampling; otherwise maximum pooling and nearest upsampling.
    """

    width: int
    features: int
    levels: int
    batch_norm: bool
    eps: float
    average: bool

    @property
    def strides(self) -> list[list[int]]:
        """Strides of the encoder stages, as in plans."""
        return [[1, 1, 1], *[[2, 2, 2]] * self.levels]

    @property
    def first_of_decoder(self) -> int:
        """Index of the first upsampling layer."""
        return 9 + 7 * self.levels

    @property
    def divisor(self) -> int:
        """Every axis of a patch is a multiple of this and at least twice as long: reflected borders need 2 voxels."""
        return 2**self.levels

    def layers(self, inputs: int = 1) -> list[nn.Module]:
        """The flat list of layers of the released files, with PyTorch's initial weights."""
        layers: list[nn.Module] = []
        norm = nn.BatchNorm3d if self.batch_norm else nn.InstanceNorm3d

        def block(inputs: int, outputs: int) -> None:
            layers.extend((self._convolution(inputs, outputs), norm(outputs, eps=self.eps), nn.ReLU(inplace=True)))

        widths = [self.width * 2**level for level in range(self.levels + 1)]
        block(inputs, self.width)
        before = self.width
        for level, width in enumerate(widths):
            if level:
                layers.append(nn.AvgPool3d(2) if self.average else nn.MaxPool3d(2))
            block(before, width)
            block(width, width)
            before = width
        for width in reversed(widths[:-1]):
            layers.append(nn.Upsample(scale_factor=2, mode="trilinear" if self.average else "nearest"))
            block(3 * width, width)
            block(width, width)
        layers.append(self._convolution(self.width, self.features))
        return layers

    def _convolution(self, inputs: int, outputs: int) -> nn.Conv3d:
        return nn.Conv3d(inputs, outputs, 3, padding=1, padding_mode="reflect", bias=not self.batch_norm)


#: By the names of the released files: 5.9 and 94.4 million parameters.
DESIGNS: Mapping[str, Design] = {
    "anatomix": Design(width=16, features=16, levels=4, batch_norm=True, eps=1e-5, average=False),
    "anatomix-dev": Design(width=32, features=32, levels=5, batch_norm=False, eps=1e-2, average=True),
}


def design_of(variant: str) -> Design:
    """The design of a released U-Net.

    Raises:
        OptionError: there is no U-Net of that name.
    """
    if variant not in DESIGNS:
        raise OptionError(f"There is no anatomix U-Net {variant!r}. Take {' or '.join(map(repr, DESIGNS))}.")
    return DESIGNS[variant]


def check_patch(patch_size: Sequence[int], variant: str) -> None:
    """Check that the U-Net can halve a patch often enough.

    Raises:
        UnsupportedConfigurationError: it cannot; the message names the nearest patch that fits.
    """
    fitting = fitting_patch(patch_size, variant)
    if list(patch_size) != fitting:
        divisor = design_of(variant).divisor
        raise UnsupportedConfigurationError(
            f"The patch is {list(patch_size)} voxels, but the U-Net {variant!r} needs three axes, each a multiple of "
            f"{divisor} and at least {2 * divisor}. The nearest that fits is {fitting}: `nnunet-invariance weights "
            "plan DATASET FILE` writes a plans copy with it."
        )


def fitting_patch(patch_size: Sequence[int], variant: str) -> list[int]:
    """The nearest patch of three axes that the U-Net accepts; a 2-D patch gets an axis in front.

    >>> fitting_patch([20, 56, 60], "anatomix")
    [32, 48, 64]
    """
    divisor = design_of(variant).divisor
    sizes = [divisor] * (3 - len(patch_size)) + list(patch_size)
    return [max(2, (size + (divisor - 1) // 2) // divisor) * divisor for size in sizes]


class AnatomixEncoder(nn.Module):
    """The layers up to the bottleneck; ``output_channels`` and ``strides`` as nnU-Net's encoders have them."""

    def __init__(self, layers: Mapping[str, nn.Module], design: Design, images: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(layers)
        self.design = design
        self.images = images
        self.output_channels = [images * design.width * 2**level for level in range(design.levels + 1)]
        self.strides = design.strides

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, *spatial) to the maps of all levels (B, C_s, *spatial_s), finest first.

        Raises:
            ShapeError: an axis is no multiple of the divisor, or shorter than twice the divisor.
        """
        return self.run(x, (), {})

    def run(self, x: Tensor, layers: Sequence[int], seen: dict[int, Tensor]) -> list[Tensor]:
        """The maps of :meth:`forward`; also stores the outputs of ``layers`` in ``seen``."""
        divisor = self.design.divisor
        if x.ndim != 5 or any(size % divisor or size < 2 * divisor for size in x.shape[2:]):
            raise ShapeError(
                f"The input has shape {tuple(x.shape)}; expected (B, C, z, y, x) with axes that are multiples of "
                f"{divisor} and at least {2 * divisor}. Pad it, or take a patch that fits."
            )
        x = _apart(x, self.images)
        skips = []
        for index, layer in self.model.items():
            if isinstance(layer, nn.MaxPool3d | nn.AvgPool3d):
                skips.append(_together(x, self.images))
            x = layer(x)
            if int(index) in layers:
                seen[int(index)] = _together(x, self.images)
        return [*skips, _together(x, self.images)]


class AnatomixDecoder(nn.Module):
    """The layers from the bottleneck to the released output, and a 1x1x1 segmentation layer per level.

    Attributes:
        deep_supervision: nnU-Net's trainer sets it; the parameters do not depend on it.
        seg_layers: the segmentation layers, coarsest first.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], design: Design, images: int, num_classes: int, deep_supervision: bool
    ) -> None:
        super().__init__()
        self.model = nn.ModuleDict(layers)
        self.images = images
        self.deep_supervision = deep_supervision
        widths = [design.width * 2**level for level in range(design.levels - 1, 0, -1)] + [design.features]
        self.seg_layers = nn.ModuleList(nn.Conv3d(images * width, num_classes, 1) for width in widths)

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Logits at full resolution, or with deep supervision those of every level, finest first."""
        maps = self.run(skips, (), {})
        if not self.deep_supervision:
            return self.seg_layers[-1](maps[-1])
        return [head(x) for head, x in zip(self.seg_layers, maps, strict=True)][::-1]

    def run(self, skips: Sequence[Tensor], layers: Sequence[int], seen: dict[int, Tensor]) -> list[Tensor]:
        """Inputs of the segmentation layers, coarsest first, the released output last; ``seen`` as in the encoder."""
        *skips, x = (_apart(skip, self.images) for skip in skips)
        maps = []
        for index, layer in self.model.items():
            upsampling = isinstance(layer, nn.Upsample)
            if upsampling and len(skips) < len(self.seg_layers):  # not the first: a level of the decoder ends here
                maps.append(_together(x, self.images))
            x = layer(x)
            if upsampling:
                x = torch.cat((skips.pop(), x), 1)
            if int(index) in layers:
                seen[int(index)] = _together(x, self.images)
        return [*maps, _together(x, self.images)]


class AnatomixUNet(nn.Module):
    """A released anatomix U-Net with 1x1x1 segmentation layers, which nnU-Net can build, train and predict with.

    >>> AnatomixUNet(input_channels=1, num_classes=3)(torch.rand(1, 1, 32, 32, 32)).shape
    torch.Size([1, 3, 32, 32, 32])

    Args:
        input_channels: channels of the image.
        num_classes: classes of the segmentation.
        variant: a name in :data:`DESIGNS`.
        strides: strides of the encoder stages in the plans, which must be those of the variant.
        channels: how several input channels enter a network of one. "averaged": the first layer takes all of them, and
            the released kernel is divided by their number and repeated. "separate": the network runs on each channel
            with the same weights, and the segmentation layers read the features of all.
        deep_supervision: return logits of every level, finest first.

    Raises:
        OptionError: there is no such variant or no such value of ``channels``.
        UnsupportedConfigurationError: the plans have other strides.
    """

    #: The layer that takes the image, as nnU-Net's networks name it.
    keys_to_in_proj = ("encoder.model.0",)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        variant: str = "anatomix",
        strides: Sequence[Sequence[int]] | None = None,
        channels: Literal["averaged", "separate"] = "averaged",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        design = design_of(variant)
        if strides is not None and [list(stride) for stride in strides] != design.strides:
            raise UnsupportedConfigurationError(
                f"The plans give the U-Net {variant!r} the strides {list(strides)}; it has {design.strides}. Take the "
                "plans that `nnunet-invariance weights plan` writes."
            )
        if channels not in ("averaged", "separate"):
            raise OptionError(f"'channels' of the U-Net is {channels!r}; expected 'averaged' or 'separate'.")
        images = input_channels if channels == "separate" else 1
        layers = design.layers(1 if channels == "separate" else input_channels)
        split = design.first_of_decoder
        named = [(str(index), layer) for index, layer in enumerate(layers)]
        self.variant = variant
        self.features_per_image = design.features
        self.encoder = AnatomixEncoder(dict(named[:split]), design, images)
        self.decoder = AnatomixDecoder(dict(named[split:]), design, images, num_classes, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, *spatial) to logits (B, num_classes, *spatial), or the list of them."""
        return self.decoder(self.encoder(x))

    def features(self, x: Tensor) -> Tensor:
        """The released output, before the segmentation layer: (B, ``features``, *spatial) per separate channel."""
        return self.decoder.run(self.encoder(x), (), {})[-1]

    def activations(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of layers of the released list, in the order of ``layers``.

        The output of an upsampling layer includes the concatenated skip connection; that of a normalisation is
        overwritten by the activation after it, which works in place.
        """
        seen: dict[int, Tensor] = {}
        self.decoder.run(self.encoder.run(x, layers, seen), layers, seen)
        return [seen[layer] for layer in layers]

    def layer_channels(self, layers: Sequence[int]) -> list[int]:
        """Output channels of convolutions of the released list."""
        modules = {**dict(self.encoder.model.items()), **dict(self.decoder.model.items())}
        convolutions = [modules[str(layer)] for layer in layers]
        return [module.out_channels for module in convolutions if isinstance(module, nn.Conv3d)]

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Normal by fan-in for kernels (Kaiming), N(1, 0.02) for the weights of batch norm, 0 for biases."""
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight, 1.0, 0.02)
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)


def own_name(released: str, variant: str) -> str:
    """Our name of a tensor of a released file.

    >>> own_name("model.41.weight", "anatomix")
    'decoder.model.41.weight'
    """
    in_encoder = int(released.split(".")[1]) < design_of(variant).first_of_decoder
    return f"{'encoder' if in_encoder else 'decoder'}.{released}"


def arch_kwargs(variant: str, channels: Literal["averaged", "separate"] = "averaged") -> dict[str, object]:
    """Arguments of the network for plans."""
    return {"variant": variant, "strides": design_of(variant).strides, "channels": channels}


def _apart(x: Tensor, images: int) -> Tensor:
    """(B, images * C, *spatial) to (B * images, C, *spatial)."""
    return x if images == 1 else x.unflatten(1, (images, -1)).flatten(0, 1)


def _together(x: Tensor, images: int) -> Tensor:
    """The inverse of :func:`_apart`."""
    return x if images == 1 else x.unflatten(0, (-1, images)).flatten(1, 2)
