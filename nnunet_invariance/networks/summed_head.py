"""A planned U-Net whose segmentation head reads the feature maps of all stages, not only the finest decoder stage."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import ShapeError
from nnunet_invariance.networks.interpolation import LINEAR


class SummedHeadUNet(nn.Module):
    r"""A U-Net of nnU-Net with logits :math:`z = S(d_0) + \sum_m \mathrm{up}(W_m f_m)`.

    :math:`S` is the network's own segmentation layer on the finest decoder map :math:`d_0`, :math:`f_m` are all other
    maps of encoder and decoder, :math:`W_m` are convolutions of kernel size 1 without bias, and up is linear
    interpolation to the size of the image. Each :math:`W_m` is initialised to 0, so the initial outputs equal those of
    the planned network. The coarser outputs of deep supervision are those of the planned network.

    Encoder and decoder keep their parameter names, so that pre-trained weights can be loaded. The names of the
    :math:`W_m` contain ``.seg_layers.``, so that ``nnUNetv2_train -pretrained_weights`` does not expect them in a file.

    Shape: (B, C, *spatial) to (B, K, *spatial), or to a list of such tensors, finest first, with deep supervision.

    Args:
        network: a U-Net of nnU-Net with ``encoder`` and ``decoder``.

    >>> from dynamic_network_architectures.architectures.unet import PlainConvUNet
    >>> planned = PlainConvUNet(1, 2, (4, 8), nn.Conv2d, 3, (1, 2), 1, 3, 1)
    >>> SummedHeadUNet(planned)(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 3, 8, 8])
    """

    encoder: Any  # nnU-Net's networks have no common class
    decoder: Any

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder
        self.planned_class = type(network).__name__  # pre-trained weights are for a network of this class
        convolution = type(self.decoder.seg_layers[-1])
        classes = self.decoder.seg_layers[-1].out_channels
        stages = self.encoder.output_channels
        decoder_channels = [layer.in_channels for layer in self.decoder.seg_layers[:-1]]  # coarsest first
        widths = {f"encoder_{stage}": channels for stage, channels in enumerate(stages)}
        widths |= {f"decoder_{len(decoder_channels) - i}": channels for i, channels in enumerate(decoder_channels)}
        layers = {name: convolution(channels, classes, 1, bias=False) for name, channels in widths.items()}
        self.head = nn.ModuleDict({"seg_layers": nn.ModuleDict(layers)})
        for weight in self.head.parameters():
            nn.init.zeros_(weight)

    @property
    def side_layers(self) -> Any:
        """The :math:`W_m` by the names of their stages, such as "encoder_0"."""
        return self.head["seg_layers"]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Compute the logits; the class docstring has the equation and the shapes."""
        skips = self.encoder(x)
        total = self._side("encoder_0", skips[0], x)
        for stage, skip in enumerate(skips[1:], 1):  # one by one, because the sizes are those of the image
            total = total + self._side(f"encoder_{stage}", skip, x)
        outputs = []
        lower = skips[-1]
        stages = list(zip(self.decoder.transpconvs, self.decoder.stages, self.decoder.seg_layers, strict=True))
        for position, (upsample, stage, layer) in enumerate(stages):
            lower = stage(torch.cat((upsample(lower), skips[-(position + 2)]), 1))
            last = position == len(stages) - 1
            if last:
                total = total + layer(lower)
            else:
                total = total + self._side(f"decoder_{len(stages) - 1 - position}", lower, x)
                if self.decoder.deep_supervision:
                    outputs.append(layer(lower))
        return [total, *reversed(outputs)] if self.decoder.deep_supervision else total

    def _side(self, name: str, feature_map: Tensor, x: Tensor) -> Tensor:
        logits = self.side_layers[name](feature_map)
        size = x.shape[2:]
        if logits.shape[2:] == size:
            return logits
        return F.interpolate(logits, size=size, mode=LINEAR[len(size)], align_corners=False)

    @torch.no_grad()
    def set_head(self, weight: Tensor, bias: Tensor) -> None:
        """Initialise the head with a linear classifier of hypercolumns.

        Args:
            weight: (K, sum of channels), in the order ``encoder_0`` to ``encoder_S``, ``decoder_S-1`` to ``decoder_0``.
            bias: (K,).

        Raises:
            ShapeError: the number of classes or features differs from that of the head.
        """
        finest = self.decoder.seg_layers[-1]
        layers: list[Any] = [*self.side_layers.values(), finest]
        widths = [layer.weight.shape[1] for layer in layers]
        if weight.shape != (len(finest.weight), sum(widths)) or bias.shape != weight.shape[:1]:
            expected = (len(finest.weight), sum(widths))
            raise ShapeError(
                f"weight {tuple(weight.shape)}, bias {tuple(bias.shape)}: expected {expected} and {expected[:1]}."
            )
        for layer, part in zip(layers, weight.split(widths, dim=1), strict=True):
            layer.weight.copy_(part.reshape(layer.weight.shape))
        finest.bias.copy_(bias)

    def compute_conv_feature_map_size(self, input_size: tuple[int, ...]) -> int:
        """Voxels of all feature maps, from which nnU-Net's planner estimates memory; without the side layers."""
        encoder = self.encoder.compute_conv_feature_map_size(input_size)
        return encoder + self.decoder.compute_conv_feature_map_size(input_size)
