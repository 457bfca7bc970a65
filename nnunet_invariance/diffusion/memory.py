"""How much memory a training needs, estimated without a device, and what fits where it is too much."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from nnunet_invariance.diffusion.base_model import BaseModel, size_multiple
from nnunet_invariance.diffusion.packages import ControlNetModel
from nnunet_invariance.errors import DeviceMemoryError

GIB = 2**30
TRAINED = 16  # bytes a parameter: value, gradient and AdamW's two moments, float32
RESERVED = GIB  # context of the device and fragments, a guess
TOKENS = 77


def activation_bytes(module: nn.Module, call: Callable[[nn.Module], object], width: int) -> int:
    """Bytes of everything that the leaf modules return in one pass, ``width`` bytes a number.

    The pass is made by a copy on the meta device: nothing is computed. What fused attention keeps is in it, a matrix of
    all pairs of tokens, which it does not keep, is not.
    """
    with torch.device("meta"):
        copy = type(module).from_config(module.config)
    total = 0

    def count(leaf: nn.Module, inputs: object, output: object) -> None:
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
        half: mixed precision; frozen weights and most activations then take two bytes a number.
    """
    width = 2 if half else 4
    latents = torch.empty(batch, base.unet.config.in_channels, *[size // base.latent_factor] * 2, device="meta")
    states = torch.empty(batch, TOKENS, base.unet.config.cross_attention_dim, device="meta")
    time = torch.zeros(batch, device="meta")
    activations = activation_bytes(base.unet, lambda unet: unet(latents, time, states), width)
    frozen = [base.vae]
    trained = base.unet
    if control is not None:
        condition = torch.empty(batch, control.config.conditioning_channels, size, size, device="meta")
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


def check_memory(available: int, size: int, base: BaseModel, needed: Callable[[int], int]) -> None:
    """Refuse a resolution that the device has no room for, before anything is computed.

    Args:
        available: bytes.
        needed: bytes at a resolution, see :func:`training_bytes`.

    Raises:
        DeviceMemoryError: says the largest resolution that fits.
    """
    if needed(size) <= available:
        return
    multiple = size_multiple(base.unet, base.vae)
    fits = next((side for side in range(size - size % multiple, 0, -multiple) if needed(side) <= available), None)
    if fits is None:
        smaller = f"not even {multiple} pixels fit"
        remedy = "Take a smaller --batch-size, --amp, or another device."
    else:
        smaller = f"{fits} pixels would fit"
        remedy = (
            f"Make slices with style slices --size {fits} in another folder, or take a smaller --batch-size or --amp."
        )
    raise DeviceMemoryError(
        f"Training on slices of {size} pixels needs about {needed(size) / GIB:.1f} GiB, the device has "
        f"{available / GIB:.1f} GiB; {smaller}. {remedy}"
    )
