"""What auxiliary losses and interventions read off nnU-Net's targets, with or without deep supervision."""

from collections.abc import Sequence

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor


def rows_of(values: Tensor | Sequence[Tensor], rows: slice) -> Tensor | list[Tensor]:
    """Some samples of a tensor, or of each of a list (stages, deep supervision)."""
    return values[rows] if isinstance(values, Tensor) else [value[rows] for value in values]


def finest(values: Tensor | Sequence[Tensor]) -> Tensor:
    """The full resolution, with or without deep supervision."""
    return values if isinstance(values, Tensor) else values[0]


def tissue_labels(target: Tensor, manager: LabelManager) -> tuple[Tensor, int]:
    """The label of each voxel as interventions read it, (B, 1, *spatial) int64, and how many labels there are.

    Where nnU-Net trains on regions (B, R, *spatial), the number of regions that hold a voxel stands for its label:
    regions are nested.
    """
    if manager.has_regions:
        return target.sum(1, keepdim=True).long(), target.shape[1] + 1
    return target.long(), max(*manager.all_labels, manager.ignore_label or 0) + 1
