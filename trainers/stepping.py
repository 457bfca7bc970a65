"""One step of the optimiser: what goes in, and how gradients become a step."""

from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from nnunet_invariance.augmentation.views import split_views

GRADIENT_NORM = 12  # nnU-Net's own


def views_on_device(batch: dict[str, Any], channels: int, device: torch.device) -> dict[str, Any]:
    """A batch of nnU-Net with ``views`` and ``target`` on the device, and ``content`` on the CPU."""
    data, target = batch["data"], batch["target"]
    moved = [part.to(device, non_blocking=True) for part in (target if isinstance(target, list) else [target])]
    return {
        **batch,
        "content": split_views(data, channels).valid_mask,
        "views": split_views(data.to(device, non_blocking=True), channels),
        "target": moved if isinstance(target, list) else moved[0],
    }


def copy_from_first_rank(module: nn.Module) -> None:
    """Give all ranks the values of the first."""
    for value in module.state_dict().values():
        dist.broadcast(value, 0)


def average_gradients(module: nn.Module) -> None:
    """Over all ranks, for a module outside of DDP."""
    for parameter in module.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


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
