"""Learning from unlabelled scans in a training with labels: a mean teacher segments them for the student."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor

from nnunet_invariance.common.collectives import all_gather_objects, on_first_rank
from nnunet_invariance.common.json_files import write_json
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.plans.unlabelled import UnlabelledOptions
from nnunet_invariance.trainers.box_mixing import box_mask, labels_of_target
from nnunet_invariance.trainers.curves import draw_curves, log_curves
from nnunet_invariance.trainers.mean_teacher import MeanTeacher, Trust, keeps_teacher, pseudo_dice, scheduled_weight
from nnunet_invariance.trainers.pseudo_labels import PseudoLabelLoss, counted_voxels, foreground_voxels, pseudo_labels
from nnunet_invariance.trainers.seeding import Augmenter, Stream, loader_of, make_augmenter
from nnunet_invariance.trainers.strong_view import change_appearance, choose_flips, view_generator
from nnunet_invariance.trainers.targets import finest
from nnunet_invariance.trainers.unlabelled_cases import UnlabelledDataset, UnlabelledLoader, find_unlabelled

if TYPE_CHECKING:
    from nnunet_invariance.trainers.baseline import BaselineTrainer

#: Batches at the end of an epoch that a teacher without trust labels, only to be judged.
LOOKS = 5
CURVES = ("teacher_dice", "teacher_confident", "teacher_foreground", "unlabelled_loss", "unlabelled_weight")


class UnlabelledLearning:
    r"""What a trainer with the option ``unlabelled`` does besides its own steps (arXiv 1703.01780, 2001.07685).

    .. math:: L = L_{trainer} + \lambda(t) \, L_{pseudo}(f(A(x)), \hat y), \quad \hat y = \text{teacher}(x)

    x is an unlabelled patch after nnU-Net's augmentation, A the change of :func:`change_appearance`. The weight
    :math:`\lambda` rises over the ramp, and is 0 in the last phase and in every epoch in which the teacher is not
    trusted (:class:`Trust`).

    Args:
        trainer: an initialised trainer.
        options: of learning from unlabelled scans.
    """

    def __init__(self, trainer: "BaselineTrainer", options: UnlabelledOptions) -> None:
        self.trainer, self.options = trainer, options
        labels, plan = trainer.label_manager, trainer.configuration_manager
        self.regions, self.classes = labels.has_regions, labels.num_segmentation_heads
        with torch.random.fork_rng(devices=[]):  # a training without a teacher has the same random numbers
            network = trainer.build_network_architecture(
                trainer.plans_manager, plan, trainer.num_input_channels, self.classes, trainer.enable_deep_supervision
            )
        self.teacher = MeanTeacher(network.to(trainer.device), options.ema)
        self.trust = Trust()
        scales: Any = trainer.loss.loss
        weights = scales.weight_factors if isinstance(scales, DeepSupervisionWrapper) else [1.0]
        self.loss = PseudoLabelLoss(self.classes, self.regions, plan.batch_dice, trainer.is_ddp, weights)
        self.generator = view_generator(options.strong, trainer.device)
        self.loader: Augmenter | None = None
        self.steps = self.drawn = 0
        self.start_epoch()

    # ---- life cycle --------------------------------------------------------------------------------------------------

    def open_loader(self, labelled: Augmenter) -> None:
        """Find the unlabelled cases and load patches of them, as many as of the labelled ones.

        Raises:
            OptionError, ImagesFolderError, TooFewVolumesError, WorkerError: see ``find_unlabelled``.
        """
        trainer = self.trainer
        train, val = trainer.do_split()
        cases = on_first_rank(lambda: find_unlabelled(self.options, planned_dataset(trainer), train, val))
        trainer.print_to_log_file(f"A mean teacher segments {len(cases)} unlabelled cases for the training.")
        if trainer.local_rank == 0:
            write_json(Path(trainer.output_folder, "unlabelled.json"), [case._asdict() for case in cases])
        loader = UnlabelledLoader(
            UnlabelledDataset(cases), loader_of(labelled), trainer.label_manager, trainer.plain_transforms
        )
        seed = trainer.options.seed
        entropy = None if seed is None else (seed, trainer.local_rank, Stream.UNLABELLED)
        self.loader = make_augmenter(loader, labelled, entropy, self.drawn)

    def start(self) -> None:
        """Start the teacher from the initial student; a continued run has its state from the checkpoint."""
        if self.steps == 0:
            self.teacher.start_from(self.trainer.plain_network)

    def start_epoch(self) -> None:
        """Forget the numbers of the last epoch."""
        self.step_in_epoch = 0
        self.looks: list[dict[str, Tensor]] = []
        self.losses: list[Tensor] = []
        self.used_weight = 0.0  # mean over the steps of the epoch
        self.validated: list[dict[str, Any]] = []
        self.labelled_foreground = 0.0

    def finish(self) -> None:
        """Give the network the teacher's weights if these are to be kept; stop the workers."""
        trainer, curves = self.trainer, self.trainer.logger
        dice = curves.get_value("teacher_dice", None), curves.get_value("mean_fg_dice", None)
        kept = keeps_teacher(self.options.keep, *dice)
        if kept:
            trainer.plain_network.load_state_dict(self.teacher.network.state_dict())
        trainer.print_to_log_file(f"The final weights are those of the {'teacher' if kept else 'student'}.")
        if self.loader is not None and not isinstance(self.loader, SingleThreadedAugmenter):
            self.loader._finish()

    # ---- step --------------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> float:
        """Weight of the loss on unlabelled scans in this step, without regard to trust."""
        trainer, options = self.trainer, self.options
        progress = self.steps / (trainer.num_epochs * trainer.num_iterations_per_epoch)
        return scheduled_weight(progress, options.weight, options.ramp, options.last_phase)

    def loss_of_step(self, labelled: Tensor, target: Tensor | list[Tensor]) -> Tensor | None:
        """The weighted loss of the student on an unlabelled batch; None in a step on the labels alone.

        Args:
            labelled, target: image and target of the labelled batch, for the option ``mix``.
        """
        weight = self.weight
        last = self.step_in_epoch >= self.trainer.num_iterations_per_epoch - LOOKS
        if weight == 0 or not (self.trust.given or last):
            return None
        image, labels = self._next_labelled_by_teacher()
        if not self.trust.given:
            return None
        image, labels = self._view(image, labels)
        if self.options.mix:
            image, labels = self._mixed(image, labels, labelled, finest(target))
        with self.trainer.precision.autocast():
            logits = self.trainer.network(image)
        loss = self.loss([logits] if isinstance(logits, Tensor) else logits, labels)
        self.losses.append(loss.detach())
        self.used_weight += weight / self.trainer.num_iterations_per_epoch
        return weight * loss

    def after_step(self, skipped: bool) -> None:
        """Move the teacher, unless the student's step was skipped."""
        self.steps += 1
        self.step_in_epoch += 1
        if not skipped:
            self.teacher.follow(self.trainer.plain_network)

    @torch.no_grad()
    def _next_labelled_by_teacher(self) -> tuple[Tensor, Tensor]:
        assert self.loader is not None
        image = next(self.loader)["data"].to(self.trainer.device, non_blocking=True)
        self.drawn += 1
        with self.trainer.precision.autocast():
            logits = finest(self.teacher.network(image))
        labels = pseudo_labels(logits, self.options.confidence, self.regions)
        counted = counted_voxels(labels, self.classes, self.regions)
        foreground = foreground_voxels(labels, self.classes, self.regions) / len(image)
        self.looks.append({"confident": counted.float().mean(), "foreground": foreground.float()})
        return image, labels

    @torch.no_grad()
    def _view(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The student's view of a batch, and the labels in its geometry."""
        tissues = labels[:, :-1].sum(1, keepdim=True) if self.regions else labels
        spacing = self.trainer.configuration_manager.spacing
        image = change_appearance(image, tissues, self.options.strong, spacing, self.generator)
        if self.options.symmetries:
            flips = choose_flips(self.trainer.inference_allowed_mirroring_axes or (), self.generator)
            image, labels = image.flip(flips), labels.flip(flips)
        return image, labels

    def _mixed(self, image: Tensor, labels: Tensor, labelled: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixtures of the student's view and the labelled batch, and their labels."""
        mask = box_mask(image.shape, self.generator, image.device)
        known = labels_of_target(target, self.classes, self.regions)
        return torch.where(mask, image, labelled), torch.where(mask, labels, known)

    # ---- validation --------------------------------------------------------------------------------------------------

    @contextmanager
    def teacher_as_network(self) -> Iterator[None]:
        """Let the trainer validate the teacher."""
        student, self.trainer.network = self.trainer.network, self.teacher.network
        try:
            yield
        finally:
            self.trainer.network = student

    def keep_validation(self, outputs: dict[str, Any], batch: dict[str, Any]) -> None:
        """Keep what the teacher's validation of a batch returned."""
        self.validated.append(outputs)
        self.labelled_foreground += float((outputs["tp_hard"] + outputs["fn_hard"]).sum()) / len(batch["data"])

    def end_epoch(self) -> None:
        """Judge the teacher after the validation of an epoch, and log how right and how confident it is."""
        trainer = self.trainer
        own = {
            "labelled": self.labelled_foreground / max(1, len(self.validated)),
            "confident": mean([look["confident"] for look in self.looks]),
            "foreground": mean([look["foreground"] for look in self.looks]),
            "loss": mean(self.losses),
        }
        ranks = all_gather_objects((own, self.validated))
        teacher = pseudo_dice([output for _, validated in ranks for output in validated])
        average = {name: sum(numbers[name] for numbers, _ in ranks) / len(ranks) for name in own}
        foreground = average["foreground"] / average["labelled"] if average["labelled"] else math.nan
        values = (teacher, average["confident"], foreground, average["loss"], self.used_weight)
        log_curves(trainer.logger, dict(zip(CURVES, values, strict=True)), trainer.current_epoch)
        before, student = self.trust.given, float(trainer.logger.get_value("mean_fg_dice", step=-1))
        given = self.trust.judge(teacher, student, foreground)
        trainer.print_to_log_file(
            f"Teacher: pseudo dice {teacher:.4f} (student {student:.4f}), {average['confident']:.1%} of the unlabelled "
            f"voxels above the threshold, mean weight {self.used_weight:.3f}"
        )
        if given != before or (not given and self.weight > 0):
            what = "is trusted from now on" if given else f"is not trusted, so its weight is 0: {self.trust.reason}"
            trainer.print_to_log_file(f"The teacher {what}.")

    def draw(self) -> None:
        """Draw the curves into unlabelled.png."""
        names = ["mean_fg_dice", *CURVES]
        draw_curves(self.trainer.logger, names, Path(self.trainer.output_folder, "unlabelled.png"))

    # ---- checkpoint --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Content for a checkpoint."""
        network = self.teacher.network.state_dict()
        return {"teacher": network, "steps": self.steps, "drawn": self.drawn, "trust": self.trust.state()}

    def load(self, state: dict[str, Any] | None) -> None:
        """Restore :meth:`state`.

        Raises:
            WeightsIncompatibleError: the checkpoint is of a training without a teacher.
        """
        if state is None:
            raise WeightsIncompatibleError(
                f"The checkpoint in {self.trainer.output_folder} has no teacher, but the plans now have the option "
                '"unlabelled". Remove it from the plans, or start a new run without --c.'
            )
        self.teacher.network.load_state_dict(state["teacher"])
        self.steps, self.drawn = state["steps"], state["drawn"]
        self.trust.load(state["trust"])


def planned_dataset(trainer: "BaselineTrainer") -> PlannedDataset:
    """The trainer's data set and configuration."""
    base, folder = Path(trainer.preprocessed_dataset_folder_base), Path(trainer.preprocessed_dataset_folder)
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    name = trainer.configuration_name
    return PlannedDataset(plans.dataset_name, plans, name, configuration, trainer.dataset_json, base, folder)


def mean(values: list[Tensor]) -> float:
    """Mean of scalars; NaN if there are none."""
    return float(torch.stack(values).mean()) if values else math.nan
