"""Tables of positions of transformers, on the grid of another patch."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.errors import CheckpointCorruptError
from nnunet_invariance.weights.checkpoint import Checkpoint


def resize_positions(table: Tensor, found: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """A table (1, prod(found), C) interpolated trilinearly, cells not corners aligned, to (1, prod(wanted), C).

    This is the rule of nnssl's fine-tuning.
    """
    grid = table.transpose(1, 2).unflatten(2, list(found)).float()
    return F.interpolate(grid, list(wanted), mode="trilinear").flatten(2).transpose(1, 2)


def fitting_positions(
    network: nn.Module, checkpoint: Checkpoint, name: str, value: Tensor
) -> tuple[Tensor, str] | None:
    """The table of another patch for this network's, and the rule in words; None where there is nothing to do.

    The network says which tensor it is (``positions``), its encoder on which ``grid`` it lies.

    Raises:
        CheckpointCorruptError: the table is not as long as the patch of its file says.
    """
    if name != getattr(network, "positions", None):
        return None
    shape = checkpoint.metadata["architecture"]["arch_kwargs"]["input_shape"]
    wanted, stride = network.encoder.grid, network.encoder.strides[-1]
    found = [size // step for size, step in zip(shape, stride, strict=True)]
    if value.ndim != 3 or value.shape[1] != math.prod(found):
        msg = (
            f"{checkpoint.path} holds positions of shape {list(value.shape)}, but its patch {shape} has {found} cells."
        )
        raise CheckpointCorruptError(f"{msg} Import the file again.")
    return None if found == wanted else (resize_positions(value, found, wanted), f"positions {found} -> {wanted}")
