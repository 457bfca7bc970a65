"""Slices out of noise, a condition and a prompt.

diffusers' own pipelines take no given noise for image-to-image, and they round sizes and mistake conditions for latents
without a word; this loop over their networks and schedulers equals them where they apply.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nnunet_invariance.diffusion.base_model import BaseModel
from nnunet_invariance.diffusion.noise import NOISES
from nnunet_invariance.diffusion.packages import (
    ControlNetModel,
    DDIMScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from nnunet_invariance.errors import OptionError, ShapeError

SCHEDULERS = {"ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler}


@dataclass(frozen=True)
class SamplingOptions:
    """How views are sampled.

    Attributes:
        steps: of the scheduler. guidance: classifier-free, 1 is none. control_scale: weight of the ControlNet.
        strength: share of the steps that are run on the noised source slice; 1 starts from noise alone.
        noise: along the slices of a volume; correlation: of autoregressive noise.

    Raises:
        OptionError: a value is unknown or out of range.
    """

    steps: int = 20
    guidance: float = 7.5
    control_scale: float = 1.0
    strength: float = 0.7
    noise: str = NOISES[0]
    correlation: float = 0.9
    scheduler: str = "ddim"

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.strength <= 1 or int(self.steps * self.strength) < 1:
            msg = f"--steps {self.steps} with --strength {self.strength:g} leaves no step; "
            raise OptionError(f"{msg}expected a strength in (0, 1] and steps x strength of at least 1.")
        if self.guidance < 0 or self.control_scale < 0:
            raise OptionError(
                f"--guidance {self.guidance:g}, --control-scale {self.control_scale:g}: expected 0 or more."
            )
        if self.scheduler not in SCHEDULERS:
            raise OptionError(f"--scheduler is {self.scheduler!r}; expected one of {', '.join(SCHEDULERS)}.")
        if self.noise not in NOISES:
            raise OptionError(f"--noise is {self.noise!r}; expected one of {', '.join(NOISES)}.")


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
    """Latents (B, 4, h, w) of slices that follow a condition; DDIM with eta 0, or UniPC.

    Args:
        unet: the base model's (Style Swap) or the tuned one.
        condition: (B, K, R, R). states: (2, tokens, D), of the prompt and of the empty one.
        noise: (B, 4, h, w) standard normal.
        source: latents of the source slices, noised and taken as the start where the strength is below 1.

    Raises:
        ShapeError: the condition has another size or number of channels than the networks take.
    """
    _check_condition(condition, control, noise, base)
    device, dtype = unet.device, unet.dtype
    scheduler = SCHEDULERS[options.scheduler].from_config(base.scheduler.config)
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
    expected = (len(noise), control.config.conditioning_channels, *side)
    if tuple(condition.shape) != expected:
        msg = f"The condition has shape {tuple(condition.shape)}; expected {expected}. "
        raise ShapeError(f"{msg}Make it by make_condition, with the classes and extras of the ControlNet's training.")
