"""Select samples, the finest output and labels from nnU-Net's outputs and targets, with or without deep supervision."""

from collections.abc import Sequence

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor


def rows_of(values: Tensor | Sequence[Tensor], rows: slice) -> Tensor | list[Tensor]:
    """Select samples of a tensor, or of each tensor of a list (outputs of deep supervision).

    >>> import torch
    >>> [len(rows) for rows in rows_of([torch.zeros(4, 1), torch.zeros(4, 2)], slice(3))]
    [3, 3]
    """
    return values[rows] if isinstance(values, Tensor) else [value[rows] for value in values]


def finest(values: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the full-resolution tensor, with or without deep supervision."""
    return values if isinstance(values, Tensor) else values[0]


def cloned(values: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Copies of a tensor, or of each tensor of a list.

    >>> import torch
    >>> [len(copy) for copy in cloned([torch.zeros(2), torch.zeros(3)])]
    [2, 3]
    """
    return values.clone() if isinstance(values, Tensor) else [value.clone() for value in values]


def tissue_labels(target: Tensor, manager: LabelManager) -> tuple[Tensor, int]:
    """Return the label of each voxel (B, 1, *spatial) int64, and the number of labels.

    If nnU-Net trains on regions (B, R, *spatial), the label is the number of regions that contain the voxel, which
    identifies the class if the regions are nested.
    """
    if manager.has_regions:
        return target.sum(1, keepdim=True).long(), target.shape[1] + 1
    return target.long(), max(*manager.all_labels, manager.ignore_label or 0) + 1


def labels_of(manager: LabelManager) -> tuple[int, ...]:
    """All labels that a segmentation of a data set may have, the ignore label included."""
    return tuple({*map(int, manager.all_labels), *([manager.ignore_label] if manager.has_ignore_label else [])})
