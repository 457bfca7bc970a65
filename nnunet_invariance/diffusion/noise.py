"""Named random generators, and noise along the slices of a volume."""

import hashlib
import math

import torch
from torch import Tensor

from nnunet_invariance.errors import OptionError

NOISES = ("shared", "autoregressive", "independent")


def named_generator(*names: object) -> torch.Generator:
    """A CPU generator that depends on these names only, for example seed, step and rank."""
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def noise_along(
    count: int, shape: tuple[int, ...], kind: str, generator: torch.Generator, correlation: float = 0.9
) -> Tensor:
    r"""Standard normal noise for the slices of a volume, (count, *shape).

    "shared": the same for all slices. "independent": sampled per slice.
    "autoregressive", with :math:`\rho` = ``correlation``:

    .. math:: e_z = \rho\, e_{z-1} + \sqrt{1 - \rho^2}\, \xi_z

    Raises:
        OptionError: the kind is unknown, or the correlation is not in [0, 1].
    """
    if kind not in NOISES or not 0 <= correlation <= 1:
        msg = f"Noise {kind!r} with correlation {correlation:g}: expected one of {', '.join(NOISES)} "
        raise OptionError(f"{msg}and a correlation from 0 to 1.")
    if kind == "shared":
        return torch.randn(1, *shape, generator=generator).repeat(count, *[1] * len(shape))
    noise = torch.randn(count, *shape, generator=generator)
    if kind == "autoregressive":
        for z in range(1, count):
            noise[z] = correlation * noise[z - 1] + math.sqrt(1 - correlation**2) * noise[z]
    return noise
