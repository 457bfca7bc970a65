"""Sums over the entries with the same index, for which the host does not wait."""

from torch import Tensor

__all__ = ["sum_by_index"]


def sum_by_index(index: Tensor, values: Tensor, size: int) -> Tensor:
    """Sum of the values (..., N) of each index (..., N) in [0, ``size``): (..., ``size``).

    It replaces ``torch.bincount``, which waits until the device has found the largest index.

    >>> import torch
    >>> sum_by_index(torch.tensor([0, 2, 2]), torch.ones(3), 4)
    tensor([1., 0., 2., 0.])
    """
    return values.new_zeros(*values.shape[:-1], size).scatter_add_(-1, index, values)
