"""What both trainings learn: slices, a prompt, and the error of the predicted noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.diffusion.base_model import BaseModel
from nnunet_invariance.diffusion.slices import SliceFolder, unit_images


@dataclass(frozen=True)
class Batch:
    """Slices of one pass, drawn by a generator from which noise and times are drawn next.

    Attributes:
        images: (B, R, R) in [0, 1]. labels: (B, R, R) uint8. generator: of the CPU.
    """

    images: Tensor
    labels: Tensor
    generator: torch.Generator


class SliceSampler:
    """All slices of a folder, drawn with equal chance."""

    def __init__(self, slices: SliceFolder) -> None:
        self.cases = [slices.case(name) for name in slices.names]
        self.ends = torch.tensor([len(case.image) for case in self.cases]).cumsum(0)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """``count`` slices, with replacement."""
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
    """Hidden states of one prompt and of the empty one, computed once."""

    def __init__(self, base: BaseModel, prompt: str, drop: float) -> None:
        self.states = base.embed([prompt, ""])
        self.drop = drop

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, tokens, D), the empty one with the chance that was given."""
        dropped = torch.rand(count, generator=generator) < self.drop
        return self.states[dropped.long().to(self.states.device)]


def diffusion_loss(base: BaseModel, batch: Batch, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    r"""Mean squared error of the predicted noise, or velocity where the model predicts that (arXiv 2112.10752).

    .. math:: L = E\, \lVert \epsilon - \epsilon_\theta(\alpha_t z + \sigma_t \epsilon, t) \rVert^2

    Args:
        predict: noisy latents (B, 4, h, w) and times (B,) to the prediction.
    """
    latents = base.encode(batch.images, batch.generator).float()
    noise = torch.randn(latents.shape, generator=batch.generator).to(latents.device)
    steps = base.scheduler.config.num_train_timesteps
    time = torch.randint(steps, (len(latents),), generator=batch.generator).to(latents.device)
    target = noise
    if base.scheduler.config.prediction_type == "v_prediction":
        target = base.scheduler.get_velocity(latents, noise, time)
    return F.mse_loss(predict(base.scheduler.add_noise(latents, noise, time), time).float(), target)
