"""nnU-Net's training augmentation of a batch of enlarged patches on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nnunet_invariance.augmentation.on_device.draws import choose_rows
from nnunet_invariance.augmentation.on_device.geometry import Geometry, GeometryDraw
from nnunet_invariance.augmentation.on_device.intensity import RowTransform
from nnunet_invariance.augmentation.on_device.labels import Targets
from nnunet_invariance.common.device_copies import copy_together
from nnunet_invariance.networks.presence import over_maps, present_channels


class Change(NamedTuple):
    """One intensity transform of a batch: the rows (K, 2) that change, image and channel of each, and parameters."""

    transform: RowTransform
    rows: Tensor
    parameters: Tensor


class Draw(NamedTuple):
    """All random parameters of a batch, and the seed of the noise."""

    geometry: GeometryDraw
    changes: tuple[Change, ...]
    seed: int

    def to(self, device: torch.device) -> "Draw":
        """Copy the parameters to a device in one transfer; indices become floating-point numbers."""
        warped, theta, mirrored = self.geometry
        parts = [warped, theta, *(part for change in self.changes for part in change[1:])]
        moved = iter(copy_together(device, parts))
        geometry = GeometryDraw(next(moved), next(moved), mirrored)
        return Draw(geometry, tuple(Change(c.transform, next(moved), next(moved)) for c in self.changes), self.seed)


@dataclass(frozen=True)
class DeviceAugmentation:
    """Geometry, intensities, masking and targets of nnU-Net's training, for all samples of a batch at once.

    ``device_form`` makes it from nnU-Net's own pipeline.

    Attributes:
        geometry: one geometry per sample, shared by its views.
        intensity: transforms in nnU-Net's order, independent for each view.
        masked_channels: channels that are 0 where the label is -1.
        targets: what the loss gets.
        views: 0 gives images as nnU-Net does; 1 or 2 gives so many augmented views, joined as by ``MultiView``.
        channels: number of channels if an image may have twice as many; the second half is then the input of the
            second view. None: all channels.
        zero_missing: set channels to 0 that were missing (constant) in the input.

    >>> geometry = Geometry((4, 4), False, (0.0, 0.0), 0.0, (1.0, 1.0), 0.0, (), (0, 1))
    >>> augment = DeviceAugmentation(geometry, (), (), Targets((), None, None), views=2)
    >>> data, target = augment(torch.rand(2, 1, 6, 6), torch.zeros(2, 1, 6, 6), torch.Generator())
    >>> data.shape, target.shape  # two views, the clean view and the valid mask
    (torch.Size([2, 4, 4, 4]), torch.Size([2, 1, 4, 4]))
    """

    geometry: Geometry
    intensity: tuple[RowTransform, ...]
    masked_channels: tuple[int, ...]
    targets: Targets
    views: int = 0
    channels: int | None = None
    zero_missing: bool = False

    def __call__(
        self, image: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | list[Tensor]]:
        """Augment a batch with random parameters.

        Args:
            image: (B, C, *larger) float32, the enlarged patches of nnU-Net's data loader, on the device that works.
            labels: (B, 1, *larger) integers, -1 in padding and outside of the nonzero mask, on the same device.
            generator: on the CPU.

        Returns:
            The data, (B, C, *patch) or for views (B, 3C + 1, *patch), and the target.
        """
        return self.apply(image, labels, self.sample(image.shape, generator))

    def sample(self, shape: Sequence[int], generator: torch.Generator) -> Draw:
        """Sample all parameters of a batch of images of a shape (B, C, *larger), on the CPU."""
        batch, channels, *size = shape
        geometry = self.geometry.sample(batch, size, generator)
        changes = []
        for transform in self.intensity:
            images, each = batch * max(self.views, 1), self.channels or channels
            rows = choose_rows(images, each, transform.probability, transform.channel_probability, generator)
            if len(rows):
                changes.append(Change(transform, rows, transform.sample(rows, len(size), generator)))
        return Draw(geometry, tuple(changes), int(torch.randint(2**62, (), generator=generator)))

    @torch.no_grad()
    def apply(self, image: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor | list[Tensor]]:
        """Apply sampled parameters to a batch; arguments and result are those of a call."""
        channels = self.channels or image.shape[1]
        draw = draw.to(image.device)
        present = present_channels(image[:, :channels]) if self.zero_missing else None
        image, labels = self.geometry.apply(image, labels, draw.geometry)
        data = self._joined(image, labels, channels) if self.views else image
        self._change(data, draw, channels)
        outside = labels < 0
        copies = 3 if self.views else 1  # both views and the clean view
        for view in range(copies):
            for channel in self.masked_channels:
                data[:, view * channels + channel].masked_fill_(outside[:, 0], 0)
        if present is not None:
            missing = over_maps(~present.repeat(1, copies), data)
            data[:, : copies * channels].masked_fill_(missing, 0)
        return data, self.targets(labels)

    def _joined(self, image: Tensor, labels: Tensor, channels: int) -> Tensor:
        """The input of both views, the clean view and the valid mask: (B, 3C + 1, *patch)."""
        own, other = image[:, :channels], image[:, -channels:]
        return torch.cat((own, other, own, (labels >= 0).to(image.dtype)), 1)

    def _change(self, data: Tensor, draw: Draw, channels: int) -> None:
        """Apply the intensity transforms to the rows of the data, in place."""
        views = max(self.views, 1)
        noise = torch.Generator(data.device).manual_seed(draw.seed)
        flat = data.flatten(0, 1)
        for transform, rows, parameters in draw.changes:
            images, channel = rows.long().unbind(1)
            sample, view = images // views, images % views
            index = sample * data.shape[1] + view * channels + channel
            flat.index_copy_(0, index, transform.apply(flat.index_select(0, index), parameters, noise))
