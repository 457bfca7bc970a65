"""Copies to a device for which the host does not wait."""

from collections.abc import Sequence

import torch
from torch import Tensor


def move_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy small tensors to a device as float32 in one transfer, for which the host does not wait.

    Whole numbers up to 2^24 stay exact.

    >>> [part.tolist() for part in move_together([torch.tensor([1, 2]), torch.tensor(0.5)], torch.device("cpu"))]
    [[1.0, 2.0], 0.5]
    """
    packed = torch.cat([tensor.flatten().float() for tensor in tensors])
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = packed.to(device, non_blocking=True).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
