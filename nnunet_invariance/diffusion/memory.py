"""Estimate of the memory that a training needs, made without a device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_invariance.diffusion.base_model import BaseModel, size_multiple
from nnunet_invariance.diffusion.options import TrainingOptions
from nnunet_invariance.diffusion.packages import ControlNetModel, ModelMixin, config_of
from nnunet_invariance.errors import DeviceMemoryError

GIB = 2**30
TRAINED = 16  # bytes per parameter: value, gradient and AdamW's two moments, float32
RESERVED = GIB  # context of the device and fragmentation; a guess
TOKENS = 77


def activation_bytes(module: ModelMixin, call: Callable[[nn.Module], object], width: int) -> int:
    """Bytes of all outputs of the leaf modules in one forward pass, with ``width`` bytes per number.

    A copy on the meta device makes the pass, so that nothing is computed. The estimate includes what fused attention
    keeps; it does not include a matrix of all pairs of tokens, which fused attention does not keep.
    """
    with torch.device("meta"):
        copy: nn.Module = _class_of(module).from_config(config_of(module))
    total = 0

    def count(leaf: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() * width if isinstance(output, Tensor) else 0

    for leaf in copy.modules():
        if not list(leaf.children()):
            leaf.register_forward_hook(count)
    with torch.no_grad():
        call(copy)
    return total


def training_bytes(base: BaseModel, size: int, batch: int, half: bool, control: ControlNetModel | None = None) -> int:
    """Estimate for one device: DreamBooth of the U-Net, or training of ``control`` beside the frozen U-Net.

    Args:
        half: mixed precision; frozen weights and most activations then take two bytes per number.
    """
    width = 2 if half else 4
    latents = torch.empty(batch, config_of(base.unet).in_channels, *[size // base.latent_factor] * 2, device="meta")
    states = torch.empty(batch, TOKENS, config_of(base.unet).cross_attention_dim, device="meta")
    time = torch.zeros(batch, device="meta")
    activations = activation_bytes(base.unet, lambda unet: unet(latents, time, states), width)
    frozen: list[nn.Module] = [base.vae]
    trained: nn.Module = base.unet
    if control is not None:
        condition = torch.empty(batch, config_of(control).conditioning_channels, size, size, device="meta")
        call = partial(_call_control, latents=latents, time=time, states=states, condition=condition)
        activations += activation_bytes(control, call, width)
        frozen.append(base.unet)
        trained = control
    weights = TRAINED * _count(trained) + width * sum(map(_count, frozen))
    return weights + activations + RESERVED


def _call_control(control: nn.Module, latents: Tensor, time: Tensor, states: Tensor, condition: Tensor) -> object:
    return control(latents, time, states, condition)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _class_of(module: nn.Module) -> Any:
    return type(module)


def check_device(
    device: torch.device, size: int, base: BaseModel, options: TrainingOptions, control: ControlNetModel | None = None
) -> None:
    """Check that a training fits into the memory of a CUDA device; other devices are not checked.

    Raises:
        DeviceMemoryError: it does not fit.
    """
    if device.type == "cuda":
        needed = partial(training_bytes, base, batch=options.batch_size, half=options.amp != "no", control=control)
        check_memory(torch.cuda.mem_get_info(device)[0], size, base, needed)


def check_memory(available: int, size: int, base: BaseModel, needed: Callable[[int], int]) -> None:
    """Check, before anything is computed, that the training at a resolution fits into the available memory.

    Args:
        available: bytes.
        needed: maps a resolution to bytes, see :func:`training_bytes`.

    Raises:
        DeviceMemoryError: it does not fit; names the largest resolution that does.
    """
    if needed(size) <= available:
        return
    multiple = size_multiple(base.unet, base.vae)
    fits = next((side for side in range(size - size % multiple, 0, -multiple) if needed(side) <= available), None)
    if fits is None:
        smaller = f"not even {multiple} pixels fit"
        remedy = "Use a smaller --batch-size, --amp, or another device."
    else:
        smaller = f"{fits} pixels would fit"
        remedy = (
            f"Make slices with style slices --size {fits} in another folder, or use a smaller --batch-size or --amp."
        )
    raise DeviceMemoryError(
        f"Training on slices of {size} pixels needs about {needed(size) / GIB:.1f} GiB, the device has "
        f"{available / GIB:.1f} GiB; {smaller}. {remedy}"
    )
