"""Training on one modality for another: style interventions and invariance between styles (arXiv 2411.05223)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.augmentation.interventions.base import Domain, coarse_axes, match_statistics
from nnunet_invariance.augmentation.interventions.slaug import SLAug, saliency_fusion
from nnunet_invariance.augmentation.on_device import RawPatches
from nnunet_invariance.augmentation.stored_views import DatasetWithViews, read_index, views_folder
from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.errors import OptionError
from nnunet_invariance.losses.consistency import ConsistencyLoss
from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.heads.projection import Positions, sample_positions
from nnunet_invariance.nnunet.preprocessing_fingerprint import preprocessing_fingerprint
from nnunet_invariance.plans.options import ICMSegTrainerOptions
from nnunet_invariance.plans.zscore import ct_remedy
from nnunet_invariance.trainers.dense_contrast import DenseContrastTrainer
from nnunet_invariance.trainers.targets import finest, rows_of, tissue_labels
from nnunet_invariance.trainers.weights import load_checkpoint_into
from nnunet_invariance.weights.locate import named_weights


class ICMSegTrainer(DenseContrastTrainer):
    r"""Both views pass through the network, the second in another style (arXiv 2411.05223).

    .. math:: L = \tfrac{1}{2} \big( L_{seg}(x, y) + L_{seg}(x', y) \big) + \lambda L_{InfoNCE} + \kappa L_{KL}

    x' is nnU-Net's second intensity view after a style intervention, sampled anew in every step, or a stored view.
    Weights are loaded only from a checkpoint that is named, of any method; otherwise the network starts from random
    weights.

    Raises:
        UnsupportedConfigurationError: a cascade.
        OptionError: an option is wrong, or ``stages`` names a stage that the network does not have.
        StyleFolderError: stored views are asked for, but missing, or of another preprocessing.

    >>> ICMSegTrainer.options_class().style
    'mixed'
    """

    options_class = ICMSegTrainerOptions
    options: ICMSegTrainerOptions
    method = "icmseg"
    dimensions = (2, 3)
    #: Keys of a batch that are stored views.
    stored: frozenset[str] = frozenset()

    def get_tr_and_val_datasets(self) -> tuple[nnUNetBaseDataset | DatasetWithViews, nnUNetBaseDataset]:
        """nnU-Net's data sets; training cases have stored views if the options ask for them."""
        train, val = super().get_tr_and_val_datasets()
        if not self.options.aux or not self.options.views_probability:
            return train, val
        folder = views_folder(Path(self.preprocessed_dataset_folder))
        views = read_index(folder, preprocessing_fingerprint(self.plans_manager, self.configuration_manager))
        train = DatasetWithViews(train, folder, views, self.options.views_probability)
        self.stored = frozenset(train.of_view)
        self.print_to_log_file(
            f"{len(self.stored)} stored views of {len(train.cases.identifiers)} training cases, used with probability "
            f"{self.options.views_probability:g}"
        )
        return train, val

    def raw_patches(self) -> RawPatches:
        """As the base; if there are stored views, all patches have the channels of both views."""
        stored = self.options.aux and self.options.views_probability > 0
        return RawPatches(self.num_input_channels if stored else None)

    def on_train_start(self) -> None:
        """As the base; warns about CT normalisation."""
        super().on_train_start()
        self.print_to_log_file(f"Style: {self.options.style}")
        if remedy := ct_remedy(self.configuration_manager.normalization_schemes, *self.plan_names):
            self.print_to_log_file(f"WARNING: {remedy}")

    def load_weights(self) -> dict[str, Any]:
        """Load a checkpoint of any method that the user has named; keep random weights without one."""
        found = named_weights(self.options.checkpoint)
        if found is not None:
            return load_checkpoint_into(self.plain_network, found, self.options, self.print_to_log_file)
        self.print_to_log_file("No checkpoint is named: random weights. ICMSegTrainer needs no pre-training.")
        return {"location": "none: random weights"}

    # ---- losses ------------------------------------------------------------------------------------------------------

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of both segmentation losses, and the auxiliary losses; one pass over both views."""
        assert self.feature_hook is not None
        first, target = batch["views"].first, batch["target"]
        both = self.network(torch.cat((first, self.style_view(batch, samples))))
        maps = self.feature_hook.pop()
        original, styled = slice(len(first)), slice(len(first), None)
        segmentation = self.loss(rows_of(both, original), target)
        segmentation = segmentation + self.loss(rows_of(both, styled), rows_of(target, slice(samples)))
        losses = self.aux_losses([m[:samples] for m in maps], [m[styled] for m in maps], batch)
        if self.options.consistency_weight:
            logits = finest(both)
            consistency = ConsistencyLoss(multilabel=self.label_manager.has_regions)
            losses["consistency"] = consistency(logits[:samples], logits[styled])
        return segmentation / 2, losses

    def weight_of(self, name: str) -> float:
        """The ramped weight for InfoNCE, the constant ``consistency_weight`` for the divergence."""
        return self.options.consistency_weight if name == "consistency" else super().weight_of(name)

    def style_view(self, batch: dict[str, Any], samples: int) -> Tensor:
        """Second view of the first ``samples`` samples in a random style, with the image's mean and standard deviation.

        Stored views keep their values, and so do voxels in the padding and outside of the nonzero mask.
        """
        image, valid_mask = batch["views"].second[:samples].float(), batch["views"].valid_mask[:samples] > 0
        unstored = copy_to(image.device, [key not in self.stored for key in batch["keys"][:samples]])
        target = rows_of(batch["target"], slice(samples))
        labels, classes = tissue_labels(finest(target), self.label_manager)
        coarse = coarse_axes(self.configuration_manager.spacing)
        intervention = INTERVENTIONS[self.options.style]()
        parameters = intervention.sample(Domain(tuple(image.shape), classes, coarse), self.generator)
        styled = intervention.apply(image, labels, parameters)
        if isinstance(intervention, SLAug):
            whole = intervention.apply_global(image, parameters)
            gradient = self._image_gradient(torch.where(valid_mask, match_statistics(whole, image), image), target)
            styled = saliency_fusion(whole, styled, gradient)
        changed = valid_mask & unstored.view(-1, *[1] * (image.ndim - 1))
        return torch.where(changed, match_statistics(styled, image), image)

    def _image_gradient(self, image: Tensor, target: Tensor | list[Tensor]) -> Tensor:
        """Gradient of the segmentation loss with respect to the image; parameters get none."""
        assert self.feature_hook is not None
        image = image.requires_grad_()
        loss = self.loss(self.plain_network(image), target)
        self.feature_hook.clear()
        loss = loss if self.grad_scaler is None else self.grad_scaler.scale(loss)
        with torch.autocast(image.device.type, enabled=False):  # a backward pass belongs outside of autocast
            return torch.autograd.grad(loss, image)[0]

    # ---- InfoNCE -----------------------------------------------------------------------------------------------------

    def build_contrast(self) -> nn.Module:
        """InfoNCE with the negatives and the label mask of the options."""
        self.contrast_reads_labels = self.options.label_mask != "none"
        return PatchInfoNCE(self.options.temperature, self.options.contrast, self.options.label_mask)

    def contrast_stages(self, deepest: int, stages: int) -> Sequence[int]:
        """The stages of the options, or the deepest one with enough positions.

        Raises:
            OptionError: the encoder has no such stage.
        """
        chosen = self.options.stages or [deepest]
        if max(chosen) >= stages:
            raise OptionError(
                f"Option 'stages' of the plans block is {chosen}; the encoder of {self.configuration_name} has the "
                f"stages 0 to {stages - 1}. Choose from these in your plans copy."
            )
        return chosen

    def sample_positions(self, valid_mask: Tensor, size: Sequence[int]) -> Positions:
        """As the base; with ``contrast`` "same_position", all samples of all ranks share their positions."""
        if self.options.contrast != "same_position":
            return super().sample_positions(valid_mask, size)
        seed = torch.randint(2**62, (1,), generator=self.generator).to(self.device)
        if self.is_ddp:
            dist.broadcast(seed, 0)
        generator = torch.Generator().manual_seed(int(seed))
        return sample_positions(valid_mask, size, self.options.num_positions, generator, shared=True)
