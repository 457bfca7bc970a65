"""The 3-D ResNet-18 of SAM (Self-supervised Anatomical eMbedding, arXiv 2012.02383), an encoder that yields skips."""

from collections.abc import Sequence

from torch import Tensor, nn

NETWORK = "nnunet_invariance.networks.architectures.resnet3d.ResNet3dNetwork"


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int] = (1, 1, 1)) -> None:
        super().__init__()
        padding = tuple(k // 2 for k in kernel)
        self.conv = nn.Conv3d(inputs, outputs, tuple(kernel), tuple(stride), padding, bias=False)
        self.bn = nn.BatchNorm3d(outputs)
        self.bn.num_batches_tracked = None  # read only where the statistics are cumulative averages
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], shortcut: bool) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(inputs, outputs, kernel, stride)
        self.conv2 = _ConvNorm(outputs, outputs, kernel)
        self.downsample = _ConvNorm(inputs, outputs, (1, 1, 1), stride) if shortcut else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.downsample(x))


class ResNet3d(nn.Module):
    """Four stages of two basic blocks; names of the parameters as in the authors' ``backbone``.

    Shape: (B, C, z, y, x), z a multiple of 4, y and x of 16, to the maps of the stages, finest first: 64, 128, 256
    and 512 channels at strides (2, 2, 2), (2, 4, 4), (2, 8, 8) and (4, 16, 16).
    """

    output_channels = (64, 128, 256, 512)
    strides = ((2, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))

    def __init__(self, input_channels: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(input_channels, 64, (3, 7, 7))
        self.relu = nn.ReLU(inplace=True)
        inputs, plane, cube = 64, (1, 3, 3), (3, 3, 3)
        stages = zip(self.output_channels, (plane, plane, cube, cube), ((1, 2, 2), *self.strides[1:]), strict=True)
        for number, (outputs, kernel, stride) in enumerate(stages, start=1):
            first = _BasicBlock(inputs, outputs, kernel, stride, shortcut=True)
            second = _BasicBlock(outputs, outputs, kernel, (1, 1, 1), shortcut=False)
            self.add_module(f"layer{number}", nn.Sequential(first, second))
            inputs = outputs
        self.pool = nn.MaxPool3d((2, 1, 1))  # brings the first stage to stride 2 along z as well

    def forward(self, x: Tensor) -> list[Tensor]:
        """See the class."""
        first = self.pool(self.layer1(self.relu(self.conv1(x))))
        skips = [first]
        for layer in (self.layer2, self.layer3, self.layer4):
            skips.append(layer(skips[-1]))
        return skips


class ResNet3dNetwork(nn.Module):
    """:class:`ResNet3d` as ``encoder`` of a network without decoder, built from plans as nnU-Net's networks are.

    ``num_classes`` and ``deep_supervision`` belong to that interface; there is no output to which they could apply.
    """

    def __init__(self, input_channels: int, num_classes: int = 1, deep_supervision: bool = False) -> None:
        super().__init__()
        self.encoder = ResNet3d(input_channels)
