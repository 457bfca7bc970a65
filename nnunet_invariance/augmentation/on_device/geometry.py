"""nnU-Net's random rotation, scaling and mirroring of a batch of patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.augmentation.on_device.draws import Scalar, sample_scalar
from nnunet_invariance.augmentation.on_device.labels import warp_labels


class GeometryDraw(NamedTuple):
    """Parameters of a batch.

    Attributes:
        warped: (K,) indices of the samples that are rotated or scaled.
        theta: (K, D, D + 1), their maps from the result to the input, as for ``torch.nn.functional.affine_grid``.
        mirrored: the axes along which each sample is mirrored; the host reads them.
    """

    warped: Tensor
    theta: Tensor
    mirrored: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Geometry:
    """Rotation and scaling about the centre of an enlarged patch, cropping, and mirroring.

    Attributes:
        patch_size: size of the result in voxels; without axis 0, which keeps its size, if ``in_plane``.
        in_plane: rotate and scale the slices of a 3-D patch, all equally (nnU-Net's dummy 2-D augmentation).
        rotation, p_rotation: range in radians, per axis, and probability.
        scaling, p_scaling: range of the one factor of all axes, and probability; objects shrink above 1.
        mirror_axes: axes that are mirrored with probability 1/2 each.
        labels: all values of the segmentation.

    >>> turn = Geometry((4, 4), False, (0.0, 0.0), 1.0, (1.0, 1.0), 0.0, (), (0, 1))
    >>> image, labels = torch.rand(1, 2, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.int16)
    >>> [part.shape for part in turn.apply(image, labels, turn.sample(1, (8, 8), torch.Generator()))]
    [torch.Size([1, 2, 4, 4]), torch.Size([1, 1, 4, 4])]
    """

    patch_size: tuple[int, ...]
    in_plane: bool
    rotation: Scalar
    p_rotation: float
    scaling: Scalar
    p_scaling: float
    mirror_axes: tuple[int, ...]
    labels: tuple[int, ...]

    def sample(self, batch: int, input_size: Sequence[int], generator: torch.Generator) -> GeometryDraw:
        """Sample the parameters of a batch of patches of ``input_size`` voxels, on the CPU."""
        axes = len(self.patch_size)
        uniform = torch.rand((2 + len(self.mirror_axes), batch), generator=generator)
        rotated, scaled = uniform[0] < self.p_rotation, uniform[1] < self.p_scaling
        angles = sample_scalar(self.rotation, (batch, axes), generator) * rotated[:, None]
        factors = torch.where(scaled, sample_scalar(self.scaling, (batch,), generator), 1.0)
        warped = (rotated | scaled).nonzero()[:, 0]
        matrices = rotations(angles[warped].double()) * factors[warped, None, None]
        chosen = (uniform[2:] < 0.5).T.tolist()
        mirrored = tuple(tuple(axis for axis, do in zip(self.mirror_axes, row, strict=True) if do) for row in chosen)
        return GeometryDraw(warped, affine(matrices, self.patch_size, input_size[-axes:]), mirrored)

    def apply(self, image: Tensor, labels: Tensor, draw: GeometryDraw) -> tuple[Tensor, Tensor]:
        """Change enlarged patches (B, C, *larger) and labels (B, 1, *larger); the results have the patch size.

        Outside of the enlarged patch the image is 0 and the label -1.
        """
        results = [self._crop(part) for part in (image, labels)]
        if len(draw.warped):
            index = draw.warped.long()
            warped = self._warp(image[index], labels[index], draw.theta)
            results = [result.index_copy(0, index, part) for result, part in zip(results, warped, strict=True)]
        return _mirrored(results[0], draw.mirrored), _mirrored(results[1], draw.mirrored)

    def _crop(self, x: Tensor) -> Tensor:
        for axis, size in enumerate(self.patch_size, start=x.ndim - len(self.patch_size)):
            x = x.narrow(axis, x.shape[axis] // 2 - size // 2, size)
        return x

    def _warp(self, image: Tensor, labels: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        channels = [image.shape[1], labels.shape[1]]
        if self.in_plane:  # slices are channels
            image, labels = image.flatten(1, 2), labels.flatten(1, 2)
        grid = F.affine_grid(theta, [len(theta), 1, *self.patch_size], align_corners=False)
        image = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        labels = warp_labels(labels, grid, self.labels)
        if self.in_plane:
            image, labels = (x.unflatten(1, (c, -1)) for x, c in zip((image, labels), channels, strict=True))
        return image, labels


def _mirrored(batch: Tensor, axes: Sequence[Sequence[int]]) -> Tensor:
    """A copy of (B, C, *spatial) whose samples are mirrored along spatial axes, which differ between the samples."""
    return torch.stack([sample.flip([axis + 1 for axis in own]) for sample, own in zip(batch, axes, strict=True)])


def rotations(angles: Tensor) -> Tensor:
    """Rotation matrices (K, D, D) in index space.

    Args:
        angles: (K, D) radians. In 3-D, the rotation about axis 0 is applied first, then about axis 1 and axis 2. In 2-D
            there is one rotation, by the last angle.
    """
    cos, sin = angles.cos(), angles.sin()
    planes = {2: [(1, (0, 1))], 3: [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))]}[angles.shape[1]]
    result = torch.eye(angles.shape[1], dtype=angles.dtype).repeat(len(angles), 1, 1)
    for axis, (a, b) in planes:
        turn = torch.eye(angles.shape[1], dtype=angles.dtype).repeat(len(angles), 1, 1)
        turn[:, a, a] = turn[:, b, b] = cos[:, axis]
        turn[:, b, a], turn[:, a, b] = sin[:, axis], -sin[:, axis]
        result = turn @ result
    return result


def affine(matrices: Tensor, size: Sequence[int], input_size: Sequence[int]) -> Tensor:
    """Maps (K, D, D + 1) in the units of ``affine_grid``: half the size of the result and of the input.

    Args:
        matrices: (K, D, D), from offsets in the result to offsets in the input, in voxels from the centres.
        size, input_size: of the result and of the input, in voxels.
    """
    ours, theirs = (torch.tensor(tuple(s), dtype=matrices.dtype) for s in (size, input_size))
    theta = (matrices * (ours / theirs[:, None])).flip(1, 2)  # affine_grid names the last axis first
    return torch.cat((theta, theta.new_zeros(*theta.shape[:2], 1)), 2).float()
