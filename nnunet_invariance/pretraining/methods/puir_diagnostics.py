"""Diagnostics of the estimates of X_h: signs of collapse, and the variance that is due to the modality."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nnunet_invariance.losses.modality_invariance import normalize_channels
from nnunet_invariance.networks.presence import over_maps

#: Titles of the measurements.
TITLES = {
    "amplitude": "amplitude of X_h (0: collapse)",
    "variation": "variation of X_h (0: collapse)",
    "modality_share": "share of the modality (lower is better)",
    "individual_share": "share of the subject (0: collapse)",
}
LEAST_AMPLITUDE, LEAST_VARIATION, LEAST_INDIVIDUAL = 0.1, 0.02, 0.02


def sample_present_channels(present: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sample ``count`` different channels per sample, present ones (B, C) before missing ones.

    Returns the indices (B, count) and the mask (B, count) of those that are present.

    >>> present = torch.tensor([[True, False, False]])
    >>> sample_present_channels(present, 2, torch.Generator().manual_seed(0))[1]
    tensor([[ True, False]])
    """
    score = torch.rand(present.shape, generator=generator, device=present.device).masked_fill(~present, -1)
    rank, index = score.topk(count, dim=1)
    return index, rank >= 0


@torch.no_grad()
def measure(profiles: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Measurements over estimates (B, C, F, *spatial) in one frame, of modalities ``present`` (B, C).

    * ``amplitude``: standard deviation over the cells, mean over channels; 0 if X_h has shrunk to nothing.
    * ``variation``: variance of LN(X_h) over cells and samples, mean over channels, in [0, 1]; 0 if X_h is the same
      everywhere and for every subject.
    * ``modality_share``: fraction of this variance that is due to the modality.
    * ``individual_share``: fraction that is left between samples at the same position, if there are two or more
      samples; 0 if X_h depends on the position only and not on the subject.
    """
    number = present.sum().clamp(min=1)
    deviation = profiles.float().flatten(3).std(3).mean(2)
    amplitude = torch.where(present, deviation, 0).sum() / number
    rows = normalize_channels(profiles, 2)
    mask = over_maps(present, rows)
    cells = number * rows[0, 0, 0].numel()
    axes = (0, 1, *range(3, rows.ndim))
    mean = torch.where(mask, rows, 0).sum(axes, keepdim=True) / cells
    variation = torch.where(mask, rows - mean, 0).square().sum() / (cells * rows.shape[2])
    own = over_maps(present.sum(1, keepdim=True).clamp(min=1), rows)
    individual = torch.where(mask, rows, 0).sum(1, keepdim=True) / own
    between = torch.where(mask, rows - individual, 0).square().sum() / (cells * rows.shape[2])
    shares = {"modality_share": between / variation.clamp(min=1e-12)}
    if len(rows) > 1:
        not_empty = present.any(1).view(-1, *[1] * (rows.ndim - 1))
        subjects = not_empty.sum().clamp(min=1)
        position_mean = torch.where(not_empty, individual, 0).sum(0, keepdim=True) / subjects
        squares = torch.where(not_empty, individual - position_mean, 0).square().sum()
        shares["individual_share"] = squares / (subjects * individual[0].numel()) / variation.clamp(min=1e-12)
    return {"amplitude": amplitude, "variation": variation, **shares}


def collapse_warnings(means: Mapping[str, float]) -> list[str]:
    """Warnings about signs of collapse in the means of an epoch."""
    found = []
    if means["amplitude"] < LEAST_AMPLITUDE:
        found.append(
            f"collapse: X_h has shrunk to an amplitude of {means['amplitude']:.3f}; raise the weight of the "
            "reconstruction (--set weight_decomposition=2)"
        )
    if means["variation"] < LEAST_VARIATION:
        share = means["variation"]
        found.append(
            f"collapse: X_h is nearly the same everywhere and for every subject (variation {share:.3f}); raise the "
            "weight of the reconstruction (--set weight_decomposition=2)"
        )
    if means.get("individual_share", 1.0) < LEAST_INDIVIDUAL:
        share = means["individual_share"]
        found.append(
            f"collapse: X_h is nearly the same for every subject (individual share {share:.3f}); "
            "lower the weight of the invariance (--set weight_invariance=0.5)"
        )
    return found
