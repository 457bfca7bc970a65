"""Views and masks by their laws."""

import math

import pytest
import torch

from nnunet_invariance.augmentation.device_views import (
    Intensity,
    apply_affine,
    apply_intensity,
    sample_affine,
    sample_intensity,
)
from nnunet_invariance.augmentation.masking import sample_block_mask, upsample_cells, valid_cells


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_identity_matrix_is_identity():
    x = torch.randn(2, 1, 6, 8, 10)
    assert torch.allclose(apply_affine(x, torch.eye(3).repeat(2, 1, 1), (3.0, 1.0, 2.0)), x, atol=1e-4)


def test_quarter_turn_in_mm_equals_rot90_also_with_anisotropic_spacing():
    x = torch.randn(1, 1, 4, 8, 8)
    matrix = torch.tensor([[[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]])  # output (y, x) reads input (-x, y)
    warped = apply_affine(x, matrix, (5.0, 1.0, 1.0))
    assert torch.allclose(warped, torch.rot90(x, -1, (3, 4)), atol=1e-4)


def test_scale_law():
    ramp = torch.linspace(-1, 1, 33)[None, None, :, None, None].expand(1, 1, 33, 5, 5)
    warped = apply_affine(ramp, 0.5 * torch.eye(3)[None], (1.0, 1.0, 1.0))
    assert torch.allclose(warped[..., 2:-2, 2, 2], 0.5 * ramp[..., 2:-2, 2, 2], atol=1e-3)


def test_drawn_rotations_are_proper_and_within_range():
    matrix = sample_affine(64, (1.0, 1.0, 1.0), _generator())
    scale = torch.linalg.det(matrix) ** (1 / 3)
    assert scale.min() >= 0.9 - 1e-5
    assert scale.max() <= 1.1 + 1e-5
    rotation = matrix / scale[:, None, None]
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(64, 3, 3), atol=1e-5)
    angle = torch.arccos(((rotation.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2).clamp(-1, 1))
    assert 0.05 < angle.max() < 3 * math.radians(15)


def test_anisotropic_patches_are_turned_in_plane_only():
    matrix = sample_affine(8, (6.5, 1.0, 1.0), _generator())
    assert torch.allclose(matrix[:, 0], torch.tensor([1.0, 0, 0]).expand(8, 3), atol=1e-6)
    assert torch.allclose(matrix[:, :, 0], torch.tensor([1.0, 0, 0]).expand(8, 3), atol=1e-6)


def test_same_seed_same_view_other_seed_other_view():
    x = torch.randn(2, 2, 5, 5, 5)
    one, two, other = (apply_intensity(x, sample_intensity(x.shape, _generator(s))) for s in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.allclose(one, other)


def test_neutral_intensity_is_identity_and_constant_stays_finite():
    x = torch.randn(2, 1, 4, 4, 4)
    one = torch.ones(2, 1, 1, 1, 1)
    neutral = Intensity(one, one, 0 * one, torch.zeros_like(x))
    assert torch.allclose(apply_intensity(x, neutral), x, atol=1e-5)
    flat = apply_intensity(torch.full_like(x, 2.0), sample_intensity(x.shape, _generator()))
    assert torch.isfinite(flat).all()
    assert torch.allclose(flat, torch.full_like(x, 2.0), atol=1e-4)


def test_mask_hides_the_ratio_of_valid_cells_and_nothing_else():
    cells = torch.rand(5, 1, 3, 4, 5, generator=_generator()) > 0.3
    cells[4] = False
    cells[4, 0, 0, 0, :2] = True
    hidden = sample_block_mask(cells, 0.75, _generator(1))
    assert not (hidden & ~cells).any()
    for b in range(4):
        assert hidden[b].sum() == round(0.75 * cells[b].sum().item())
    assert hidden[4].sum() == 1  # one of two stays visible
    again = sample_block_mask(cells, 0.75, _generator(1))
    assert torch.equal(hidden, again)
    assert not torch.equal(hidden, sample_block_mask(cells, 0.75, _generator(2)))


def test_every_valid_cell_is_hidden_as_often():
    cells = torch.ones(4000, 1, 2, 2, 2, dtype=torch.bool)
    share = sample_block_mask(cells, 0.75, _generator()).float().mean(0)
    assert (share - 0.75).abs().max() < 0.03


@pytest.mark.parametrize("cell", [(2, 2, 2), (1, 4, 4)])
def test_cells_and_voxels_agree(cell):
    grid = torch.rand(2, 1, 3, 2, 2, generator=_generator()) > 0.5
    grid[:, :, 0, 0, 0] = True
    voxels = upsample_cells(grid, cell)
    assert voxels.shape[2:] == (3 * cell[0], 2 * cell[1], 2 * cell[2])
    assert torch.equal(valid_cells(voxels, cell), grid)


def test_the_fullest_cell_counts_where_none_is_half_full():
    voxels = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    voxels[0, 0, 1, 1, 1] = True
    cells = valid_cells(voxels, (2, 2, 2))
    assert cells.sum() == 1
    assert cells[0, 0, 0, 0, 0]
