"""nnUNetTrainer with a seed and a length: the base of every trainer, and the baseline of every comparison."""

import copy
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

import nnunet_invariance
from nnunet_invariance.augmentation.on_device import DeviceAugmentation, RawPatches, device_form
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.builtin_types import to_builtin
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.common.precision import Float32Loss, Precision
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.nnunet.missing_files import accept_missing_channels
from nnunet_invariance.plans.block import read_options
from nnunet_invariance.plans.options import BaselineOptions
from nnunet_invariance.plans.preflight import check_device
from nnunet_invariance.plans.unlabelled import UnlabelledOptions
from nnunet_invariance.trainers.configuration import check_channels, check_no_cascade, configuration_of
from nnunet_invariance.trainers.error_display import show_message_only
from nnunet_invariance.trainers.mirroring import mirroring_of
from nnunet_invariance.trainers.non_finite_guard import NonFiniteGuard, is_finite, require_finite
from nnunet_invariance.trainers.seeding import (
    Augmenter,
    Stream,
    make_repeatable,
    mix,
    seed_everything,
    seeded_augmenter,
)
from nnunet_invariance.trainers.stepping import clipped_step, target_on_device
from nnunet_invariance.trainers.targets import cloned, labels_of
from nnunet_invariance.trainers.tensorboard import add_tensorboard
from nnunet_invariance.trainers.unlabelled import UnlabelledLearning
from nnunet_invariance.weights.foreign import open_foreign

FORMAT = 1


