"""Position tables of transformers, interpolated to the grid of another patch size."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import CheckpointCorruptError
from nnunet_invariance.weights.checkpoint import Checkpoint


def resize_positions(table: Tensor, found: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Interpolate a table (1, prod(found), C) trilinearly to (1, prod(wanted), C), as nnssl's fine-tuning does.

    Cells are aligned, not corners (``align_corners=False``).

    >>> import torch
    >>> resize_positions(torch.zeros(1, 8, 5), (2, 2, 2), (3, 3, 3)).shape
    torch.Size([1, 27, 5])
    """
    grid = table.transpose(1, 2).unflatten(2, list(found)).float()
    return F.interpolate(grid, list(wanted), mode="trilinear").flatten(2).transpose(1, 2)


def fitting_positions(
    network: nn.Module, checkpoint: Checkpoint, name: str, value: Tensor
) -> tuple[Tensor, str] | None:
    """The table in the file for the patch size of this network, and the rule in words; None if nothing has to change.

    The attribute ``positions`` of a network names its table, and ``encoder.grid`` gives the number of cells per axis.

    Raises:
        CheckpointCorruptError: the length of the table does not match the patch size in the file.
    """
    if name != getattr(network, "positions", None):
        return None
    shape = checkpoint.metadata["architecture"]["arch_kwargs"]["input_shape"]
    encoder: Any = network.encoder
    wanted, stride = encoder.grid, encoder.strides[-1]
    found = [size // step for size, step in zip(shape, stride, strict=True)]
    if value.ndim != 3 or value.shape[1] != math.prod(found):
        msg = f"{checkpoint.path} has positions of shape {list(value.shape)}, but its patch {shape} has {found} cells."
        raise CheckpointCorruptError(f"{msg} Import the file again.")
    return None if found == wanted else (resize_positions(value, found, wanted), f"positions {found} -> {wanted}")
