"""Mixtures of labelled and unlabelled patches: boxes by a slow search, and labels that count."""

import numpy as np
import pytest
import torch

from nnunet_invariance.trainers.box_mixing import box_mask, labels_of_target
from nnunet_invariance.trainers.pseudo_labels import counted_voxels


def box_of(mask: torch.Tensor) -> tuple[list[int], list[int]]:
    """Lowest index and size of the smallest box around the true voxels; fails if they do not fill it."""
    found = mask.nonzero()
    low, high = found.min(0).values, found.max(0).values
    assert int(mask.sum()) == int((high - low + 1).prod())
    return low.tolist(), (high - low + 1).tolist()


@pytest.mark.parametrize("size", [(9, 12), (6, 9, 3)])
def test_every_patch_has_one_box_inside_or_outside(size):
    masks = box_mask((400, 2, *size), torch.Generator().manual_seed(0), torch.device("cpu"))
    assert masks.shape == (400, 1, *size)
    corner = masks[(slice(None), 0, *(0,) * len(size))]
    edges = [round(2 / 3 * n) for n in size]
    starts, inner = [], 0
    for mask in masks[:, 0]:
        is_inner = int(mask.sum()) == np.prod(edges)  # no box of these sizes has as many voxels as its complement
        low, found = box_of(mask if is_inner else ~mask)
        assert found == edges
        starts.append(low)
        inner += is_inner
    assert 160 < inner < 240
    assert corner.any()
    assert not corner.all()
    for axis, (length, edge) in enumerate(zip(size, edges, strict=True)):
        counts = np.bincount([start[axis] for start in starts], minlength=length - edge + 1)
        assert len(counts) == length - edge + 1
        assert counts.min() > 0.5 * 400 / len(counts)


@pytest.mark.parametrize("ignore", [False, True])
def test_labels_of_the_target_count_unless_they_are_ignored(ignore):
    labels = torch.tensor([0, 1, 2, 3 if ignore else 2]).view(1, 1, 2, 2).to(torch.int16)
    assert counted_voxels(labels_of_target(labels, 3, regions=False), 3, regions=False).sum() == 4 - ignore
    regions = [labels >= 1, labels == 2, *([labels == 3] if ignore else [])]
    target = labels_of_target(torch.cat(regions, 1).to(torch.uint8), 2, regions=True)
    assert target.shape[1] == 3
    assert target.dtype == torch.bool
    assert torch.equal(target[:, -1:], labels == 3)
