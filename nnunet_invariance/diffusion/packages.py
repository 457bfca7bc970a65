"""The only module that imports the packages of the extra ``diffusion``.

Classes come from the modules that define them, because the top level of diffusers hides their types.

Raises:
    MissingPackageError: on import, if one of the packages is missing or broken.
"""

from typing import Any

from nnunet_invariance.common.extras import install_command
from nnunet_invariance.errors import MissingPackageError

__all__ = [
    "Accelerator",
    "AutoencoderKL",
    "CLIPTextModel",
    "CLIPTokenizer",
    "ControlNetModel",
    "DDIMScheduler",
    "DDPMScheduler",
    "ModelMixin",
    "PartialState",
    "UNet2DConditionModel",
    "UniPCMultistepScheduler",
    "config_of",
]

try:
    from accelerate import Accelerator, PartialState
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
    from transformers import CLIPTextModel, CLIPTokenizer
except (ImportError, RuntimeError, AttributeError) as error:
    # A torchvision of another torch build fails with RuntimeError or AttributeError, deep in transformers' import.
    broken = "torchvision" in f"{error} {error.__cause__} {error.__context__}"
    remedy = (
        "The installed torchvision was built for another torch: install the version that belongs to your torch, or "
        "uninstall it (pip uninstall torchvision); it is not needed."
        if broken
        else f"Install them: {install_command('diffusion')}"
    )
    raise MissingPackageError(
        f"The diffusion path needs diffusers, transformers and accelerate, but their import fails: {error}. {remedy}"
    ) from error


def config_of(part: Any) -> Any:
    """The configuration of a network or scheduler; diffusers declares it as a dict without its attributes."""
    return part.config