class BaselineTrainer(nnUNetTrainer):
    """nnUNetTrainer with the options of :class:`BaselineOptions`: a seed and the number of iterations per epoch.

    With a seed, the initial weights, the patches and their augmentation are reproducible, across ``--c`` and for any
    number of workers; on the CPU with one thread they are bit-exact. A step with a non-finite loss or gradient changes
    nothing. Checkpoints are written atomically after every epoch, and hold tensors and built-in types only, so that
    they can be opened without running code.

    >>> BaselineTrainer.options_class().seed is None
    True

    Raises:
        OptionError: the plans block has an unknown field or a wrong value.
        UnknownConfigurationError: the plans have no such configuration.
    """

    options_class: ClassVar[type[BaselineOptions]] = BaselineOptions
    options: BaselineOptions
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    #: Supported numbers of spatial dimensions; empty: all that nnU-Net supports.
    dimensions: ClassVar[tuple[int, ...]] = ()
    #: Minimum number of input channels.
    least_channels: ClassVar[int] = 1
    #: Whether the network was trained for cases that lack channels, so that prediction accepts them.
    accepts_missing_channels: ClassVar[bool] = False
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
        show_message_only()
        # Before nnU-Net's constructor, which creates folders and files.
        self.check(plans, configuration, dataset_json)
        self.options = read_options(self.options_class, configuration_of(plans, configuration).configuration)
        if self.options.augmentation == "device":
            check_no_cascade(plans, configuration, '"augmentation": "device"')
        if self.options.unlabelled is not None:
            check_no_cascade(plans, configuration, '"unlabelled"')
        super().__init__(plans, configuration, fold, dataset_json, device)
        add_tensorboard(self.logger, Path(self.output_folder), self.local_rank)
        self.num_epochs = self.length_in_epochs or self.num_epochs
        self.num_iterations_per_epoch = self.options.iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = self.options.val_iterations_per_epoch or self.num_val_iterations_per_epoch
        self.save_every = 1
        # nnU-Net gives the coarsest output the weight 0, so a network with two outputs or fewer has one loss.
        self.enable_deep_supervision = len(self.configuration_manager.pool_op_kernel_sizes) > 2
        self.precision = self.choose_precision()
        self.grad_scaler = self.precision.make_scaler()
        self.guard = NonFiniteGuard()
        self.unlabelled: UnlabelledLearning | None = None
        self.device_augmentation: DeviceAugmentation | None = None
        self.augmentation_generator = torch.Generator()
        self.set_up()

    def set_up(self) -> None:
        """Create further attributes at the end of the constructor, whose signature nnU-Net inspects; none here."""

    def check(self, plans: dict, configuration: str, dataset_json: dict) -> None:
        """Refuse unsupported plans or data; called before any file is written.

        Raises:
            UnsupportedConfigurationError
        """
        check_channels(plans["dataset_name"], dataset_json, self.least_channels, type(self).__name__)

    def choose_precision(self) -> Precision:
        """The precision of the option; "auto" keeps nnU-Net's on CUDA, so that a comparison with it is fair."""
        name = self.options.precision
        return Precision.choose("fp16" if name == "auto" and self.device.type == "cuda" else name, self.device)

    @property
    def plan_names(self) -> tuple[str, str, str]:
        """Names of data set, plans and configuration."""
        return self.plans_manager.dataset_name, self.plans_manager.plans_name, self.configuration_name

    def initialize(self) -> None:
        """Build network, optimiser and loss; seed their initial values if there is a seed.

        Raises:
            OptionError: this machine has no such device.
        """
        if self.device.type in ("cuda", "mps"):
            check_device(self.device.type)
        if self.options.seed is not None:
            seed_everything(self.options.seed)
        super().initialize()
        self.guard.attach(self.optimizer, self.grad_scaler)
        if self.options.unlabelled is not None:
            self.unlabelled = UnlabelledLearning(self, UnlabelledOptions.read(self.options.unlabelled))

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's geometry, with the axes that the option ``mirroring`` chooses; prediction mirrors the same axes."""
        *geometry, planned = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        axes = tuple(planned or ())
        if self.options.mirroring == "auto":
            train, _ = self.do_split()
            decision = mirroring_of(self.preprocessed_dataset_folder, sorted(train), self.dataset_json, axes)
            axes = decision.axes
            for pair in decision.pairs:
                self.print_to_log_file(f"Mirroring: axis {pair.axis} is not mirrored, because {pair}.")
            self.print_to_log_file(f"Mirroring: decided from the training cases to mirror the axes {axes or 'none'}.")
        elif self.options.mirroring != "all":
            axes = tuple(axis for axis in axes if axis in self.options.mirroring)
        self.inference_allowed_mirroring_axes = axes or None
        return *geometry, axes or None

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss, in float32."""
        return Float32Loss(super()._build_loss())

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's transforms, reproducible if there is a seed; none if the device augments.

        Raises:
            UnsupportedConfigurationError: the device shall augment, but a transform has no form for it.
        """
        transforms = super().get_training_transforms(*args, **kwargs)
        if self.options.seed is not None:
            make_repeatable(transforms)
        self.plain_transforms = transforms
        transforms = self.adapt_transforms(transforms)
        if self.options.augmentation == "nnunet":
            return transforms
        self.device_augmentation = device_form(transforms, labels_of(self.label_manager))
        return self.raw_patches()

    def adapt_transforms(self, pipeline: BasicTransform) -> BasicTransform:
        """Adapt nnU-Net's training transforms to this trainer; unchanged here."""
        return pipeline

    def raw_patches(self) -> RawPatches:
        """What the data loader does with a patch if the device augments."""
        return RawPatches()

    def get_dataloaders(self) -> tuple[Augmenter, Augmenter]:
        """nnU-Net's loaders; with a seed, each stream of batches continues after the batches of earlier epochs."""
        train, val = super().get_dataloaders()
        if self.unlabelled is not None:
            self.unlabelled.open_loader(train)
        if self.options.seed is None:
            return train, val
        entropy = (self.options.seed, self.local_rank)
        done = [self.current_epoch * n for n in (self.num_iterations_per_epoch, self.num_val_iterations_per_epoch)]
        return (
            seeded_augmenter(train, (*entropy, Stream.TRAINING), done[0]),
            seeded_augmenter(val, (*entropy, Stream.VALIDATION), done[1]),
        )

    def on_train_start(self) -> None:
        """As nnU-Net; the teacher of unlabelled scans starts from the initial weights."""
        super().on_train_start()
        if self.accepts_missing_channels and self.local_rank == 0:
            self.let_prediction_accept_missing_channels()
        if self.unlabelled is not None:
            self.unlabelled.start()

    def on_train_epoch_start(self) -> None:
        """Seed the randomness inside the network (dropout), then start the epoch as nnU-Net does."""
        if self.options.seed is not None:
            seed_everything(self.options.seed, self.local_rank, self.current_epoch)
        super().on_train_epoch_start()
        self.seed_generator(self.augmentation_generator, Stream.AUGMENTATION)
        self.guard.start_epoch()
        if self.unlabelled is not None:
            self.unlabelled.start_epoch()
            self.seed_generator(self.unlabelled.generator, Stream.STRONG_VIEWS)

    def let_prediction_accept_missing_channels(self) -> None:
        """Name the preprocessor of missing channels in the plans beside the model, which the stock prediction reads."""
        plans = copy.deepcopy(self.plans_manager.plans)
        entry = plans["configurations"][self.configuration_name]
        entry["preprocessor_name"] = self.configuration_manager.preprocessor_name  # it may be inherited
        if accept_missing_channels(entry):
            write_json(Path(self.output_folder_base, "plans.json"), plans)

    def seed_generator(self, generator: torch.Generator, stream: Stream) -> None:
        """Seed a generator for this epoch, so that a continued run does not repeat the samples of earlier epochs."""
        if self.options.seed is None:
            generator.seed()
        else:
            generator.manual_seed(mix(self.options.seed, self.local_rank, stream, self.current_epoch))

    def train_step(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Run one protected optimiser step; ``loss`` is the segmentation loss, comparable with the validation loss.

        Raises:
            NonFiniteLossError: losses or gradients were not finite in several steps in a row.
        """
        with self.guard.protect(self.trained_modules()):
            losses = self.update(self.augmented(batch))
        if self.unlabelled is not None:
            self.unlabelled.after_step(self.guard.skipped)
        if warning := self.guard.check(losses, batch["keys"]):
            self.print_to_log_file(warning)
        return losses

    def augmented(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as the data loader gives it; augmented here if the device augments."""
        if self.device_augmentation is None:
            return batch
        image, labels = (batch[name].to(self.device, non_blocking=True) for name in ("data", "target"))
        data, target = self.device_augmentation(image, labels, self.augmentation_generator)
        return {**batch, "data": data, "target": target}

    def update(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """One forward pass, backward pass and optimiser step: nnU-Net's own here. Returns the losses by name."""
        data, target = batch["data"].to(self.device, non_blocking=True), target_on_device(batch["target"], self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            logits = self.network(data)
        loss = self.loss(logits, target)
        self.add_gradients(loss)
        self.add_unlabelled_gradients(data, target)
        clipped_step(self.optimizer, self.grad_scaler, self.guard)
        return {"loss": loss.detach().cpu().numpy()}

    def add_gradients(self, loss: Tensor) -> None:
        """Run the backward pass of a loss, outside of autocast, with the loss scale if there is one."""
        self.guard.report_loss(loss)
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()

    def add_unlabelled_gradients(self, data: Tensor, target: Tensor | list[Tensor]) -> None:
        """Add the gradients of the loss on an unlabelled batch, if the training has one in this step."""
        if self.unlabelled is not None and (loss := self.unlabelled.loss_of_step(data, target)) is not None:
            self.add_gradients(loss)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """nnU-Net's, in the precision of the training; validates the teacher of unlabelled scans as well."""
        with self.precision.autocast():
            if self.unlabelled is not None:
                again = {**batch, "target": cloned(batch["target"])}  # nnU-Net changes a target with ignored voxels
                with self.unlabelled.teacher_as_network():
                    self.unlabelled.keep_validation(super().validation_step(again), batch)
            return super().validation_step(batch)

    def on_validation_epoch_end(self, val_outputs: list[dict[str, np.ndarray]]) -> None:
        """As nnU-Net; judges the teacher of unlabelled scans."""
        super().on_validation_epoch_end(val_outputs)
        if self.unlabelled is not None:
            self.unlabelled.end_epoch()

    def on_epoch_end(self) -> None:
        """As nnU-Net; draws the curves of learning from unlabelled scans."""
        super().on_epoch_end()
        if self.unlabelled is not None and self.local_rank == 0:
            self.unlabelled.draw()

    def on_train_end(self) -> None:
        """As nnU-Net; the final weights are those of the teacher of unlabelled scans if they validate better."""
        if self.unlabelled is not None:
            self.unlabelled.finish()
        super().on_train_end()

    def trained_modules(self) -> list[nn.Module]:
        """All modules that a step changes."""
        return [self.network]

    def on_train_epoch_end(self, train_outputs: list[dict[str, np.ndarray]]) -> None:
        """As nnU-Net, over the steps whose losses were finite."""
        super().on_train_epoch_end([losses for losses in train_outputs if is_finite(losses)] or train_outputs)

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's keys and the key ``nnunet_invariance`` atomically, tensors and built-in types only.

        Raises:
            OutputError: the disk is full or the folder not writable; an earlier file stays.
            NonFiniteLossError: a weight is not finite; an earlier file stays.
        """
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        # nnU-Net's moving average depends on the types of its terms, so this run continues with the types of the file.
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
        require_finite(state, filename)
        atomic_write(filename, lambda file: torch.save(to_builtin(state), file))

    def load_checkpoint(self, filename_or_checkpoint: str | os.PathLike | dict) -> None:
        """Continue from a checkpoint of this trainer; options are read from the plans, not from the file.

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
        if self.unlabelled is not None:
            self.unlabelled.load(checkpoint["nnunet_invariance"].get("unlabelled"))
        self.plain_network.load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.current_epoch = checkpoint["current_epoch"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]

    def checkpoint_block(self) -> dict[str, Any]:
        """Content of the key ``nnunet_invariance`` of a checkpoint."""
        return {
            "format": FORMAT,
            "package_version": nnunet_invariance.__version__,
            "nnunetv2_version": version("nnunetv2"),
            "options": self.options.to_dict(),
            **({} if self.unlabelled is None else {"unlabelled": self.unlabelled.state()}),
        }

    def load_checkpoint_block(self, block: dict[str, Any]) -> None:
        """Restore the state that :meth:`checkpoint_block` wrote; nothing here."""

    @property
    def plain_network(self) -> Any:
        """The network without its DDP and ``torch.compile`` wrappers."""
        module = self.network.module if isinstance(self.network, DistributedDataParallel) else self.network
        return module._orig_mod if isinstance(module, OptimizedModule) else module

    def _best_ema_so_far(self) -> float | None:
        """Best moving average including this epoch: nnU-Net updates its own after saving the latest checkpoint."""
        epochs = self.logger.get_value("ema_fg_dice", None)
        if not epochs:
            return self._best_ema
        return epochs[-1] if self._best_ema is None or epochs[-1] > self._best_ema else self._best_ema
