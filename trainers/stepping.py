"""Parts of an optimiser step: moving a batch to the device, averaging gradients over ranks, clipping."""

from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_invariance.augmentation.views import split_views
from nnunet_invariance.trainers.non_finite_guard import NonFiniteGuard

GRADIENT_NORM = 12  # as in nnU-Net


def views_on_device(batch: dict[str, Any], channels: int, device: torch.device) -> dict[str, Any]:
    """Add ``views`` (on the device) and ``valid_mask`` (where the batch is) to nnU-Net's batch, and move ``target``."""
    data = batch["data"]
    return {
        **batch,
        "valid_mask": split_views(data, channels).valid_mask,
        "views": split_views(data.to(device, non_blocking=True), channels),
        "target": target_on_device(batch["target"], device),
    }


def target_on_device(target: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """Move a target to the device; a list has one target per resolution."""
    if isinstance(target, list):
        return [part.to(device, non_blocking=True) for part in target]
    return target.to(device, non_blocking=True)


def copy_from_first_rank(module: nn.Module) -> None:
    """Copy parameters and buffers of the first rank to all ranks."""
    for value in module.state_dict().values():
        dist.broadcast(value, 0)


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of a module that is not wrapped in DDP over all ranks."""
    for parameter in module.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def clipped_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, guard: NonFiniteGuard) -> None:
    """Clip the total gradient norm and step; a step whose loss or gradients are not finite is skipped."""
    guard.mark_gradients(optimizer)
    if scaler is not None:
        scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], GRADIENT_NORM)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
