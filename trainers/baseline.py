"""nnUNetTrainer with a seed and a length, the comparison of every other trainer."""

import os
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

import nnunet_invariance
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.builtin_types import to_builtin
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.plans.options import BaselineOptions, read_options
from nnunet_invariance.trainers.configuration import configuration_of
from nnunet_invariance.trainers.seeding import Augmenter, seed_everything, seeded_augmenter, without_timing
from nnunet_invariance.weights.foreign import open_foreign

FORMAT = 1
TRAINING, VALIDATION = range(2)


class BaselineTrainer(nnUNetTrainer):
    """nnUNetTrainer plus the options ``iterations_per_epoch``, ``val_iterations_per_epoch`` and ``seed``.

    With a seed, the network's initial values, the patches and their augmentation are repeatable, also across ``--c``
    and whatever the number of workers; on CPU and with one thread, bit by bit. Checkpoints are written atomically after
    every epoch, of tensors and native types alone, so that they open without code being run.

    Raises:
        OptionError: the plans block does not hold what it should.
        UnknownConfigurationError: the plans hold no such configuration.
    """

    options_class: ClassVar[type[BaselineOptions]] = BaselineOptions
    #: Set by names such as ``BaselineTrainer_50epochs``; None keeps nnU-Net's 1000.
    length_in_epochs: ClassVar[int | None] = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature, read by inspection
    ) -> None:
        # Before nnU-Net's constructor, which makes folders and files.
        self.options = read_options(self.options_class, configuration_of(plans, configuration).configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.length_in_epochs or self.num_epochs
        self.num_iterations_per_epoch = self.options.iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.options.val_iterations_per_epoch or self.num_val_iterations_per_epoch
        self.save_every = 1
        # nnU-Net gives the coarsest output the weight 0: a network with one output has none to supervise deeply.
        self.enable_deep_supervision = len(self.configuration_manager.pool_op_kernel_sizes) > 2

    def initialize(self) -> None:
        """Build network, optimiser and loss, from the seed where there is one."""
        if self.options.seed is not None:
            seed_everything(self.options.seed)
        super().initialize()

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """nnU-Net's own, repeatable where there is a seed."""
        transforms = super().get_training_transforms(*args, **kwargs)
        if self.options.seed is not None:
            without_timing(transforms)
        return transforms

    def get_dataloaders(self) -> tuple[Augmenter, Augmenter]:
        """nnU-Net's own; with a seed, the streams of batches go on where the epochs before this one ended."""
        train, val = super().get_dataloaders()
        if self.options.seed is None:
            return train, val
        entropy = (self.options.seed, self.local_rank)
        return (
            seeded_augmenter(train, (*entropy, TRAINING), self.current_epoch * self.num_iterations_per_epoch),
            seeded_augmenter(val, (*entropy, VALIDATION), self.current_epoch * self.num_val_iterations_per_epoch),
        )

    def on_train_epoch_start(self) -> None:
        """Seed what the network itself draws (dropout), then as nnU-Net."""
        if self.options.seed is not None:
            seed_everything(self.options.seed, self.local_rank, self.current_epoch)
        super().on_train_epoch_start()

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's own keys and ``nnunet_invariance`` atomically, tensors and native types only.

        Raises:
            OutputError: the disk is full or the place not writable; the file before it stays.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        # The run goes on with what a continued one would read: nnU-Net's moving average rounds by its terms' types.
        self.logger.load_checkpoint(to_builtin(self.logger.get_checkpoint()))
        state = {
            "network_weights": self.plain_network.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler and self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema_so_far(),
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "nnunet_invariance": self.checkpoint_block(),
        }
        atomic_write(filename, lambda file: torch.save(to_builtin(state), file))

    def load_checkpoint(self, filename_or_checkpoint: str | os.PathLike | dict) -> None:
        """Continue from a checkpoint of this trainer; the options in force are those of the plans, not of the file.

        Raises:
            CheckpointCorruptError, UnsafeCheckpointError, WeightsNotFoundError: see ``open_foreign``.
            WeightsIncompatibleError: another trainer wrote it.
        """
        given = filename_or_checkpoint
        checkpoint = given if isinstance(given, dict) else open_foreign(given)
        found = checkpoint.get("trainer_name")
        if found != type(self).__name__ or "nnunet_invariance" not in checkpoint:
            name = "The checkpoint" if isinstance(given, dict) else given
            msg = f"{name} was written by {found}, not by the {type(self).__name__} of this package. "
            raise WeightsIncompatibleError(msg + "Continue with the trainer that wrote it, or start anew without --c.")
        if not self.was_initialized:
            self.initialize()
        self.load_checkpoint_block(checkpoint["nnunet_invariance"])
        self.plain_network.load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.current_epoch = checkpoint["current_epoch"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]

    def checkpoint_block(self) -> dict[str, Any]:
        """What stands under the key ``nnunet_invariance`` of a checkpoint."""
        return {
            "format": FORMAT,
            "package_version": nnunet_invariance.__version__,
            "nnunetv2_version": version("nnunetv2"),
            "options": self.options.to_dict(),
        }

    def load_checkpoint_block(self, block: dict[str, Any]) -> None:
        """Take back what :meth:`checkpoint_block` wrote; nothing here."""

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of DDP and ``torch.compile``."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return module._orig_mod if isinstance(module, OptimizedModule) else module

    def _best_ema_so_far(self) -> float | None:
        """nnU-Net saves the latest checkpoint just before it compares this epoch with the best one."""
        epochs = self.logger.get_value("ema_fg_dice", None)
        if not epochs:
            return self._best_ema
        return epochs[-1] if self._best_ema is None or epochs[-1] > self._best_ema else self._best_ema
