"""DreamBooth of the U-Net on the source slices: it learns their style, so that a ControlNet need not."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nnunet_invariance.diffusion.base_model import open_base
from nnunet_invariance.diffusion.memory import check_memory, training_bytes
from nnunet_invariance.diffusion.objective import Batch, PromptStates, SliceSampler, diffusion_loss
from nnunet_invariance.diffusion.slices import open_slices
from nnunet_invariance.diffusion.training import (
    TrainingOptions,
    fit,
    make_accelerator,
    place,
)
from nnunet_invariance.errors import OptionError

FOLDER = "unet"
#: Names of modalities; in the prompt they would tie the style to a word.
MODALITIES = {
    "ct",
    "cbct",
    "mr",
    "mri",
    "t1",
    "t2",
    "t1w",
    "t2w",
    "flair",
    "dwi",
    "pet",
    "ultrasound",
    "us",
    "x-ray",
    "xray",
}


def train_dreambooth(
    root: Path, base_folder: Path, prompt: str, options: TrainingOptions, device: str = "cuda", resume: bool = False
) -> Path:
    """Train all weights of the U-Net, and nothing else, on all slices with one prompt (arXiv 2208.12242, 2411.05223).

    Args:
        root: a folder of slices; the U-Net is left in ``root/unet``, the base model as it is.
        prompt: says plane and anatomy, not the modality, for example "axial abdomen".

    Raises:
        OptionError: the prompt is empty or names a modality.
        BaseModelError, StyleFolderError, DeviceMemoryError, OutputError, NonFiniteLossError
    """
    check_prompt(prompt)
    slices, base = open_slices(root), open_base(base_folder)
    base.check_size(slices.size)
    accelerator = make_accelerator(options, device)
    if accelerator.device.type == "cuda":
        needed = partial(training_bytes, base, batch=options.batch_size, half=options.amp != "no")
        check_memory(torch.cuda.mem_get_info(accelerator.device)[0], slices.size, base, needed)
    base.text_encoder.to(accelerator.device)
    prompts = PromptStates(base, prompt, options.drop_prompt)
    base.text_encoder.cpu()
    place(base.vae, accelerator.device, options.amp)

    def loss_of(unet: nn.Module, batch: Batch) -> Tensor:
        states = prompts.draw(len(batch.images), batch.generator)
        return diffusion_loss(base, batch, lambda noisy, time: unet(noisy, time, states).sample)

    record = {"base": base_folder.name, "prompt": prompt, "size": slices.size, "dataset": slices.dataset}
    return fit(base.unet, loss_of, SliceSampler(slices), options, accelerator, root / FOLDER, record, resume)


def check_prompt(prompt: str) -> None:
    """Refuse a prompt that would tie the style of the source to a word.

    Raises:
        OptionError
    """
    words = prompt.lower().replace(",", " ").split()
    if not words:
        raise OptionError("--prompt is empty; expected plane and anatomy, for example 'axial abdomen'.")
    named = [word for word in words if word in MODALITIES]
    if named:
        msg = f"--prompt {prompt!r} names the modality {named[0]!r}; the style would be tied to that word. "
        raise OptionError(f"{msg}Say plane and anatomy only, for example 'axial abdomen'.")
