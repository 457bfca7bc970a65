"""Precision of a training: autocast of the passes of networks, a loss scale, and losses in float32 or better."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_invariance.errors import OptionError

__all__ = ["Float32Loss", "Precision", "at_least_float32"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: What a device computes in, by its type; other devices compute in float32 only.
SUPPORTED = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}


@dataclass(frozen=True)
class Precision:
    """The dtype that a training's networks compute in on a device.

    >>> precision = Precision.choose("bf16", torch.device("cpu"))
    >>> with precision.autocast():
    ...     nn.Linear(2, 2)(torch.ones(1, 2)).dtype
    torch.bfloat16
    """

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, name: str, device: torch.device) -> "Precision":
        """The precision for one of ``auto``, ``fp32``, ``bf16`` and ``fp16``.

        Raises:
            OptionError: the device does not support it.
        """
        supported = SUPPORTED.get(device.type, ("fp32",))
        if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            supported = ("fp32", "fp16")
        if name == "auto":
            return cls(device, DTYPES[_automatic(device, supported)])
        if name not in supported:
            found = f"Option 'precision' is {name!r}, but the device {device} supports {', '.join(supported)}"
            raise OptionError(f"{found}. Choose one of these, or 'auto'.")
        return cls(device, DTYPES[name])

    @property
    def name(self) -> str:
        """Name as an option.

        >>> Precision.choose("fp32", torch.device("cpu")).name
        'fp32'
        """
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    def autocast(self) -> AbstractContextManager:
        """Context of a forward pass; a backward pass belongs outside of it.

        It also sets the dtype of an autocast inside of it that names none, such as that of nnU-Net's validation.
        """
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def make_scaler(self) -> torch.amp.GradScaler | None:
        """A loss scale for float16, whose gradients would underflow; None for the others."""
        return torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None


def _automatic(device: torch.device, supported: tuple[str, ...]) -> str:
    if device.type != "cuda":
        # Not bf16: with torch 2.14.1, the backward pass of bf16 convolutions corrupts memory on CPUs with AMX (16
        # channels on planes of 96 x 96 voxels end the process with "double free").
        return "fp32"
    return "bf16" if "bf16" in supported else "fp16"


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; float32 and float64 are unchanged.

    >>> at_least_float32(torch.ones(1, dtype=torch.float16)).dtype
    torch.float32
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Float32Loss(nn.Module):
    """A segmentation loss that is computed in float32, whatever the precision of the network.

    >>> loss = Float32Loss(nn.CrossEntropyLoss())
    >>> loss(torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.long)).dtype
    torch.float32

    Args:
        loss: called with the logits, a tensor or one per resolution, and the target.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor | list[Tensor] | tuple[Tensor, ...], target: Any) -> Tensor:
        """The loss of logits of any precision."""
        parts = [logits] if isinstance(logits, Tensor) else list(logits)
        with torch.autocast(parts[0].device.type, enabled=False):
            wide = [at_least_float32(part) for part in parts]
            return self.loss(wide[0] if isinstance(logits, Tensor) else wide, target)
