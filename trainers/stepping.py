"""One step of the optimiser."""

import torch
from torch import nn

GRADIENT_NORM = 12  # nnU-Net's own


def clipped_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None) -> None:
    """Clip the gradients of all groups together, then step; a scaler skips gradients that are not finite."""
    if scaler is not None:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], GRADIENT_NORM)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
