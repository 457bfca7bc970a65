"""The 3-D ResNet-18 of SAM (Self-supervised Anatomical eMbedding, arXiv 2012.02383) as an encoder with skips."""

from torch import Tensor, nn

Triple = tuple[int, int, int]
NETWORK = "nnunet_invariance.networks.architectures.resnet3d.ResNet3dNetwork"


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm3d(outputs)
        self.bn.num_batches_tracked = None  # read only where the statistics are cumulative averages
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Triple, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(inputs, outputs, kernel, stride)
        self.conv2 = _ConvNorm(outputs, outputs, kernel)
        self.downsample = _ConvNorm(inputs, outputs, (1, 1, 1), stride) if shortcut else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.downsample(x))


class ResNet3d(nn.Module):
    """Four stages of two basic blocks; the parameters have the names of the authors' ``backbone``.

    Shape: (B, C, z, y, x), z a multiple of 4, y and x of 16, to the maps of the stages, finest first: 64, 128, 256
    and 512 channels at strides (2, 2, 2), (2, 4, 4), (2, 8, 8) and (4, 16, 16).

    >>> import torch
    >>> [tuple(feature_map.shape[1:]) for feature_map in ResNet3d(1)(torch.zeros(2, 1, 4, 16, 16))]
    [(64, 2, 8, 8), (128, 2, 4, 4), (256, 2, 2, 2), (512, 1, 1, 1)]
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    output_channels = (64, 128, 256, 512)
    strides: tuple[Triple, ...] = ((2, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))

    def __init__(self, input_channels: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(input_channels, 64, (3, 7, 7))
        self.relu = nn.ReLU(inplace=True)
        inputs = 64
        plane: Triple = (1, 3, 3)
        cube: Triple = (3, 3, 3)
        stages = zip(self.output_channels, (plane, plane, cube, cube), ((1, 2, 2), *self.strides[1:]), strict=True)
        for number, (outputs, kernel, stride) in enumerate(stages, start=1):
            first = _BasicBlock(inputs, outputs, kernel, stride, shortcut=True)
            second = _BasicBlock(outputs, outputs, kernel, (1, 1, 1), shortcut=False)
            self.add_module(f"layer{number}", nn.Sequential(first, second))
            inputs = outputs
        self.pool = nn.MaxPool3d((2, 1, 1))  # brings the first stage to stride 2 along z as well

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the stages, finest first; the class has the shapes."""
        first = self.pool(self.layer1(self.relu(self.conv1(x))))
        skips = [first]
        for layer in (self.layer2, self.layer3, self.layer4):
            skips.append(layer(skips[-1]))
        return skips


class ResNet3dNetwork(nn.Module):
    """:class:`ResNet3d` as the ``encoder`` of a network without decoder, which nnU-Net can build from plans.

    ``num_classes`` and ``deep_supervision`` belong to that interface and have no effect.

    >>> len(ResNet3dNetwork(1).encoder.output_channels)
    4
    """

    def __init__(self, input_channels: int, num_classes: int = 1, deep_supervision: bool = False) -> None:
        super().__init__()
        self.encoder = ResNet3d(input_channels)
