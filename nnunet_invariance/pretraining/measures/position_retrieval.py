"""Measures of a pre-trained network on held-out volumes: position retrieval and masked error."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.augmentation.device_views import apply_affine, apply_intensity, sample_affine, sample_intensity
from nnunet_invariance.augmentation.masking import sample_block_mask, upsample_cells, valid_cells
from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.networks.planned import PlannedModule, cumulative_strides, to_tokens, token_stage
from nnunet_invariance.nnunet.cases import Case, load_volume
from nnunet_invariance.pretraining.data.crops import crop, crop_origin


def _central_crops(cases: Sequence[Case], size: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    for case in cases:
        middle = np.asarray(case.body, dtype=float).mean(1)
        image, valid = crop(load_volume(case), crop_origin(case.shape, middle, size), size)
        yield torch.from_numpy(image)[None], torch.from_numpy(valid)[None]


def token_centres(grid: Sequence[int], cell: Sequence[int], spacing: Sequence[float]) -> Tensor:
    """Offsets of the token centres from the patch centre in mm, (N, 3) for a grid of N tokens.

    >>> token_centres((1, 1, 2), (8, 8, 8), (1.0, 1.0, 2.0))
    tensor([[ 0.,  0., -8.],
            [ 0.,  0.,  8.]])
    """
    axes = [(torch.arange(n) + 0.5 - n / 2) * c * s for n, c, s in zip(grid, cell, spacing, strict=True)]
    return torch.tensor(list(itertools.product(*[a.tolist() for a in axes])))


@torch.no_grad()
def position_retrieval(
    encoder: PlannedModule, cases: Sequence[Case], size: Sequence[int], spacing: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """Mean error, in mm, of finding a token of one view in another view of the same volume by cosine similarity.

    The second view is transformed by a known affine map and changed in intensity, so that the true position of every
    token is known. Tokens in the padding, and tokens whose true position is outside of the patch, are left out.

    Args:
        encoder: returns its feature maps, finest first.
        cases: held-out volumes; the central crop of each is used.
        size: of the crops, voxels.
        spacing: mm per voxel.
        seed: of the views.

    Returns:
        The mean error, and the mean error of a random valid token.
    """
    stage = token_stage(encoder.strides)
    cell = cumulative_strides(encoder.strides)[stage]
    generator = torch.Generator().manual_seed(seed)
    centres = token_centres([n // c for n, c in zip(size, cell, strict=True)], cell, spacing)
    reach = torch.tensor([n * s / 2 for n, s in zip(size, spacing, strict=True)])
    errors, chance = [], []
    for image, valid in _central_crops(cases, size):
        matrix = sample_affine(1, spacing, generator)
        inside = apply_affine(valid, matrix, spacing, mode="nearest")
        first = apply_intensity(image, sample_intensity(image.shape, generator)) * valid
        second = (
            apply_intensity(apply_affine(image, matrix, spacing), sample_intensity(image.shape, generator)) * inside
        )
        a, b = (F.normalize(to_tokens(encoder(x)[stage])[0], dim=-1) for x in (first, second))
        true = centres @ torch.linalg.inv(matrix[0]).T  # the output at the offset o shows the input at M o
        queries = valid_cells(valid, cell).flatten() & (true.abs() < reach).all(1)
        candidates = valid_cells(inside, cell).flatten()
        found = (a[queries] @ b[candidates].T).argmax(1)
        errors.append((centres[candidates][found] - true[queries]).norm(dim=1))
        chance.append(torch.cdist(true[queries], centres[candidates]).mean(1))
    return torch.cat(errors).mean().item(), torch.cat(chance).mean().item()


@torch.no_grad()
def masked_error(
    network: PlannedModule, cases: Sequence[Case], size: Sequence[int], ratio: float = 0.75, seed: int = 0
) -> float:
    """Mean squared error on the hidden voxels of central crops; ``ratio`` is the fraction of hidden cells."""
    cell = cumulative_strides(network.encoder.strides)[token_stage(network.encoder.strides)]
    generator = torch.Generator().manual_seed(seed)
    loss = MaskedReconstructionLoss()
    errors = []
    for image, valid in _central_crops(cases, size):
        hidden = upsample_cells(sample_block_mask(valid_cells(valid, cell), ratio, generator), cell)
        errors.append(loss(network(image * ~hidden), image, hidden & valid).item())
    return float(np.mean(errors))
