"""Base of the trainers with auxiliary losses between two intensity views of each patch."""

from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.utilities.helpers import empty_cache
from torch import Tensor, nn

from nnunet_invariance.augmentation.views import MultiView
from nnunet_invariance.errors import DeviceMemoryError, WeightsIncompatibleError
from nnunet_invariance.networks.feature_hook import EncoderFeatureHook
from nnunet_invariance.networks.planned import cumulative_strides
from nnunet_invariance.plans.options import AuxiliaryLossOptions
from nnunet_invariance.trainers.configuration import encoder_of
from nnunet_invariance.trainers.pretrained import PretrainedTrainer
from nnunet_invariance.trainers.schedule import WarmupPolySchedule, ramp
from nnunet_invariance.trainers.seeding import Stream
from nnunet_invariance.trainers.stepping import average_gradients, clipped_step, copy_from_first_rank, views_on_device


class AuxiliaryLossTrainer(PretrainedTrainer):
    r"""nnU-Net with a pre-trained encoder and auxiliary losses between two intensity views of each patch.

    .. math:: L = L_{seg}(x, y) + \sum_k w_k L_k

    The segmentation loss is computed on the first view; the second view passes through the encoder only. Modules that
    only the auxiliary losses train are in ``self.aux``, outside of the network, and prediction does not need them. With
    ``"aux": false`` a step is nnU-Net's own.

    A method's trainer defines :meth:`build_aux` and :meth:`aux_losses`, and may override the other public methods.

    >>> AuxiliaryLossTrainer.options_class().aux_weight
    0.1
    """

    options_class: ClassVar[type[AuxiliaryLossOptions]] = AuxiliaryLossOptions
    options: AuxiliaryLossOptions
    #: Remedy for the log if the device runs out of memory although the second view has one sample only.
    memory_remedy: ClassVar[str] = '"aux": false in the plans block "nnunet_invariance"'

    def set_up(self) -> None:
        """As the base; creates the attributes of the auxiliary losses, which are built later."""
        super().set_up()
        self.aux: nn.ModuleDict = nn.ModuleDict()
        self.feature_hook: EncoderFeatureHook | None = None
        self.generator = torch.Generator()
        self.step_in_epoch = 0

    # ---- what a method's trainer defines -----------------------------------------------------------------------------

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """Build the modules of the auxiliary losses, by name; every parameter must get a gradient in every step.

        Args:
            channels: number of channels of each encoder stage, finest first.
            strides: cumulative strides of each encoder stage, in voxels per axis.
        """
        raise NotImplementedError

    def aux_losses(self, first: list[Tensor], second: list[Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute the auxiliary losses by name, each a scalar.

        Args:
            first, second: encoder maps (B, C_s, *spatial_s) of both views, finest first.
            batch: ``views`` (:class:`Views` on the device), ``valid_mask`` (B, 1, *spatial) where the augmentation ran,
                ``target`` and ``keys``. If memory is short, the batch has more samples than the maps, which hold the
                first samples.
        """
        raise NotImplementedError

    def weight_of(self, name: str) -> float:
        """Weight of one auxiliary loss in this step; :attr:`aux_weight` for all of them here."""
        return self.aux_weight

    def view_transforms(self, pipeline: BasicTransform) -> BasicTransform:
        """Wrap nnU-Net's training transforms so that they make the views of a patch."""
        return MultiView(pipeline, self.num_input_channels)

    def prepare_views(self, encoder: nn.Module) -> None:
        """Register the feature hook and compile the pass of the second view.

        The network exists but is not compiled yet: ``torch.compile`` ignores hooks that are registered later.
        """
        self.feature_hook = EncoderFeatureHook(encoder)
        # `forward` itself does not run the hook, which is for passes of the whole network.
        self.second_pass = torch.compile(encoder.forward) if self._do_i_compile() else encoder.forward

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the segmentation loss and the auxiliary losses by name.

        Args:
            samples: number of samples of the second view, the first ones of the batch.
        """
        assert self.feature_hook is not None
        views = batch["views"]
        segmentation = self.loss(self.network(views.first), batch["target"])
        first = [skip[:samples] for skip in self.feature_hook.pop()]
        return segmentation, self.aux_losses(first, self.second_pass(views.second[:samples]), batch)

    def losses_of_later_pass(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute auxiliary losses of an additional pass, after the first graph is freed; none here.

        With a separate backward pass the device holds one graph at a time.
        """
        return {}

    def reduce_memory(self) -> bool:
        """Halve the second-view batch; False if it has one sample already."""
        if self.second_samples == 1:
            return False
        self.second_samples //= 2
        self.print_to_log_file(
            f"WARNING: out of memory: from now on the second view is made for {self.second_samples} of "
            f"{self.batch_size} samples of a batch."
        )
        return True

    # ---- life cycle --------------------------------------------------------------------------------------------------

    @property
    def trains_on_views(self) -> bool:
        """Whether a training step differs from nnU-Net's own."""
        return self.options.aux

    @property
    def progress(self) -> float:
        """Fraction of the run before this step, in [0, 1)."""
        return (self.current_epoch + self.step_in_epoch / self.num_iterations_per_epoch) / self.num_epochs

    @property
    def aux_weight(self) -> float:
        """Weight of the auxiliary losses in this step, after the ramp."""
        return self.full_aux_weight * ramp(self.progress, self.options.aux_ramp)

    @property
    def full_aux_weight(self) -> float:
        """Weight of the auxiliary losses without the ramp."""
        return self.options.aux_weight

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolySchedule]:
        """Build the auxiliary modules, the same on all ranks, then the optimiser."""
        if self.trains_on_views:
            encoder = encoder_of(self.plain_network, type(self).__name__)
            self.second_samples = self.batch_size
            self.prepare_views(encoder)
            aux = self.build_aux(list(encoder.output_channels), cumulative_strides(encoder.strides))
            self.aux = aux.to(self.device)
            if self.is_ddp:
                copy_from_first_rank(self.aux)
        return super().configure_optimizers()

    def extra_parameters(self) -> list[nn.Parameter]:
        """Parameters of the auxiliary modules."""
        return list(self.aux.parameters())

    def trained_modules(self) -> list[nn.Module]:
        """The network and the auxiliary modules."""
        return [self.network, self.aux]

    def adapt_transforms(self, pipeline: BasicTransform) -> BasicTransform:
        """nnU-Net's transforms; for several views if an auxiliary loss needs them."""
        return self.view_transforms(pipeline) if self.trains_on_views else pipeline

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; seeds the generator of the auxiliary losses."""
        super().on_train_epoch_start()
        self.step_in_epoch = 0
        self.seed_generator(self.generator, Stream.POSITIONS)

    def checkpoint_block(self) -> dict[str, Any]:
        """Adds the auxiliary modules."""
        return {**super().checkpoint_block(), "aux_state": self.aux.state_dict()}

    def load_checkpoint_block(self, block: dict[str, Any]) -> None:
        """Restore the auxiliary modules and the transfer report.

        Raises:
            WeightsIncompatibleError: the options of the plans now give other auxiliary modules.
        """
        states = block["aux_state"], self.aux.state_dict()
        found, expected = ({name: value.shape for name, value in state.items()} for state in states)
        if found != expected:
            raise WeightsIncompatibleError(
                f"The checkpoint in {self.output_folder} was trained with the options {block['options']}, but the "
                f"plans now hold {self.options.to_dict()}, which give other auxiliary modules. Restore the options in "
                "the plans, or start a new run without --c."
            )
        super().load_checkpoint_block(block)
        self.aux.load_state_dict(block["aux_state"])

    def epoch_means(self, losses: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Adds the weight of the auxiliary losses."""
        return {**super().epoch_means(losses), "aux_weight": self.aux_weight}

    # ---- step --------------------------------------------------------------------------------------------------------

    def update(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """One optimiser step on all losses; nnU-Net's own step if there are no auxiliary losses."""
        losses = self._update_on_views(batch) if self.trains_on_views else super().update(batch)
        self.step_in_epoch += 1
        return losses

    def _update_on_views(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        batch = views_on_device(batch, self.num_input_channels, self.device)
        losses = self._backward_in_memory(batch)
        self.add_unlabelled_gradients(batch["views"].first, batch["target"])
        if self.is_ddp:
            average_gradients(self.aux)
        clipped_step(self.optimizer, self.grad_scaler, self.guard)
        values = torch.stack([loss.detach().float() for loss in losses.values()]).cpu().numpy()
        return {name: np.asarray(value) for name, value in zip(losses, values, strict=True)}

    def add_unlabelled_gradients(self, data: Tensor, target: Tensor | list[Tensor]) -> None:
        """As the base; the feature hook does not keep the maps of the unlabelled batch."""
        super().add_unlabelled_gradients(data, target)
        if self.feature_hook:
            self.feature_hook.clear()

    def _backward_in_memory(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Forward and backward pass; repeated with less memory if the device runs out of it.

        Raises:
            DeviceMemoryError: memory cannot be reduced further, or several devices train together.
        """
        while True:
            try:
                return self._backward(batch)
            except torch.OutOfMemoryError as error:
                if self.is_ddp or not self.reduce_memory():
                    msg = (
                        f"The device ran out of memory with auxiliary losses ({str(error).splitlines()[0]}). Remedy: "
                        f"{self.memory_remedy}, or a smaller batch size in a plans copy; then start again."
                    )
                    self.print_to_log_file(msg)
                    raise DeviceMemoryError(msg) from error
            if self.feature_hook:
                self.feature_hook.clear()
            self.optimizer.zero_grad(set_to_none=True)
            empty_cache(self.device)

    def _backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Compute all losses and add up their gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            segmentation, losses = self.losses_of_views(batch, self.second_samples)
        total = segmentation + self._weighted_sum(losses)
        self.add_gradients(total)
        with self.precision.autocast():
            later = self.losses_of_later_pass(batch)
        if later:
            added = self._weighted_sum(later)
            total = total.detach() + added
            if added.requires_grad:
                self.add_gradients(total)
        return {"loss": segmentation, **losses, **later, "total": total}

    def _weighted_sum(self, losses: dict[str, Tensor]) -> Tensor:
        return sum((self.weight_of(name) * loss for name, loss in losses.items()), torch.zeros((), device=self.device))
