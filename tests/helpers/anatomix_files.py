"""Files with the keys and shapes of the released anatomix models, and the 6M U-Net built layer by layer."""

from pathlib import Path

import torch
from torch import Tensor, nn

#: Convolutions of the released lists: index, input and output channels.
CONVOLUTIONS = {
    "anatomix": (
        (0, 1, 16), (3, 16, 16), (6, 16, 16), (10, 16, 32), (13, 32, 32), (17, 32, 64), (20, 64, 64), (24, 64, 128),
        (27, 128, 128), (31, 128, 256), (34, 256, 256), (38, 384, 128), (41, 128, 128), (45, 192, 64), (48, 64, 64),
        (52, 96, 32), (55, 32, 32), (59, 48, 16), (62, 16, 16), (65, 16, 16),
    ),
    "anatomix-dev": (
        (0, 1, 32), (3, 32, 32), (6, 32, 32), (10, 32, 64), (13, 64, 64), (17, 64, 128), (20, 128, 128), (24, 128, 256),
        (27, 256, 256), (31, 256, 512), (34, 512, 512), (38, 512, 1024), (41, 1024, 1024), (45, 1536, 512),
        (48, 512, 512), (52, 768, 256), (55, 256, 256), (59, 384, 128), (62, 128, 128), (66, 192, 64), (69, 64, 64),
        (73, 96, 32), (76, 32, 32), (79, 32, 32),
    ),
}  # fmt: skip
KEYS = {"anatomix": 115, "anatomix-dev": 48}


def released_state(variant: str, seed: int = 0, device: str = "cpu") -> dict[str, Tensor]:
    """A state dict with the keys and shapes of the released file and random values."""
    generator = torch.Generator().manual_seed(seed) if device == "cpu" else None
    state = {}

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(shape, generator=generator, device=device) * scale

    for index, inputs, outputs in CONVOLUTIONS[variant]:
        state[f"model.{index}.weight"] = normal(outputs, inputs, 3, 3, 3, scale=(2 / (27 * inputs)) ** 0.5)
        if variant == "anatomix-dev":
            state[f"model.{index}.bias"] = normal(outputs, scale=0.1)
        elif index != CONVOLUTIONS[variant][-1][0]:
            norm = f"model.{index + 1}"
            state[f"{norm}.weight"] = 1 + normal(outputs, scale=0.1)
            state[f"{norm}.bias"] = normal(outputs, scale=0.1)
            state[f"{norm}.running_mean"] = normal(outputs, scale=0.1)
            state[f"{norm}.running_var"] = 1 + normal(outputs, scale=0.1) ** 2
            state[f"{norm}.num_batches_tracked"] = torch.tensor(7, device=device)
    return state


def write_released(path: Path, variant: str = "anatomix", seed: int = 0, prefix: str = "") -> dict[str, Tensor]:
    """Write a file like the released one; returns its content without the prefix."""
    state = released_state(variant, seed)
    torch.save({prefix + key: value for key, value in state.items()}, path)
    return state


class ReleasedUNet(nn.Module):
    """Reference network: the layer list of the 6M file with skips by index; shares no code with the package."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, inputs, outputs in CONVOLUTIONS["anatomix"]:
            while len(layers) < index:
                layers.append(nn.MaxPool3d(2) if len(layers) in (9, 16, 23, 30) else nn.Upsample(scale_factor=2))
            layers.append(nn.Conv3d(inputs, outputs, 3, padding="same", padding_mode="reflect", bias=False))
            if index != 65:
                layers += [nn.BatchNorm3d(outputs), nn.ReLU()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """The output of every layer."""
        outputs = {}
        for index, layer in enumerate(self.model):
            x = layer(x)
            if index in (37, 44, 51, 58):
                x = torch.cat((outputs[{37: 29, 44: 22, 51: 15, 58: 8}[index]], x), 1)
            outputs[index] = x
        return outputs
