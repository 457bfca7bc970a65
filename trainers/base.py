"""The base of the trainers with a pre-trained encoder and auxiliary losses between two views."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.utilities.helpers import empty_cache
from torch import Tensor, nn

from nnunet_invariance.augmentation.views import MultiView
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.feature_hook import EncoderFeatureHook
from nnunet_invariance.networks.planned import cumulative_strides
from nnunet_invariance.plans.options import TrainerOptions
from nnunet_invariance.trainers.baseline import BaselineTrainer
from nnunet_invariance.trainers.configuration import check_supported, encoder_of
from nnunet_invariance.trainers.curves import draw_curves, log_curves
from nnunet_invariance.trainers.finite_guard import FiniteGuard, is_finite
from nnunet_invariance.trainers.parameter_groups import Group, make_sgd, without
from nnunet_invariance.trainers.schedule import WarmupPolySchedule, ramp
from nnunet_invariance.trainers.seeding import mix
from nnunet_invariance.trainers.stepping import average_gradients, clipped_step, copy_from_first_rank, views_on_device
from nnunet_invariance.trainers.weights import find_and_load_weights, versions

POSITIONS = 2  # the stream of positions, beside those of training and validation batches


class InvarianceTrainer(BaselineTrainer):
    """nnU-Net with a pre-trained encoder and auxiliary losses between two intensity views of each patch.

    The segmentation loss is taken on the first view; the second goes through the encoder only. The network is the one
    that nnU-Net planned; what the auxiliary losses train beside it lives in ``self.aux`` and is not needed at
    prediction. Weights enter at epoch 0, so that continuing, validation and prediction need no encoder file. With
    ``"aux": "none"`` a step is nnU-Net's own.

    A method's trainer sets the class attributes and, for its losses, :meth:`build_aux` and :meth:`aux_losses`.

    Raises:
        UnsupportedConfigurationError: a cascade, or dimensions that the method does not support.
    """

    options_class: ClassVar[type[TrainerOptions]] = TrainerOptions
    options: TrainerOptions
    #: Name of the pre-training whose weights are taken.
    method: ClassVar[str]
    #: Numbers of spatial dimensions that the method supports.
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    #: What to do where not even a second view of one sample fits.
    memory_remedy: ClassVar[str] = '"aux": "none" in the plans block "nnunet_invariance"'
    #: Set by names such as ``AliceTrainer_scratch``: random encoder at the full learning rate, nothing frozen.
    scratch: ClassVar[bool] = False

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature, read by inspection
    ) -> None:
        self.check(plans, configuration, dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.aux: nn.ModuleDict = nn.ModuleDict()
        self.feature_hook: EncoderFeatureHook | None = None
        self.transfer_report: dict[str, Any] | None = None
        self.generator = torch.Generator()
        self.step_in_epoch = 0
        self.guard = FiniteGuard()
        self.curves: list[str] = []

    def check(self, plans: dict, configuration: str, dataset_json: dict) -> None:
        """Refuse plans or data that the method does not support, before anything is made."""
        check_supported(plans, configuration, self.dimensions, type(self).__name__)

    def build_aux(self, channels: list[int], strides: list[tuple[int, ...]]) -> nn.ModuleDict:
        """The modules that the auxiliary losses train, by name; every parameter must get a gradient in every step.

        Args:
            channels: of each encoder stage, finest first.
            strides: cumulative, in voxels per axis, of each encoder stage.
        """
        raise NotImplementedError

    def aux_losses(self, first: list[Tensor], second: list[Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The auxiliary losses by name, each a scalar; their sum enters with ``aux_weight``.

        Args:
            first, second: encoder maps (B, C_s, *spatial_s) of both views, finest first.
            batch: ``views`` (:class:`Views` on the device), ``content`` (B, 1, *spatial) on the CPU, ``target`` and
                ``keys``; where memory is short they hold more samples than the maps, whose samples come first.
        """
        raise NotImplementedError

    def initialize(self) -> None:
        """As nnU-Net; remembers the initial values, to notice weights that others load before training."""
        super().initialize()
        self._initial_versions = versions(self.plain_network)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolySchedule]:
        """SGD as in nnU-Net, over decoder, encoder and auxiliary modules with a rate for each.

        nnU-Net calls this when the network stands, but before its first (compiled) pass: the moment for the tap.
        """
        module = encoder_of(self.plain_network, type(self).__name__)
        if self.trains_on_views:
            self._build_views(module)
        encoder, undecayed = self.encoder_parameters(module)
        rest = without(self.plain_network.parameters(), [*encoder, *undecayed])
        o = self.options
        factor, *waiting = (1.0, 0, 0.0) if self.scratch else (o.encoder_lr_factor, o.frozen_epochs, o.warmup)
        slow = (self.initial_lr * factor, *waiting)
        # The decoder comes first: nnU-Net's log and progress.png show the rate of the first group.
        groups = [Group(rest, self.initial_lr), Group(encoder, *slow)]
        groups += [Group(list(self.aux.parameters()), self.initial_lr), Group(undecayed, *slow, decay=0.0)]
        return make_sgd(groups, self.weight_decay, self.num_epochs)

    @property
    def trains_on_views(self) -> bool:
        """Whether a step is more than nnU-Net's own."""
        return self.options.aux != "none"

    def encoder_parameters(self, encoder: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters with the rate of the encoder, with weight decay and without."""
        return list(encoder.parameters()), []

    def _build_views(self, encoder: nn.Module) -> None:
        """Tap, second pass and auxiliary modules."""
        self.feature_hook = EncoderFeatureHook(encoder)
        # `forward` itself: the tap is for passes of the whole network.
        self.second_pass = torch.compile(encoder.forward) if self._do_i_compile() else encoder.forward
        self.second_samples = self.batch_size
        self._build_aux(encoder)

    def _build_aux(self, encoder: nn.Module) -> None:
        """Auxiliary modules, the same on all ranks."""
        self.aux = self.build_aux(list(encoder.output_channels), cumulative_strides(encoder.strides)).to(self.device)
        if self.is_ddp:
            copy_from_first_rank(self.aux)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's own pipeline, for two views and a clean one where an auxiliary loss needs them."""
        transforms = super().get_training_transforms(*args, **kwargs)
        return self.views_of(transforms) if self.trains_on_views else transforms

    def views_of(self, transforms: BasicTransform) -> BasicTransform:
        """What the views of a patch come from."""
        return MultiView(transforms, self.num_input_channels)

    def on_train_start(self) -> None:
        """Bring the pre-trained encoder in, at epoch 0 only, then as nnU-Net.

        Raises:
            WeightsNotFoundError, WeightsIncompatibleError, CheckpointCorruptError: no run without its weights.
        """
        if not self.was_initialized:
            self.initialize()
        self.print_to_log_file(f"Options of {type(self).__name__}: {self.options.to_dict()}")
        if self.current_epoch == 0:
            self.transfer_report = self._bring_weights()
            if self.local_rank == 0:
                text = json.dumps(self.transfer_report, indent=2)
                atomic_write(Path(self.output_folder, "transfer_report.json"), lambda file: file.write(text.encode()))
        super().on_train_start()

    def _bring_weights(self) -> dict[str, Any]:
        """Fill the network by the rules of the trainer's name; what came of it, in native types."""
        loaded = versions(self.plain_network) != self._initial_versions
        if self.scratch and loaded:
            msg = f"{type(self).__name__} trains from random weights, but -pretrained_weights has filled the network. "
            raise WeightsIncompatibleError(f"{msg}Leave -pretrained_weights away, or take BaselineTrainer.")
        if self.scratch:
            self.print_to_log_file("Random encoder (scratch): no place is searched for weights.")
            return {"location": "none: scratch"}
        if loaded:
            self.print_to_log_file(
                f"WARNING: -pretrained_weights was given: its weights stay, and {self.method} weights are not searched."
            )
            return {"location": "-pretrained_weights"}
        return self.load_weights()

    def load_weights(self) -> dict[str, Any]:
        """Weights of this method from the four places; where they came from and what came of them."""
        names = (self.plans_manager.dataset_name, self.plans_manager.plans_name, self.configuration_name)
        return find_and_load_weights(self.plain_network, self.method, names, self.options, self.print_to_log_file)

    def checkpoint_block(self) -> dict[str, Any]:
        """Adds method, transfer report and auxiliary modules."""
        own = {"method": self.method, "transfer_report": self.transfer_report, "aux_state": self.aux.state_dict()}
        return {**super().checkpoint_block(), **own}

    def load_checkpoint_block(self, block: dict[str, Any]) -> None:
        """Take the auxiliary modules and the transfer report back.

        Raises:
            WeightsIncompatibleError: the plans now ask for other auxiliary modules.
        """
        shapes = [{name: value.shape for name, value in s.items()} for s in (block["aux_state"], self.aux.state_dict())]
        if shapes[0] != shapes[1]:
            raise WeightsIncompatibleError(
                f"The checkpoint in {self.output_folder} was trained with {block['options']}, but the plans say "
                f"{self.options.to_dict()}, which makes other auxiliary modules. Restore the options in the plans, or "
                "start anew without --c."
            )
        self.transfer_report = block["transfer_report"]
        self.aux.load_state_dict(block["aux_state"])

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; positions are drawn anew for each epoch, so that a continued run does not repeat its draws."""
        super().on_train_epoch_start()
        self.step_in_epoch = 0
        self.guard.start_epoch()
        if self.options.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(mix(self.options.seed, self.local_rank, POSITIONS, self.current_epoch))

    @property
    def aux_weight(self) -> float:
        """Weight of the auxiliary losses in this step."""
        epochs_done = self.current_epoch + self.step_in_epoch / self.num_iterations_per_epoch
        return self.options.aux_weight * ramp(epochs_done / self.num_epochs, self.options.aux_ramp)

    def weight_of(self, name: str) -> float:
        """Weight of one auxiliary loss in this step; all the same here."""
        return self.aux_weight

    def train_step(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """One optimiser step; ``loss`` is the segmentation loss, to be compared with nnU-Net's validation loss."""
        losses = self._train_on_views(batch) if self.trains_on_views else super().train_step(batch)
        self.step_in_epoch += 1
        if warning := self.guard.check(losses, batch["keys"]):
            self.print_to_log_file(warning)
        return losses

    def _train_on_views(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        losses = self._backward_in_memory(views_on_device(batch, self.num_input_channels, self.device))
        if self.is_ddp:
            average_gradients(self.aux)
        clipped_step(self.optimizer, self.grad_scaler)
        values = torch.stack([loss.detach().float() for loss in losses.values()]).cpu().numpy()
        return {name: np.asarray(value) for name, value in zip(losses, values, strict=True)}

    def _backward_in_memory(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Forward and backward; where the device's memory is short, once more with less of it.

        Raises:
            torch.OutOfMemoryError: nothing is left to save, or several devices train together.
        """
        while True:
            try:
                return self._backward(batch, self.second_samples)
            except torch.OutOfMemoryError:
                if self.is_ddp or not self.reduce_memory():
                    self.print_to_log_file(
                        f"Out of memory with a second view. Remedy: {self.memory_remedy}, or a smaller batch size in "
                        "a plans copy."
                    )
                    raise
            if self.feature_hook:
                self.feature_hook.clear()
            self.optimizer.zero_grad(set_to_none=True)
            empty_cache(self.device)

    def reduce_memory(self) -> bool:
        """From here on the second view of half the samples, said in the log; False where it is one already."""
        if self.second_samples == 1:
            return False
        self.second_samples //= 2
        self.print_to_log_file(
            f"WARNING: out of memory: from here on the second view is made for {self.second_samples} of "
            f"{self.batch_size} samples of a batch."
        )
        return True

    def _backward(self, batch: dict[str, Any], samples: int) -> dict[str, Tensor]:
        """Both losses and their gradients, the second view on the first ``samples`` of the batch."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            segmentation, parts = self.losses_of_views(batch, samples)
        total = segmentation + sum(self.weight_of(name) * part for name, part in parts.items())
        self.add_gradients(total)
        return {"loss": segmentation, **parts, "total": total}

    def precision(self) -> AbstractContextManager:
        """Mixed on CUDA, as nnU-Net's."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def add_gradients(self, total: Tensor) -> None:
        """Backward; where the loss is not finite no parameter keeps a gradient, and the optimiser changes nothing."""
        if self.grad_scaler is not None:
            self.grad_scaler.scale(total).backward()  # skips the step by itself where gradients are not finite
        elif total.isfinite():
            total.backward()
        else:
            self.optimizer.zero_grad(set_to_none=True)

    def losses_of_views(self, batch: dict[str, Any], samples: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Segmentation loss, and the auxiliary losses by name, with a second view of the first ``samples`` samples."""
        views = batch["views"]
        segmentation = self.loss(self.network(views.first), batch["target"])
        first = [skip[:samples] for skip in self.feature_hook.pop()]
        return segmentation, self.aux_losses(first, self.second_pass(views.second[:samples]), batch)

    def on_train_epoch_end(self, train_outputs: list[dict[str, np.ndarray]]) -> None:
        """Mean losses of the epoch, over the steps whose losses were finite."""
        finite = [losses for losses in train_outputs if is_finite(losses)] or train_outputs
        super().on_train_epoch_end(finite)
        means = {f"train_{name}": float(np.mean([o[name] for o in finite])) for name in finite[0] if name != "loss"}
        means["aux_weight"] = self.aux_weight
        means["encoder_lr"] = self.optimizer.param_groups[1]["lr"]
        means["non_finite_steps"] = float(self.guard.in_epoch)
        self.curves = list(means)
        log_curves(self.logger, means, self.current_epoch)

    def on_epoch_end(self) -> None:
        """As nnU-Net; then the second picture."""
        super().on_epoch_end()
        if self.local_rank == 0:
            names = ["train_losses", "val_losses", *self.curves]
            draw_curves(self.logger, names, Path(self.output_folder, "invariance.png"))
