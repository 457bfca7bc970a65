"""Training on one modality for another: style interventions and invariance between styles (arXiv 2411.05223)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.augmentation.interventions.base import Domain, coarse_axes, match_statistics
from nnunet_invariance.augmentation.interventions.slaug import apply_global, balance
from nnunet_invariance.augmentation.stored_views import DatasetWithViews, read_index, views_folder
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.consistency import consistency
from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.heads.projection import (
    ProjectionHead,
    contrast_stage,
    gather_positions,
    sample_positions,
)
from nnunet_invariance.nnunet.preprocessing_fingerprint import preprocessing_fingerprint
from nnunet_invariance.plans.options import ICMSegOptions
from nnunet_invariance.plans.zscore import ct_remedy
from nnunet_invariance.trainers.base import InvarianceTrainer
from nnunet_invariance.trainers.targets import finest, rows_of, tissue_labels
from nnunet_invariance.trainers.weights import load_checkpoint_into
from nnunet_invariance.weights.locate import named_weights


class ICMSegTrainer(InvarianceTrainer):
    r"""Both views through the network, the second in another style (arXiv 2411.05223).

    .. math:: L = \tfrac{1}{2} \big( L_{seg}(x, y) + L_{seg}(x', y) \big) + \lambda L_{InfoNCE} + \kappa L_{KL}

    x' is nnU-Net's second intensity view after an intervention, drawn anew in every step, or that of a stored view.
    Weights are taken only from a checkpoint that is named, of any method; the network is random otherwise.

    Raises:
        UnsupportedConfigurationError: a cascade.
        OptionError: an option is wrong, or ``stages`` names one that the network does not have.
        StyleFolderError: stored views are asked for, but missing, or of another preprocessing.
    """

    options_class = ICMSegOptions
    options: ICMSegOptions
    method = "icmseg"
    #: Keys of a batch that are stored views.
    stored: frozenset[str] = frozenset()

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """A projection head for each stage of InfoNCE."""
        deepest = contrast_stage(self.configuration_manager.patch_size, strides, self.options.positions)
        self.stages = self.options.stages or [deepest]
        if max(self.stages) >= len(channels):
            raise OptionError(
                f"Option 'stages' of the plans block is {self.stages}; the encoder of {self.configuration_name} has "
                f"the stages 0 to {len(channels) - 1}. Name some of these in your plans copy."
            )
        self.contrast = PatchInfoNCE(self.options.temperature, self.options.contrast, self.options.label_mask)
        self.print_to_log_file(f"Style {self.options.style}; InfoNCE on stages {self.stages} of {len(channels)}")
        return nn.ModuleDict({f"projection_{stage}": ProjectionHead(channels[stage]) for stage in self.stages})

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's own, without mirroring where the options say so."""
        *geometry, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.options.mirroring:
            mirror_axes = self.inference_allowed_mirroring_axes = None
        return *geometry, mirror_axes

    def get_tr_and_val_datasets(self) -> tuple[nnUNetBaseDataset | DatasetWithViews, nnUNetBaseDataset]:
        """nnU-Net's own; training cases with their stored views where the options say so."""
        train, val = super().get_tr_and_val_datasets()
        if self.options.aux == "none" or not self.options.views_probability:
            return train, val
        folder = views_folder(Path(self.preprocessed_dataset_folder))
        views = read_index(folder, preprocessing_fingerprint(self.plans_manager, self.configuration_manager))
        train = DatasetWithViews(train, folder, views, self.options.views_probability)
        self.stored = frozenset(train.of_view)
        cases, share = len(train.cases.identifiers), self.options.views_probability
        self.print_to_log_file(f"{len(self.stored)} stored views of {cases} training cases, with chance {share:g}")
        return train, val

    def on_train_start(self) -> None:
        """As the base; warns of CT normalisation."""
        super().on_train_start()
        names = (self.plans_manager.dataset_name, self.plans_manager.plans_name, self.configuration_name)
        if remedy := ct_remedy(self.configuration_manager.normalization_schemes, *names):
            self.print_to_log_file(f"WARNING: {remedy}")

    def load_weights(self) -> dict[str, Any]:
        """A checkpoint of any method that the user has named; random weights without one."""
        found = named_weights(self.options.checkpoint)
        if found is not None:
            return load_checkpoint_into(self.plain_network, found, self.options, self.print_to_log_file)
        self.print_to_log_file("No checkpoint is named: random weights. ICMSegTrainer needs no pre-training.")
        return {"location": "none: random weights"}

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of both segmentation losses, and the auxiliary losses; one pass over both views."""
        first, target = batch["views"].first, batch["target"]
        both = self.network(torch.cat((first, self.style_view(batch, samples))))
        maps = self.feature_hook.pop()
        own, styled = slice(len(first)), slice(len(first), None)
        losses = [
            self.loss(rows_of(both, own), target),
            self.loss(rows_of(both, styled), rows_of(target, slice(samples))),
        ]
        parts = self.aux_losses(rows_of(maps, slice(samples)), rows_of(maps, styled), batch)
        if self.options.consistency_weight:
            logits = finest(both)
            regions = self.label_manager.has_regions
            parts["consistency"] = consistency(logits[:samples], logits[styled], independent=regions)
        return sum(losses) / 2, parts

    def style_view(self, batch: dict[str, Any], samples: int) -> Tensor:
        """The second view of the first ``samples`` samples in a drawn style, with its own mean and s.d.

        Padding, and what is outside the nonzero mask, stays as it is; so do stored views.
        """
        image, content = batch["views"].second[:samples].float(), batch["views"].valid_mask[:samples] > 0
        drawn = torch.tensor([key not in self.stored for key in batch["keys"][:samples]], device=image.device)
        target = rows_of(batch["target"], slice(samples))
        labels, classes = tissue_labels(finest(target), self.label_manager)
        coarse = coarse_axes(self.configuration_manager.spacing)
        intervention = INTERVENTIONS[self.options.style]
        draw = intervention.sample(Domain(tuple(image.shape), classes, coarse), self.generator)
        styled = intervention.apply(image, labels, draw)
        if self.options.style == "slaug":
            whole = apply_global(image, labels, draw)
            gradient = self._gradient(torch.where(content, match_statistics(whole, image), image), target)
            styled = balance(whole, styled, gradient)
        changed = content & drawn.view(-1, *[1] * (image.ndim - 1))
        return torch.where(changed, match_statistics(styled, image), image)

    def _gradient(self, image: Tensor, target: Tensor | list[Tensor]) -> Tensor:
        """Of the segmentation loss by the image; parameters get none."""
        image = image.requires_grad_()
        loss = self.loss(self.plain_network(image), target)
        self.feature_hook.clear()
        loss = loss if self.grad_scaler is None else self.grad_scaler.scale(loss)
        return torch.autograd.grad(loss, image)[0]

    def aux_losses(self, first: list[Tensor], second: list[Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """InfoNCE at positions with image content, the same ones in both views; mean over the stages."""
        losses = []
        for stage in self.stages:
            samples, _, *size = first[stage].shape
            content, count = batch["content"][:samples], self.options.positions
            drawn = sample_positions(content, size, count, self._position_generator(), self._positions_are_shared)
            index, counts = (tensor.to(self.device) for tensor in drawn)
            head = self.aux[f"projection_{stage}"]
            rows = (head(gather_positions(feature_map[stage], index)) for feature_map in (first, second))
            losses.append(self.contrast(*rows, counts, self._labels_at(index, size, batch)))
        return {"info_nce": torch.stack(losses).mean()}

    @property
    def _positions_are_shared(self) -> bool:
        return self.options.contrast == "same_position"

    def _position_generator(self) -> torch.Generator:
        """This rank's; where positions are shared, one that is the same on all ranks."""
        if not self._positions_are_shared:
            return self.generator
        seed = torch.randint(2**62, (1,), generator=self.generator).to(self.device)
        if self.is_ddp:
            dist.broadcast(seed, 0)
        return torch.Generator().manual_seed(int(seed))

    def _labels_at(self, index: Tensor, size: Sequence[int], batch: dict[str, Any]) -> Tensor | None:
        """Labels (B, N) of drawn positions, that of the voxel in the middle of each; None where no mask reads them."""
        if self.options.label_mask == "none":
            return None
        labels, _ = tissue_labels(finest(batch["target"])[: len(index)], self.label_manager)
        coarse = F.interpolate(labels.float(), size=tuple(size), mode="nearest-exact")
        return gather_positions(coarse, index)[..., 0].long()

    def weight_of(self, name: str) -> float:
        """InfoNCE by the ramp; consistency at once."""
        return self.options.consistency_weight if name == "consistency" else super().weight_of(name)
