"""Copies of small tables from the host to a device, for which the host does not wait."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["copy_to"]


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
