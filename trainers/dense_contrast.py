"""Base of the trainers with InfoNCE at sampled positions of the encoder's feature maps."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.heads.projection import (
    Positions,
    ProjectionHead,
    contrast_stage,
    gather_positions,
    sample_positions,
)
from nnunet_invariance.plans.options import DenseContrastOptions
from nnunet_invariance.trainers.auxiliary_loss import AuxiliaryLossTrainer
from nnunet_invariance.trainers.targets import finest, tissue_labels


class DenseContrastTrainer(AuxiliaryLossTrainer):
    r"""nnU-Net with InfoNCE between two views, at positions that are sampled in maps of the encoder.

    .. math:: L = L_{seg} + \lambda \, \frac{1}{|S|} \sum_{s \in S}
              L_{InfoNCE}\big(h_s(f_s(x)_p), h_s(f_s(x')_p)\big)

    f_s is stage s of the encoder, h_s a projection head, and p are positions inside the image, the same in both views.
    A method's trainer chooses the form of InfoNCE with :meth:`build_contrast` and :meth:`contrast_views`.

    >>> DenseContrastTrainer.options_class().num_positions
    256
    """

    options_class: ClassVar[type[DenseContrastOptions]] = DenseContrastOptions
    options: DenseContrastOptions
    #: Whether the loss needs the label of each position.
    contrast_reads_labels: bool = False

    def build_contrast(self) -> nn.Module:
        """The form of InfoNCE."""
        return PatchInfoNCE(self.options.temperature)

    def contrast_stages(self, deepest: int, stages: int) -> Sequence[int]:
        """Encoder stages whose maps are compared, 0 is the finest.

        Args:
            deepest: the deepest stage with enough positions.
            stages: number of stages of the encoder.
        """
        return [deepest]

    def contrast_views(self, first: Tensor, second: Tensor, valid_mask: Tensor, labels: Tensor | None) -> Tensor:
        """Loss between the embeddings of one stage.

        Args:
            first, second: (B, N, D).
            valid_mask: (B, N) bool.
            labels: (B, N) int64 if :attr:`contrast_reads_labels`.
        """
        return self.contrast(first, second, valid_mask, labels)

    def sample_positions(self, valid_mask: Tensor, size: Sequence[int]) -> Positions:
        """Sample positions of maps of a spatial size, from voxels (B, 1, *spatial) inside the image."""
        return sample_positions(valid_mask, size, self.options.num_positions, self.generator)

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """Build a projection head for each stage that is compared."""
        deepest = contrast_stage(self.configuration_manager.patch_size, strides, self.options.num_positions)
        self.stages = list(self.contrast_stages(deepest, len(channels)))
        self.contrast = self.build_contrast()
        self.print_to_log_file(f"{type(self.contrast).__name__} on encoder stages {self.stages} of {len(channels)}")
        return nn.ModuleDict({f"projection_{stage}": ProjectionHead(channels[stage]) for stage in self.stages})

    def aux_losses(self, first: list[Tensor], second: list[Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """InfoNCE, mean over the stages."""
        losses = [self._contrast_stage(stage, first[stage], second[stage], batch) for stage in self.stages]
        return {"info_nce": torch.stack(losses).mean()}

    def _contrast_stage(self, stage: int, first: Tensor, second: Tensor, batch: dict[str, Any]) -> Tensor:
        samples, _, *size = first.shape
        sampled = self.sample_positions(batch["valid_mask"][:samples], size)
        index, valid_mask = (copy_to(self.device, tensor) for tensor in sampled)
        labels = self._labels_at(index, size, batch) if self.contrast_reads_labels else None
        head = self.aux[f"projection_{stage}"]
        embeddings = [head(gather_positions(feature_map, index)) for feature_map in (first, second)]
        return self.contrast_views(embeddings[0], embeddings[1], valid_mask, labels)

    def _labels_at(self, index: Tensor, size: Sequence[int], batch: dict[str, Any]) -> Tensor:
        """Labels (B, N) of the voxels at the centre of each position."""
        labels, _ = tissue_labels(finest(batch["target"])[: len(index)], self.label_manager)
        coarse = F.interpolate(labels.float(), size=tuple(size), mode="nearest-exact")
        return gather_positions(coarse, index)[..., 0].long()
