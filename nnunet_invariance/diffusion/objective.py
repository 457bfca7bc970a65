"""Objective of both trainings: slices, a prompt, and the error of the predicted noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.diffusion.base_model import BaseModel
from nnunet_invariance.diffusion.packages import config_of
from nnunet_invariance.diffusion.slices import SliceFolder, unit_images


@dataclass(frozen=True)
class Batch:
    """Slices of one pass, and the generator that sampled them; it samples noise and times next.

    Attributes:
        images: (B, R, R) in [0, 1]. labels: (B, R, R) uint8. generator: of the CPU.
    """

    images: Tensor
    labels: Tensor
    generator: torch.Generator


class SliceSampler:
    """Samples from all slices of a folder with equal probability."""

    def __init__(self, slices: SliceFolder) -> None:
        self.cases = [slices.case(name) for name in slices.names]
        self.ends = torch.tensor([len(case.image) for case in self.cases]).cumsum(0)

    def sample(self, count: int, generator: torch.Generator) -> Batch:
        """Sample ``count`` slices with replacement."""
        index = torch.randint(int(self.ends[-1]), (count,), generator=generator)
        owners = torch.searchsorted(self.ends, index, right=True)
        pairs = [
            (self.cases[o], i - int(self.ends[o]) + len(self.cases[o].image))
            for o, i in zip(owners, index.tolist(), strict=True)
        ]
        images = torch.stack([unit_images(case.image[z]) for case, z in pairs])
        labels = torch.stack([torch.from_numpy(case.labels[z].copy()) for case, z in pairs])
        return Batch(images, labels, generator)


class PromptStates:
    """Hidden states of one prompt and of the empty prompt, computed once."""

    def __init__(self, base: BaseModel, prompt: str, drop: float) -> None:
        self.states = base.embed([prompt, ""])
        self.drop = drop

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Sample states (count, tokens, D); each is that of the empty prompt with the probability ``drop``."""
        dropped = torch.rand(count, generator=generator) < self.drop
        return self.states[dropped.long().to(self.states.device)]


def embed_prompt(base: BaseModel, prompt: str, drop: float, device: torch.device) -> PromptStates:
    """Compute the states of a prompt on the device, and move the text encoder back to the CPU."""
    encoder: nn.Module = base.text_encoder
    encoder.to(device)
    states = PromptStates(base, prompt, drop)
    encoder.cpu()
    return states


def diffusion_loss(base: BaseModel, batch: Batch, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    r"""Mean squared error of the predicted noise, or velocity where the model predicts that (arXiv 2112.10752).

    .. math:: L = E\, \lVert \epsilon - \epsilon_\theta(\alpha_t z + \sigma_t \epsilon, t) \rVert^2

    Args:
        predict: noisy latents (B, 4, h, w) and times (B,) to the prediction.
    """
    latents = base.encode(batch.images, batch.generator).float()
    noise = torch.randn(latents.shape, generator=batch.generator).to(latents.device)
    steps = config_of(base.scheduler).num_train_timesteps
    time = torch.randint(steps, (len(latents),), generator=batch.generator).to(latents.device)
    scheduler: Any = base.scheduler  # diffusers declares times as IntTensor, which torch.randint does not return
    target = noise
    if config_of(base.scheduler).prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, time)
    return F.mse_loss(predict(scheduler.add_noise(latents, noise, time), time).float(), target)
