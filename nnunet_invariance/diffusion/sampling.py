"""Sampling of slices from noise, a condition and a prompt.

The pipelines of diffusers do not accept given noise for image-to-image. They also round sizes, and treat a condition of
four channels as latents, without a warning. This loop over their networks and schedulers gives the same results as
the pipelines where those apply.
"""

import torch
from torch import Tensor

from nnunet_invariance.diffusion.base_model import BaseModel
from nnunet_invariance.diffusion.options import SamplingOptions
from nnunet_invariance.diffusion.packages import (
    ControlNetModel,
    DDIMScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    config_of,
)
from nnunet_invariance.errors import ShapeError

SCHEDULERS = {"ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler}


@torch.no_grad()
def sample_slices(
    base: BaseModel,
    unet: UNet2DConditionModel,
    control: ControlNetModel,
    condition: Tensor,
    states: Tensor,
    noise: Tensor,
    options: SamplingOptions,
    source: Tensor | None = None,
) -> Tensor:
    """Sample latents (B, 4, h, w) of slices that follow a condition; DDIM with eta 0, or UniPC.

    Args:
        unet: the base model's (Style Swap) or the tuned one.
        condition: (B, K, R, R). states: (2, tokens, D), of the prompt and of the empty one.
        noise: (B, 4, h, w) standard normal.
        source: latents of the source slices; with a strength below 1, sampling starts from them with noise added.

    Raises:
        ShapeError: the condition has another size or number of channels than the networks expect.
    """
    _check_condition(condition, control, noise, base)
    device, dtype = unet.device, unet.dtype
    scheduler = SCHEDULERS[options.scheduler].from_config(config_of(base.scheduler))
    scheduler.set_timesteps(options.steps, device=device)
    skipped = options.steps - int(options.steps * options.strength) if source is not None else 0
    times = scheduler.timesteps[skipped:]
    noise = noise.to(device)
    if source is None:
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(source.to(device).float(), noise, times[:1].repeat(len(noise)))
    guided = options.guidance > 1
    rows = states.flip(0) if guided else states[:1]
    rows = rows.to(device, dtype).repeat_interleave(len(noise), 0)
    condition = condition.to(device, dtype).repeat(2 if guided else 1, 1, 1, 1)
    for time in times:
        both = scheduler.scale_model_input(torch.cat([latents] * (2 if guided else 1)), time).to(dtype)
        down, middle = control(both, time, rows, condition, options.control_scale, return_dict=False)
        output = unet(
            both, time, rows, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample.float()
        if guided:
            empty, prompted = output.chunk(2)
            output = empty + options.guidance * (prompted - empty)
        latents = scheduler.step(output, time, latents, return_dict=False)[0]
    return latents


def _check_condition(condition: Tensor, control: ControlNetModel, noise: Tensor, base: BaseModel) -> None:
    side = [n * base.latent_factor for n in noise.shape[2:]]
    expected = (len(noise), config_of(control).conditioning_channels, *side)
    if tuple(condition.shape) != expected:
        msg = f"The condition has shape {tuple(condition.shape)}; expected {expected}. "
        raise ShapeError(f"{msg}Make it by make_condition, with the classes and extras of the ControlNet's training.")
