"""Synthetic patches of three tissues that every subject shares, in three modalities."""

import torch
from torch import Tensor

PATCH = (16, 16, 16)


TABLES = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 3.0, 1.0, 2.0], [0.0, 2.0, 3.0, 1.0]])  # (modality, tissue)


def individuals(count: int, seed: int) -> Tensor:
    """Patches (count, 3, ...) with a body of three tissues; a modality assigns the same intensities in every body."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 5, 5, 5, generator=generator)
    field = torch.nn.functional.interpolate(coarse, PATCH, mode="trilinear", align_corners=False)[:, 0]
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in PATCH], indexing="ij")
    centre = 0.2 * torch.randn(count, 3, generator=generator)
    body = sum((a - c[:, None, None, None]).square() for a, c in zip(axes, centre.T, strict=True)) < 0.7
    tissue = body * (1 + (field > -0.3).long() + (field > 0.3))
    return TABLES[:, tissue].movedim(0, 1) + 0.05 * torch.randn(count, 3, *PATCH, generator=generator)


def batch(image: Tensor) -> dict[str, Tensor]:
    """The patches as a batch of the pre-training, without padding."""
    valid = torch.ones_like(image[:, :1], dtype=torch.bool)
    return {"image": image, "valid": valid, "case": torch.arange(len(image))}
