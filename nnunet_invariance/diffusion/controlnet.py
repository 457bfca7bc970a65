"""Training of a ControlNet that follows label maps, together with a frozen U-Net that knows the source's style."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_invariance.diffusion import dreambooth
from nnunet_invariance.diffusion.base_model import BaseModel, open_base, open_part
from nnunet_invariance.diffusion.conditions import condition_channels, make_condition, ordered_extras
from nnunet_invariance.diffusion.memory import check_device
from nnunet_invariance.diffusion.objective import Batch, PromptStates, SliceSampler, diffusion_loss, embed_prompt
from nnunet_invariance.diffusion.options import TrainingOptions
from nnunet_invariance.diffusion.packages import ControlNetModel, UNet2DConditionModel
from nnunet_invariance.diffusion.record import new_record, read_record
from nnunet_invariance.diffusion.slices import open_slices
from nnunet_invariance.diffusion.training import fit, make_accelerator, to_device

FOLDER = "controlnet"
EMBEDDING = (16, 32, 96, 256)  # channels of the layers that reduce the condition to the size of the latents


def new_controlnet(unet: UNet2DConditionModel, base: BaseModel, channels: int) -> ControlNetModel:
    """A ControlNet with the encoder of a U-Net (arXiv 2302.05543); it has no effect until it is trained.

    The layers that embed the condition halve it as often as the autoencoder halves an image, three times in Stable
    Diffusion.
    """
    layers = int(math.log2(base.latent_factor)) + 1
    widths = (*EMBEDDING[: layers - 1], EMBEDDING[-1])
    return ControlNetModel.from_unet(
        unet, conditioning_channels=channels, conditioning_embedding_out_channels=widths
    ).float()


def train_controlnet(
    root: Path,
    base_folder: Path,
    options: TrainingOptions,
    extras: Sequence[str] = (),
    device: str = "cuda",
    resume: bool = False,
    command: str = "",
) -> Path:
    """Train a ControlNet on the one-hot labels of all slices, with the tuned U-Net frozen (arXiv 2411.05223).

    Args:
        root: a folder in which ``style slices`` and ``style dreambooth`` ran; their prompt is used.
        extras: further conditions, of ``body``, ``clusters``, ``edges``; see :func:`make_condition`.
        resume: continue the last training.
        command: the command line, for the record of the training.

    Raises:
        OptionError, BaseModelError, StyleFolderError, DeviceMemoryError, OutputError, NonFiniteLossError
    """
    extras = ordered_extras(extras)
    slices, base = open_slices(root), open_base(base_folder)
    base.check_size(slices.size)
    tuned = open_part(UNet2DConditionModel, root / dreambooth.FOLDER, f"dreambooth {root} --base {base_folder}")
    prompt = read_record(root / dreambooth.FOLDER)["prompt"]
    accelerator = make_accelerator(options, device)
    torch.manual_seed(options.seed)  # diffusers initialises the new layers with the global generator
    control = new_controlnet(tuned, base, condition_channels(slices.classes, extras))
    check_device(accelerator.device, slices.size, base, options, control)
    prompts = embed_prompt(base, prompt, options.drop_prompt, accelerator.device)
    for frozen in (base.vae, tuned):
        to_device(frozen, accelerator.device, options.amp)
    loss_of = _loss(base, tuned, prompts, slices.classes, extras, accelerator.device)
    record = new_record(base_folder, prompt, slices.size, slices.dataset, options, device, command)
    record["conditions"] = list(extras)
    return fit(control, loss_of, SliceSampler(slices), options, accelerator, root / FOLDER, record, resume)


def _loss(
    base: BaseModel,
    tuned: UNet2DConditionModel,
    prompts: PromptStates,
    classes: int,
    extras: Sequence[str],
    device: torch.device,
) -> Callable[[nn.Module, Batch], Tensor]:
    """Loss of a ControlNet on a batch: the error of the tuned U-Net's prediction with the ControlNet's residuals."""

    def loss_of(control: nn.Module, batch: Batch) -> Tensor:
        states = prompts.sample(len(batch.images), batch.generator)
        condition = make_condition(batch.labels, batch.images, classes, extras).to(device)

        def predict(noisy: Tensor, time: Tensor) -> Tensor:
            down, middle = control(noisy, time, states, condition, return_dict=False)
            return tuned(
                noisy, time, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample

        return diffusion_loss(base, batch, predict)

    return loss_of
