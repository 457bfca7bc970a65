"""DreamBooth: the U-Net learns the style of the source slices, so that a ControlNet does not have to."""

from pathlib import Path

from torch import Tensor, nn

from nnunet_invariance.diffusion.base_model import open_base
from nnunet_invariance.diffusion.memory import check_device
from nnunet_invariance.diffusion.objective import Batch, SliceSampler, diffusion_loss, embed_prompt
from nnunet_invariance.diffusion.options import TrainingOptions
from nnunet_invariance.diffusion.record import new_record
from nnunet_invariance.diffusion.slices import open_slices
from nnunet_invariance.diffusion.training import fit, make_accelerator, to_device
from nnunet_invariance.errors import OptionError

FOLDER = "unet"
#: Names of modalities; in the prompt, they would bind the style to a word.
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
    root: Path,
    base_folder: Path,
    prompt: str,
    options: TrainingOptions,
    device: str = "cuda",
    resume: bool = False,
    command: str = "",
) -> Path:
    """Train all weights of the U-Net, and nothing else, on all slices with one prompt (arXiv 2208.12242, 2411.05223).

    Args:
        root: a folder of slices; the U-Net is written to ``root/unet``, and the base model is not changed.
        prompt: plane and anatomy without the modality, for example "axial abdomen".
        resume: continue the last training.
        command: the command line, for the record of the training.

    Raises:
        OptionError: the prompt is empty or names a modality.
        BaseModelError, StyleFolderError, DeviceMemoryError, OutputError, NonFiniteLossError
    """
    check_prompt(prompt)
    slices, base = open_slices(root), open_base(base_folder)
    base.check_size(slices.size)
    accelerator = make_accelerator(options, device)
    check_device(accelerator.device, slices.size, base, options)
    prompts = embed_prompt(base, prompt, options.drop_prompt, accelerator.device)
    to_device(base.vae, accelerator.device, options.amp)

    def loss_of(unet: nn.Module, batch: Batch) -> Tensor:
        states = prompts.sample(len(batch.images), batch.generator)
        return diffusion_loss(base, batch, lambda noisy, time: unet(noisy, time, states).sample)

    record = new_record(base_folder, prompt, slices.size, slices.dataset, options, device, command)
    return fit(base.unet, loss_of, SliceSampler(slices), options, accelerator, root / FOLDER, record, resume)


def check_prompt(prompt: str) -> None:
    """Check that a prompt does not bind the style of the source to a word.

    Raises:
        OptionError: it is empty or names a modality.
    """
    words = prompt.lower().replace(",", " ").split()
    if not words:
        raise OptionError("--prompt is empty; expected plane and anatomy, for example 'axial abdomen'.")
    named = [word for word in words if word in MODALITIES]
    if named:
        msg = f"--prompt {prompt!r} names the modality {named[0]!r}; the style would be bound to that word. "
        raise OptionError(f"{msg}Give plane and anatomy only, for example 'axial abdomen'.")
