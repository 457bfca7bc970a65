"""Base of the trainers that change the style of training images."""

from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor, nn

from nnunet_invariance.augmentation.interventions import INTERVENTIONS, TissueIntervention
from nnunet_invariance.augmentation.interventions.base import Domain, Intervention, coarse_axes, match_statistics
from nnunet_invariance.augmentation.interventions.slaug import SLAug, saliency_fusion
from nnunet_invariance.augmentation.views import MultiView
from nnunet_invariance.common.device_copies import copy_to
from nnunet_invariance.losses.consistency import ConsistencyLoss
from nnunet_invariance.plans.style_options import StyleOptions
from nnunet_invariance.plans.zscore import ct_remedy
from nnunet_invariance.trainers.configuration import encoder_of
from nnunet_invariance.trainers.dense_contrast import DenseContrastTrainer
from nnunet_invariance.trainers.gradient_share import GradientShare
from nnunet_invariance.trainers.schedule import ramp
from nnunet_invariance.trainers.targets import finest, rows_of, tissue_labels


class StyleTrainer(DenseContrastTrainer):
    r"""nnU-Net on images in random styles, in a pair of views or in a single view.

    .. math:: L = \tfrac{1}{2} \big( L_{seg}(x, y) + L_{seg}(x', y) \big) + \lambda L_{InfoNCE} + \kappa L_{KL}

    Of a pair, x is nnU-Net's first intensity view and x' the second one, in which a style intervention has changed each
    sample with the probability of the options. With single views, the loss is :math:`L_{seg}(x', y)`.

    >>> StyleTrainer.options_class().style
    'mixed'
    """

    options_class: ClassVar[type[StyleOptions]] = StyleOptions
    options: StyleOptions
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def set_up(self) -> None:
        """As the base; creates the weight that follows the gradients."""
        super().set_up()
        share = self.options.aux_gradient_share
        self.gradient_share = None if share is None else GradientShare(share)

    @property
    def paired(self) -> bool:
        """Whether a step uses two views of each patch."""
        return self.options.style_views == "pair"

    @property
    def trains_on_views(self) -> bool:
        """A single view that is never styled needs no views: the step is nnU-Net's own."""
        return super().trains_on_views and (self.paired or self.options.style_probability > 0)

    def view_transforms(self, pipeline: BasicTransform) -> BasicTransform:
        """As the base; a single view needs the intensity transforms once."""
        return MultiView(pipeline, self.num_input_channels, second=self.paired)

    def prepare_views(self, encoder: nn.Module) -> None:
        """Register the feature hook if InfoNCE needs it."""
        if self.options.contrasts:
            super().prepare_views(encoder)

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """The projection heads of InfoNCE; none without it."""
        return super().build_aux(channels, strides) if self.options.contrasts else nn.ModuleDict()

    def on_train_start(self) -> None:
        """As the base; warns about CT normalisation."""
        super().on_train_start()
        if not (self.trains_on_views and self.options.style_probability):
            return
        self.print_to_log_file(f"Style: {self.options.style}")
        if remedy := ct_remedy(self.configuration_manager.normalization_schemes, *self.plan_names):
            self.print_to_log_file(f"WARNING: {remedy}")

    def reduce_memory(self) -> bool:
        """As the base; a single view cannot be made smaller."""
        return self.paired and super().reduce_memory()

    # ---- losses ------------------------------------------------------------------------------------------------------

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The segmentation loss of the single view, or the losses of the pair in one pass."""
        if not self.paired:
            view = self.style_view(batch, len(batch["views"].first))
            return self.loss(self.network(view), batch["target"]), {}
        view = self.style_view(batch, samples)
        step = self.current_epoch * self.num_iterations_per_epoch + self.step_in_epoch
        if self.gradient_share is not None and self.gradient_share.is_due(step):
            # In a pass of its own: a compiled network does not keep its graph for a second backward pass.
            segmentation, losses = self._losses_of_pair(self.plain_network, batch, view)
            encoder = encoder_of(self.plain_network, type(self).__name__)
            scale = 1.0 if self.grad_scaler is None else self.grad_scaler.get_scale()
            self.gradient_share.update(segmentation, losses["info_nce"], list(encoder.parameters()), scale)
        return self._losses_of_pair(self.network, batch, view)

    def _losses_of_pair(
        self, network: nn.Module, batch: dict[str, Any], view: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of both segmentation losses, and the auxiliary losses; ``view`` are the first samples of the second."""
        first, target, samples = batch["views"].first, batch["target"], len(view)
        both = network(torch.cat((first, view)))
        original, styled = slice(len(first)), slice(len(first), None)
        segmentation = self.loss(rows_of(both, original), target)
        segmentation = segmentation + self.loss(rows_of(both, styled), rows_of(target, slice(samples)))
        losses: dict[str, Tensor] = {}
        if self.feature_hook is not None:
            maps = self.feature_hook.pop()
            losses = self.aux_losses([m[:samples] for m in maps], [m[styled] for m in maps], batch)
        if self.options.consistency_weight:
            logits = finest(both)
            consistency = ConsistencyLoss(multilabel=self.label_manager.has_regions)
            losses["consistency"] = consistency(logits[:samples], logits[styled])
        return segmentation / 2, losses

    @property
    def full_aux_weight(self) -> float:
        """The weight of InfoNCE: ``aux_weight``, or the one that gives its gradient the share of the options."""
        return super().full_aux_weight if self.gradient_share is None else self.gradient_share.weight

    def weight_of(self, name: str) -> float:
        """The ramped weight for InfoNCE, the constant ``consistency_weight`` for the divergence."""
        return self.options.consistency_weight if name == "consistency" else super().weight_of(name)

    def checkpoint_block(self) -> dict[str, Any]:
        """Adds the weight that follows the gradients."""
        weight = {} if self.gradient_share is None else {"gradient_share_weight": self.gradient_share.weight}
        return {**super().checkpoint_block(), **weight}

    def load_checkpoint_block(self, block: dict[str, Any]) -> None:
        """Restore the weight that follows the gradients."""
        super().load_checkpoint_block(block)
        if self.gradient_share is not None:
            self.gradient_share.weight = block.get("gradient_share_weight", 0.0)

    # ---- styles ------------------------------------------------------------------------------------------------------

    @property
    def style_probability(self) -> float:
        """Probability that a sample of this step is styled, after start and ramp."""
        progress = self.progress - self.options.style_start
        return self.options.style_probability * ramp(progress, self.options.style_ramp) if progress >= 0 else 0.0

    def intervention(self) -> Intervention[Any]:
        """The style intervention of the options."""
        kind = INTERVENTIONS[self.options.style]
        return kind(self.options.tissues) if issubclass(kind, TissueIntervention) else kind()

    def choose_styled(self, keys: list[str]) -> Tensor:
        """Sample which of the cases of a batch are styled: (B,) bool on the CPU."""
        return torch.rand(len(keys), generator=self.generator) < self.style_probability

    def style_view(self, batch: dict[str, Any], samples: int) -> Tensor:
        """The view of the first ``samples`` samples that can be styled, with the image's mean and standard deviation.

        Samples that are not chosen keep their values, and so do voxels in the padding and outside of the nonzero mask.
        """
        views = batch["views"]
        image = (views.second if self.paired else views.first)[:samples].float()
        chosen = self.choose_styled(list(batch["keys"][:samples]))
        if not chosen.any():
            return image
        target = rows_of(batch["target"], slice(samples))
        labels, classes = tissue_labels(finest(target), self.label_manager)
        coarse = coarse_axes(self.configuration_manager.spacing)
        intervention, valid_mask = self.intervention(), views.valid_mask[:samples] > 0
        parameters = intervention.sample(Domain(tuple(image.shape), classes, coarse), self.generator)
        styled = intervention.apply(image, labels, parameters)
        if isinstance(intervention, SLAug):
            whole = intervention.apply_global(image, parameters)
            gradient = self._image_gradient(torch.where(valid_mask, match_statistics(whole, image), image), target)
            styled = saliency_fusion(whole, styled, gradient)
        changed = valid_mask & copy_to(image.device, chosen).view(-1, *[1] * (image.ndim - 1))
        return torch.where(changed, match_statistics(styled, image), image)

    def _image_gradient(self, image: Tensor, target: Tensor | list[Tensor]) -> Tensor:
        """Gradient of the segmentation loss with respect to the image; parameters get none."""
        image = image.requires_grad_()
        loss = self.loss(self.plain_network(image), target)
        if self.feature_hook is not None:
            self.feature_hook.clear()
        loss = loss if self.grad_scaler is None else self.grad_scaler.scale(loss)
        with torch.autocast(image.device.type, enabled=False):  # a backward pass belongs outside of autocast
            return torch.autograd.grad(loss, image)[0]
