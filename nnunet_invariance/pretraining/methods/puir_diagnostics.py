"""What can be seen on estimates of X_h: whether they collapse, and how much of them is due to the modality."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nnunet_invariance.losses.modality_invariance import normalize_channels
from nnunet_invariance.networks.presence import over_maps

LEAST_AMPLITUDE, LEAST_VARIATION, LEAST_INDIVIDUAL = 0.1, 0.02, 0.02


def random_present(present: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``count`` channels a sample, those that are present first: (B, count) indices, and which of them are present."""
    score = torch.rand(present.shape, generator=generator, device=present.device).masked_fill(~present, -1)
    rank, index = score.topk(count, dim=1)
    return index, rank >= 0


@torch.no_grad()
def measure(profiles: Tensor, present: Tensor) -> dict[str, Tensor]:
    """Measurements over estimates (B, C, F, *spatial) in one frame, of modalities ``present`` (B, C).

    ``amplitude``: standard deviation over the cells, mean over channels; 0 where X_h has shrunk to nothing.
    ``variation``: variance of LN(X_h) over cells and samples, mean over channels, in [0, 1]; 0 where X_h is the same
    everywhere and for everybody. ``modality_share``: the part of that variance which is due to the modality.
    ``individual_share``: the part which is left between samples at one place, where there are two or more; 0 where X_h
    says where it is and nothing of who it is.
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
        whom = present.any(1).view(-1, *[1] * (rows.ndim - 1))
        people = whom.sum().clamp(min=1)
        place = torch.where(whom, individual, 0).sum(0, keepdim=True) / people
        apart = torch.where(whom, individual - place, 0).square().sum() / (people * individual[0].numel())
        shares["individual_share"] = apart / variation.clamp(min=1e-12)
    return {"amplitude": amplitude, "variation": variation, **shares}


def warnings_of(means: Mapping[str, float]) -> list[str]:
    """Signs of collapse in the means of an epoch."""
    found = []
    if means["amplitude"] < LEAST_AMPLITUDE:
        found.append(
            f"collapse: X_h has shrunk to an amplitude of {means['amplitude']:.3f}; raise weight_decomposition"
        )
    if means["variation"] < LEAST_VARIATION:
        share = means["variation"]
        found.append(f"collapse: X_h is nearly the same everywhere and for everybody (variation {share:.3f})")
    if means.get("individual_share", 1.0) < LEAST_INDIVIDUAL:
        share = means["individual_share"]
        found.append(
            f"collapse: X_h is nearly the same for everybody (individual share {share:.3f}); lower weight_invariance"
        )
    return found
