"""Symmetries of a box of voxels (48 for a cube), applied per sample and inverted exactly."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from nnunet_invariance.common.device_copies import copy_to

SWAPS = ((0, 1), (1, 2), (0, 2))  # after one another
WORDS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1))  # each permutation of three axes once


def symmetries(sizes: Sequence[Sequence[float]], reflections: bool = True) -> Tensor:
    """Symmetries that keep the shapes of a 3-D box and its feature maps: (G, 6) bool; the first is the identity.

    Columns 0 to 2 exchange two axes (:data:`SWAPS`), 3 to 5 flip an axis. Axes are exchanged only if they are equal in
    each of ``sizes``, such as patch size and the strides of all stages. Without ``reflections``: rotations only.

    >>> len(symmetries([(8, 8, 8)])), len(symmetries([(4, 8, 8)]))
    (48, 16)
    """
    equal = [all(size[a] == size[b] for size in sizes) for a, b in SWAPS]
    words = [word for word in WORDS if all(allowed or not bit for allowed, bit in zip(equal, word, strict=True))]
    elements = [(*word, *sign) for sign in product((0, 1), repeat=3) for word in words]
    return torch.tensor([e for e in elements if reflections or sum(e) % 2 == 0], dtype=torch.bool)


def sample_symmetries(table: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample ``count`` symmetries uniformly: (count, 6), on the generator's device."""
    index = torch.randint(len(table), (count,), generator=generator, device=generator.device)
    return copy_to(generator.device, table)[index]


def apply_symmetry(x: Tensor, elements: Tensor) -> Tensor:
    """Apply one symmetry per sample: x (N, ..., z, y, x), elements (N, 6)."""
    return _flip(_exchange(x, elements, (0, 1, 2)), elements)


def invert_symmetry(x: Tensor, elements: Tensor) -> Tensor:
    """Invert :func:`apply_symmetry` exactly."""
    return _exchange(_flip(x, elements), elements, (2, 1, 0))


def _exchange(x: Tensor, elements: Tensor, order: Sequence[int]) -> Tensor:
    for bit in order:
        a, b = (axis - 3 for axis in SWAPS[bit])
        if x.shape[a] == x.shape[b]:  # otherwise no element has this bit
            x = torch.where(_wide(elements[:, bit], x), x.transpose(a, b), x)
    return x


def _flip(x: Tensor, elements: Tensor) -> Tensor:
    for axis in range(3):
        x = torch.where(_wide(elements[:, 3 + axis], x), x.flip(axis - 3), x)
    return x


def _wide(bits: Tensor, x: Tensor) -> Tensor:
    return bits.view(-1, *[1] * (x.ndim - 1))
