"""Fine-tuning of an encoder that was pre-trained with Alice (arXiv 2302.05615)."""

from typing import Any

from torch import Tensor, nn

from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.heads.projection import (
    ProjectionHead,
    contrast_stage,
    gather_positions,
    sample_positions,
)
from nnunet_invariance.trainers.base import InvarianceTrainer


class AliceTrainer(InvarianceTrainer):
    """Alice's encoder, with a patch-wise InfoNCE between two intensity views of each patch (arXiv 2411.05223)."""

    method = "alice"
    dimensions = (3,)

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """A projection head on the deepest encoder stage whose map has enough positions."""
        self.stage = contrast_stage(self.configuration_manager.patch_size, strides, self.options.positions)
        self.contrast = PatchInfoNCE(self.options.temperature)
        self.print_to_log_file(
            f"InfoNCE on encoder stage {self.stage} of {len(channels)} (stride {strides[self.stage]})"
        )
        return nn.ModuleDict({"projection": ProjectionHead(channels[self.stage])})

    def aux_losses(self, first: list[Tensor], second: list[Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """InfoNCE at positions with image content, the same ones in both views."""
        maps = first[self.stage], second[self.stage]
        samples, _, *size = maps[0].shape
        drawn = sample_positions(batch["content"][:samples], size, self.options.positions, self.generator)
        index, counts = (tensor.to(self.device) for tensor in drawn)
        rows = (self.aux["projection"](gather_positions(feature_map, index)) for feature_map in maps)
        return {"info_nce": self.contrast(*rows, counts)}
