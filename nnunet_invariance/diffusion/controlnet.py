"""A ControlNet that follows label maps, trained beside the U-Net that knows the source's style already."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_invariance.diffusion import dreambooth
from nnunet_invariance.diffusion.base_model import BaseModel, open_base, open_part
from nnunet_invariance.diffusion.conditions import condition_channels, make_condition, ordered_extras
from nnunet_invariance.diffusion.memory import check_memory, training_bytes
from nnunet_invariance.diffusion.objective import Batch, PromptStates, SliceSampler, diffusion_loss
from nnunet_invariance.diffusion.packages import ControlNetModel, UNet2DConditionModel
from nnunet_invariance.diffusion.slices import open_slices
from nnunet_invariance.diffusion.training import (
    TrainingOptions,
    fit,
    make_accelerator,
    place,
    read_record,
)

FOLDER = "controlnet"
EMBEDDING = (16, 32, 96, 256)  # channels of the layers that bring the condition to the latents' size


def new_controlnet(unet: UNet2DConditionModel, base: BaseModel, channels: int) -> ControlNetModel:
    """A ControlNet from the encoder of a U-Net (arXiv 2302.05543); until it is trained it changes nothing.

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
) -> Path:
    """Train a ControlNet on the one-hot labels of all slices, the tuned U-Net frozen (arXiv 2411.05223).

    Args:
        root: a folder in which ``style slices`` and ``style dreambooth`` ran; the prompt is theirs.
        extras: further conditions, of ``body``, ``clusters``, ``edges``; see :func:`make_condition`.

    Raises:
        OptionError, BaseModelError, StyleFolderError, DeviceMemoryError, OutputError, NonFiniteLossError
    """
    extras = ordered_extras(extras)
    slices, base = open_slices(root), open_base(base_folder)
    base.check_size(slices.size)
    tuned = open_part(UNet2DConditionModel, root / dreambooth.FOLDER, f"dreambooth {root} --base {base_folder}")
    prompt = read_record(root / dreambooth.FOLDER)["prompt"]
    accelerator = make_accelerator(options, device)
    torch.manual_seed(options.seed)  # diffusers draws the new layers from the global generator
    control = new_controlnet(tuned, base, condition_channels(slices.classes, extras))
    if accelerator.device.type == "cuda":
        needed = partial(training_bytes, base, batch=options.batch_size, half=options.amp != "no", control=control)
        check_memory(torch.cuda.mem_get_info(accelerator.device)[0], slices.size, base, needed)
    base.text_encoder.to(accelerator.device)
    prompts = PromptStates(base, prompt, options.drop_prompt)
    base.text_encoder.cpu()
    for frozen in (base.vae, tuned):
        place(frozen, accelerator.device, options.amp)

    def loss_of(control: nn.Module, batch: Batch) -> Tensor:
        states = prompts.draw(len(batch.images), batch.generator)
        condition = make_condition(batch.labels, batch.images, slices.classes, extras).to(accelerator.device)

        def predict(noisy: Tensor, time: Tensor) -> Tensor:
            down, middle = control(noisy, time, states, condition, return_dict=False)
            return tuned(
                noisy, time, states, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample

        return diffusion_loss(base, batch, predict)

    record = {
        "base": base_folder.name,
        "prompt": prompt,
        "size": slices.size,
        "dataset": slices.dataset,
        "conditions": list(extras),
    }
    return fit(control, loss_of, SliceSampler(slices), options, accelerator, root / FOLDER, record, resume)
