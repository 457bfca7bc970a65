"""Copies of small tables from the host to a device, for which the host does not wait."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["copy_to", "copy_together"]


def copy_to(device: torch.device, values: Tensor | Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    """A tensor, or numbers, as a tensor on a device.

    ``torch.tensor(..., device=...)`` and ``Tensor.to`` wait until the device has done all earlier work, which takes
    longer than most operations. A copy from pinned memory does not.

    >>> copy_to(torch.device("cpu"), (1.0, 2.0))
    tensor([1., 2.])
    """
    found = values.to(dtype or values.dtype) if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if device.type == "cuda" and not found.is_cuda:
        found = found.pin_memory()
    return found.to(device, non_blocking=True)


def copy_together(device: torch.device, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy small tensors to a device as float32 in one transfer; whole numbers up to 2^24 stay exact.

    >>> [part.tolist() for part in copy_together(torch.device("cpu"), [torch.tensor([1, 2]), torch.tensor(0.5)])]
    [[1.0, 2.0], 0.5]
    """
    packed = copy_to(device, torch.cat([tensor.flatten().float() for tensor in tensors]))
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
