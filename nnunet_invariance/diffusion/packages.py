"""The one door to the packages of the extra ``diffusion``.

Raises:
    MissingPackageError: on import, where one of them is missing or broken.
"""

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
    "PartialState",
    "UNet2DConditionModel",
    "UniPCMultistepScheduler",
]

try:
    from accelerate import Accelerator, PartialState
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        DDIMScheduler,
        DDPMScheduler,
        UNet2DConditionModel,
        UniPCMultistepScheduler,
    )
    from transformers import CLIPTextModel, CLIPTokenizer
except (ImportError, RuntimeError, AttributeError) as error:
    # A torchvision of another torch build fails with RuntimeError or AttributeError, deep in transformers' import.
    broken = "torchvision" in f"{error} {error.__cause__} {error.__context__}"
    remedy = (
        "The installed torchvision was built for another torch: install the one that belongs to your torch, or "
        "uninstall it (pip uninstall torchvision); it is not needed."
        if broken
        else f"Install them: {install_command('diffusion')}"
    )
    raise MissingPackageError(
        f"The diffusion path needs diffusers, transformers and accelerate, but their import fails: {error}. {remedy}"
    ) from error
