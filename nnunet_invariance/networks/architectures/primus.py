"""Primus (arXiv 2503.01835) as a network that plans can name, with an encoder and a decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_invariance.errors import OptionError, ShapeError, UnsupportedConfigurationError

NETWORK = f"{__name__}.Primus"
TOKEN = 8  # voxels a side
STRIDES = [[1] * 3, [TOKEN] * 3]
DROP_PATH, LAYER_SCALE = 0.2, 0.1  # the values of nnU-Net's own Primus trainers

#: Channels, blocks and heads by the names of the paper.
SIZES: Mapping[str, tuple[int, int, int]] = {
    "S": (396, 12, 6),
    "B": (792, 12, 12),
    "M": (864, 16, 12),
    "L": (1056, 24, 16),
}


def grid_of(patch: Sequence[int]) -> list[int]:
    """Number of tokens along each axis of a patch.

    >>> grid_of([96, 160, 160])
    [12, 20, 20]

    Raises:
        UnsupportedConfigurationError: the patch does not have three sides that are multiples of 8.
    """
    if len(patch) != 3 or any(size < TOKEN or size % TOKEN for size in patch):
        raise UnsupportedConfigurationError(
            f"Primus was given a patch of {list(patch)} voxels; expected three sides, each a multiple of {TOKEN}. "
            "Change the patch in the plans copy, in `patch_size` and in `input_shape` of the architecture."
        )
    return [size // TOKEN for size in patch]


def arch_kwargs(variant: str, input_shape: Sequence[int]) -> dict[str, object]:
    """Arguments of the network for plans."""
    return {"n_stages": len(STRIDES), "strides": STRIDES, "variant": variant, "input_shape": list(input_shape)}


class PrimusEncoder(nn.Module):
    """Patch embedding and transformer, with ``output_channels`` and ``strides`` like nnU-Net's encoders."""

    def __init__(self, embedding: nn.Module, eva: Any, input_channels: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.down_projection = embedding
        self.eva = eva
        self.grid = list(grid)
        self.output_channels = [input_channels, eva.embed_dim]
        self.strides = STRIDES

    def forward(self, image: Tensor) -> list[Tensor]:
        """The image and the map of tokens (B, C, *grid).

        Raises:
            ShapeError: the patch is not the one of the position table.
        """
        patch = [TOKEN * size for size in self.grid]
        if list(image.shape[2:]) != patch:
            msg = f"Primus was given {tuple(image.shape)}; expected (B, C, *patch) with the patch {patch} of its plans."
            raise ShapeError(msg)
        tokens, _ = self.eva(self.down_projection(image).flatten(2).transpose(1, 2))
        return [image, tokens.transpose(1, 2).unflatten(2, self.grid)]


class PrimusDecoder(nn.Module):
    """Transposed convolutions from tokens to logits at full resolution.

    Attributes:
        deep_supervision: nnU-Net's trainer sets it; the output is then a list with one element.
    """

    def __init__(self, up_projection: nn.Module, deep_supervision: bool) -> None:
        super().__init__()
        self.up_projection = up_projection
        self.deep_supervision = deep_supervision

    def forward(self, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """The map of tokens, the last of the skips, to logits (B, classes, *spatial)."""
        logits = self.up_projection(skips[-1])
        return [logits] if self.deep_supervision else logits


class Primus(nn.Module):
    """:class:`PrimusEncoder` and :class:`PrimusDecoder`, made of the network of dynamic_network_architectures.

    >>> import torch
    >>> Primus(1, 3, variant="S", input_shape=(16, 16, 16))(torch.rand(1, 1, 16, 16, 16)).shape
    torch.Size([1, 3, 16, 16, 16])

    Args:
        n_stages, strides: of the encoder's maps, with the image as the first; nnU-Net reads them from the plans.
        variant: a name in :data:`SIZES`.
        input_shape: the patch; the position table has one row per token of 8^3 voxels.

    Raises:
        OptionError: there is no such variant.
        UnsupportedConfigurationError: the strides are others, or the patch does not fit.
    """

    #: The first layer, for the transfer to other numbers of channels.
    keys_to_in_proj = ("encoder.down_projection.proj",)
    #: The position table, which is interpolated to other patches.
    positions = "encoder.eva.pos_embed"

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        variant: str,
        input_shape: Sequence[int],
        n_stages: int = 2,
        strides: Sequence[Sequence[int]] = STRIDES,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if variant not in SIZES:
            raise OptionError(f"There is no Primus {variant!r}. Take one of {', '.join(SIZES)}.")
        if n_stages != len(STRIDES) or [list(stride) for stride in strides] != STRIDES:
            msg = f"Primus was given {n_stages} stages and the strides {list(strides)}; expected 2 and {STRIDES}. "
            raise UnsupportedConfigurationError(msg + "Take the plans that `nnunet-invariance weights plan` writes.")
        from dynamic_network_architectures.architectures.primus import Primus as Theirs  # imports timm

        grid = grid_of(input_shape)
        channels, depth, heads = SIZES[variant]
        network = Theirs(
            input_channels,
            channels,
            (TOKEN,) * 3,
            num_classes,
            depth,
            heads,
            tuple(input_shape),
            drop_path_rate=DROP_PATH,
            scale_attn_inner=True,
            init_values=LAYER_SCALE,
        )
        self.variant = variant
        self.encoder = PrimusEncoder(network.down_projection, network.eva, input_channels, grid)
        self.decoder = PrimusDecoder(network.up_projection, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, classes, *patch) of an image (B, C, *patch); in a list with deep supervision."""
        return self.decoder(self.encoder(x))
