"""One patch per labelled case, and the sampled voxels that a probe is fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from torch import Tensor

from nnunet_invariance.pretraining.data.crops import crop, crop_origin


@dataclass(frozen=True)
class LabelledPatch:
    """A patch of one case, centred on its labelled region.

    Attributes:
        name: of the case.
        image: (1, C, *patch).
        labels: (*patch) int64; -1 in the padding and where the label is the ignore label. Voxels outside of the nonzero
            mask of nnU-Net's preprocessing are background.
        complete: whether the patch contains every labelled voxel of the case.

    >>> LabelledPatch("case_1", torch.zeros(1, 1, 4, 4), torch.zeros(4, 4, dtype=torch.long), True).labels.shape
    torch.Size([4, 4])
    """

    name: str
    image: Tensor
    labels: Tensor
    complete: bool


def load_patch(folder: str, name: str, size: Sequence[int], ignore: int | None = None) -> LabelledPatch:
    """Crop a patch at the centre of the foreground's bounding box, or at the image centre if there is no foreground.

    Args:
        folder: folder of nnU-Net's preprocessed cases.
        name: of the case.
        size: of the patch, in voxels.
        ignore: value of the ignore label, if there is one.
    """
    data, segmentation, *_ = infer_dataset_class(folder)(folder, [name]).load_case(name)
    labels = np.asarray(segmentation[:])
    labels = np.where(labels == -1, 0, labels)
    foreground = np.argwhere((labels[0] > 0) & (labels[0] != ignore))
    ends = (
        (foreground.min(0), foreground.max(0) + 1) if len(foreground) else (np.zeros(labels.ndim - 1), labels.shape[1:])
    )
    low = crop_origin(labels.shape[1:], (np.asarray(ends[0]) + np.asarray(ends[1])) / 2, size)
    image, valid = crop(data, low, size)
    cut, _ = crop(labels, low, size)
    cut = np.where(valid & (cut != (-2 if ignore is None else ignore)), cut, -1)[0].astype(np.int64)
    complete = int((cut > 0).sum()) == len(foreground)
    return LabelledPatch(name, torch.from_numpy(image)[None], torch.from_numpy(cut), complete)


def sample_voxels(
    labels: Tensor, num_classes: int, per_class: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample voxels of every class that is present, at most ``per_class`` of each and four times as many of background.

    Returns:
        voxels (N, D) int64 and their labels (N,).
    """
    flat = labels.flatten()
    index = []
    for value in range(num_classes):
        found = (flat == value).nonzero()[:, 0]
        wanted = min(len(found), per_class * (4 if value == 0 else 1))
        index.append(found[torch.randperm(len(found), generator=generator)[:wanted]])
    joined = torch.cat(index)
    return torch.stack(torch.unravel_index(joined, labels.shape), 1), flat[joined]
