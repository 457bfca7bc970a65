"""Base of the trainers whose network starts from pre-trained weights."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.summed_head import SummedHeadUNet
from nnunet_invariance.plans.block import read_options
from nnunet_invariance.plans.options import PretrainedOptions
from nnunet_invariance.trainers.baseline import BaselineTrainer
from nnunet_invariance.trainers.configuration import check_supported, encoder_of
from nnunet_invariance.trainers.curves import draw_curves, log_curves
from nnunet_invariance.trainers.head import add_head, start_from_probe
from nnunet_invariance.trainers.non_finite_guard import is_finite
from nnunet_invariance.trainers.parameter_groups import ParameterGroup, exclude, make_sgd
from nnunet_invariance.trainers.schedule import WarmupPolySchedule
from nnunet_invariance.trainers.weights import find_and_load_weights, parameter_versions
from nnunet_invariance.weights.checkpoint import Checkpoint


class PretrainedTrainer(BaselineTrainer):
    """nnU-Net with a pre-trained encoder: loads weights at epoch 0, and gives the encoder a learning rate of its own.

    The network is the one that nnU-Net planned. Continuing, validation and prediction need no file of weights. A
    method's trainer sets class attributes; the shortest one is

        class MyTrainer(PretrainedTrainer):
            method = "my_method"

    >>> PretrainedTrainer.dimensions, PretrainedTrainer.scratch
    ((3,), False)

    Raises:
        UnsupportedConfigurationError: a cascade, or a number of dimensions that the method does not support.
    """

    options_class: ClassVar[type[PretrainedOptions]] = PretrainedOptions
    options: PretrainedOptions
    #: Name of the pre-training method whose weights are loaded.
    method: ClassVar[str]
    dimensions: ClassVar[tuple[int, ...]] = (3,)
    #: Segmentation head that the option ``"head": "auto"`` stands for.
    automatic_head: ClassVar[Literal["stock", "summed"]] = "stock"
    #: Set by names such as ``AliceTrainer_scratch``: random encoder, full learning rate, nothing frozen.
    scratch: ClassVar[bool] = False

    def set_up(self) -> None:
        """As the base; no weights are loaded yet."""
        super().set_up()
        self.transfer_report: dict[str, Any] | None = None
        self.curves: list[str] = []

    def check(self, plans: dict, configuration: str, dataset_json: dict) -> None:
        """Refuse cascades and numbers of dimensions that the method does not support."""
        super().check(plans, configuration, dataset_json)
        check_supported(plans, configuration, self.dimensions, type(self).__name__)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the planned network, with the head that the plans block names; prediction calls this."""
        options = read_options(PretrainedOptions, configuration_manager.configuration)
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return add_head(network, options.head, cls.automatic_head)

    def initialize(self) -> None:
        """As nnU-Net; records the parameters' versions, to detect weights that ``-pretrained_weights`` loads later."""
        super().initialize()
        self._initial_versions = parameter_versions(self.plain_network)

    # ---- optimiser -------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolySchedule]:
        """nnU-Net's SGD with parameter groups for decoder, encoder and extra parameters."""
        encoder = encoder_of(self.plain_network, type(self).__name__)
        decayed, undecayed = self.encoder_parameters(encoder)
        rest = exclude(self.plain_network.parameters(), [*decayed, *undecayed])
        factor, frozen, warmup = 1.0, 0, 0.0
        if not self.scratch:
            factor, frozen = self.options.encoder_lr_factor, self.options.frozen_epochs
            warmup = self.options.warmup
        slow = (self.initial_lr * factor, frozen, warmup)
        # The decoder comes first: nnU-Net's log and progress.png show the learning rate of the first group.
        groups = [ParameterGroup(rest, self.initial_lr), ParameterGroup(decayed, *slow)]
        groups += [ParameterGroup(self.extra_parameters(), self.initial_lr)]
        groups += [ParameterGroup(undecayed, *slow, weight_decay=0.0)]
        return make_sgd(groups, self.weight_decay, self.num_epochs)

    def encoder_parameters(self, encoder: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Parameters with the encoder's learning rate: those with weight decay, and those without."""
        return list(encoder.parameters()), []

    def extra_parameters(self) -> list[nn.Parameter]:
        """Parameters outside of the network, which have the decoder's learning rate; none here."""
        return []

    # ---- weights ---------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Load the pre-trained weights at epoch 0 and write the transfer report, then start as nnU-Net does.

        Raises:
            WeightsNotFoundError, WeightsIncompatibleError, CheckpointCorruptError: the run does not start without its
                weights.
        """
        if not self.was_initialized:
            self.initialize()
        self.print_to_log_file(f"Options of {type(self).__name__}: {self.options.to_dict()}")
        if self.current_epoch == 0:
            self.transfer_report = self.load_initial_weights()
            self.start_head()
            if self.local_rank == 0:
                write_json(Path(self.output_folder, "transfer_report.json"), self.transfer_report)
        super().on_train_start()

    def load_initial_weights(self) -> dict[str, Any]:
        """Load weights unless this is a ``_scratch`` run or ``-pretrained_weights`` was given; returns the report.

        Raises:
            WeightsIncompatibleError: a ``_scratch`` run was given ``-pretrained_weights``.
        """
        loaded = parameter_versions(self.plain_network) != self._initial_versions
        if self.scratch and loaded:
            raise WeightsIncompatibleError(
                f"{type(self).__name__} starts from random weights, but -pretrained_weights has filled the network. "
                "Remove -pretrained_weights, or use BaselineTrainer."
            )
        if self.scratch:
            self.print_to_log_file("Random initial weights (scratch): no weights are searched for.")
            return {"location": "none: scratch"}
        if loaded:
            self.print_to_log_file(
                "WARNING: the weights of -pretrained_weights are kept, and no weights of the pre-training method "
                f"{self.method!r} are searched for."
            )
            return {"location": "-pretrained_weights"}
        return self.load_weights()

    def start_head(self) -> None:
        """Start the summed head from a linear probe on the training cases, unless an option keeps nnU-Net's start."""
        network = self.plain_network
        if not isinstance(network, SummedHeadUNet) or self.options.head_start == "zero":
            return
        if self.label_manager.has_regions:
            self.print_to_log_file("The labels are regions: the summed head starts as nnU-Net's own head.")
            return
        cases, _ = self.do_split()
        accuracy = start_from_probe(
            network,
            self.preprocessed_dataset_folder,
            sorted(cases),
            self.configuration_manager.patch_size,
            self.label_manager.num_segmentation_heads,
            self.label_manager.ignore_label,
            self.options.seed or 0,
        )
        self.print_to_log_file(f"The summed head starts from a linear probe (accuracy {accuracy:.3f} on its voxels).")

    def load_weights(self) -> dict[str, Any]:
        """Find weights of this method in the four locations and load them; returns the transfer report."""
        return find_and_load_weights(
            self.plain_network, self.method, self.plan_names, self.options, self.print_to_log_file, self.adapt_weights
        )

    def adapt_weights(self, checkpoint: Checkpoint) -> Checkpoint:
        """Adapt a checkpoint to this data set before its weights are loaded; unchanged here."""
        return checkpoint

    def checkpoint_block(self) -> dict[str, Any]:
        """Adds the method and the transfer report."""
        return {**super().checkpoint_block(), "method": self.method, "transfer_report": self.transfer_report}

    def load_checkpoint_block(self, block: dict[str, Any]) -> None:
        """Restore the transfer report."""
        self.transfer_report = block["transfer_report"]

    # ---- curves ----------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, train_outputs: list[dict[str, np.ndarray]]) -> None:
        """As nnU-Net; logs further curves."""
        super().on_train_epoch_end(train_outputs)
        means = self.epoch_means([losses for losses in train_outputs if is_finite(losses)] or train_outputs)
        self.curves = list(means)
        log_curves(self.logger, means, self.current_epoch)

    def epoch_means(self, losses: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Values of this epoch for further curves: mean losses, the encoder's learning rate, non-finite steps."""
        means = {f"train_{name}": float(np.mean([o[name] for o in losses])) for name in losses[0] if name != "loss"}
        rate = self.optimizer.param_groups[1]["lr"]
        return {**means, "encoder_lr": rate, "non_finite_steps": float(self.guard.in_epoch)}

    def on_epoch_end(self) -> None:
        """As nnU-Net; draws the curves into invariance.png."""
        super().on_epoch_end()
        if self.local_rank == 0:
            names = ["train_losses", "val_losses", *self.curves]
            draw_curves(self.logger, names, Path(self.output_folder, "invariance.png"))
