"""The options of the trainers: ``plans["configurations"][c]["nnunet_invariance"]`` of a plans file.

Each options class belongs to one base trainer or to one trainer, and derives from the options of the trainer's base.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nnunet_invariance.common.options import Options, choice, count, flag, is_int, number, option
from nnunet_invariance.plans.unlabelled import UnlabelledOptions
from nnunet_invariance.plans.values import are_axes

BLOCK = "nnunet_invariance"


def mirrored_axes(default: str) -> Any:
    """The field ``mirroring`` with a default."""
    return option(
        default,
        "'all', 'auto', or a list of different axes, each 0, 1 or 2",
        lambda v: v in ("all", "auto") or are_axes(v),
        doc="Axes that training and prediction mirror: all that nnU-Net plans, none that turns one class into another "
        "of the training labels, or these.",
    )


@dataclass(frozen=True)
class BaselineOptions(Options):
    """Options of every trainer of this package.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> BaselineOptions(seed=3).iterations_per_epoch is None
    True
    """

    subject: ClassVar[str] = f"Option {{name!r}} of the plans block {BLOCK!r} is {{value!r}}"
    remedy: ClassVar[str] = "Correct it in your plans copy."

    iterations_per_epoch: int | None = count(
        None, 1, optional=True, doc="Training iterations per epoch; null keeps nnU-Net's number (250)."
    )
    val_iterations_per_epoch: int | None = count(
        None, 1, optional=True, doc="Validation iterations per epoch; null keeps nnU-Net's number (50)."
    )
    seed: int | None = option(
        None,
        "a whole number from 0 to 4294967295 (the range of NumPy's seeds), or null",
        lambda v: v is None or (is_int(v) and 0 <= v < 2**32),
        doc="Seed of initialisation, sampling and augmentation; null leaves them unseeded, as nnU-Net does.",
    )
    mirroring: str | Sequence[int] = mirrored_axes("all")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = choice(
        "auto", "fp32", "bf16", "fp16",
        doc="Arithmetic of the networks in training; auto: nnU-Net's fp16 with a loss scale on CUDA, else fp32.",
    )  # fmt: skip
    augmentation: Literal["nnunet", "device"] = choice(
        "nnunet", "device",
        doc="Where nnU-Net's augmentation runs: in the processes of the data loader, or on the device of the network.",
    )  # fmt: skip
    unlabelled: Mapping[str, Any] | None = option(
        None,
        "an object with the options of UnlabelledOptions, or null",
        lambda v: v is None or isinstance(v, Mapping),
        doc="Unlabelled scans that a mean teacher segments for the training; null trains on the labels alone.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unlabelled is not None:
            UnlabelledOptions.read(self.unlabelled)


@dataclass(frozen=True)
class ChannelDropoutOptions(BaselineOptions):
    """Options of ChannelDropoutTrainer.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> ChannelDropoutOptions().modality_dropout
    0.5
    """

    modality_dropout: float = number(
        0.5, 0.0, 1.0, doc="Fraction of the samples that are segmented from a random subset of their channels."
    )


@dataclass(frozen=True)
class PretrainedOptions(BaselineOptions):
    """Options of every trainer that starts from pre-trained weights.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> PretrainedOptions(transfer="encoder+decoder").min_coverage
    1.0
    """

    # A network that learns from mirrored patches tells mirrored structures apart late (docs/results/few-labels.md).
    mirroring: str | Sequence[int] = mirrored_axes("auto")

    checkpoint: str | None = option(
        None,
        "the path of a checkpoint, or null",
        lambda v: v is None or (isinstance(v, str) and v.strip() != ""),
        doc="Checkpoint to start from, as `weights plan` writes it; null searches the other locations.",
    )
    min_coverage: float = number(
        1.0, 0.0, 1.0, doc="Minimum share of the encoder's stages that the file must fill completely."
    )
    transfer: Literal["encoder", "encoder+decoder"] = choice(
        "encoder",
        "encoder+decoder",
        doc="Which part of the network is loaded. Segmentation layers always keep their initial values.",
    )
    branch: Literal["teacher", "student"] | None = option(
        None,
        "one of 'teacher', 'student', or null",
        lambda v: v is None or (isinstance(v, str) and v in ("teacher", "student")),
        doc="Which network of the file is loaded; null takes the teacher of a run of 5,000 steps or more, otherwise "
        "the student.",
    )
    # A tenth cost 0.02 of Dice in short runs (docs/results/few-shot.md).
    encoder_lr_factor: float = number(
        1.0,
        0.0,
        10.0,
        doc="Learning rate of the encoder relative to the decoder's. Use frozen_epochs to freeze the encoder.",
    )
    warmup: float = number(
        0.0,
        0.0,
        1.0,
        doc="Fraction of the epochs over which the encoder's learning rate rises linearly; no effect on `_scratch`.",
    )
    frozen_epochs: int = count(0, 0, doc="Number of epochs for which the encoder is frozen; no effect on `_scratch`.")
    head: Literal["auto", "stock", "summed"] = choice(
        "auto",
        "stock",
        "summed",
        doc="Segmentation head: nnU-Net's own, or one that also reads the maps of all other stages; auto: summed in "
        "DenseTrainer and MAETrainer if the planned network allows it, else stock.",
    )
    head_start: Literal["probe", "zero"] = choice(
        "probe",
        "zero",
        doc="Initial weights of the summed head: those of a linear probe on the training cases, or nnU-Net's own.",
    )


@dataclass(frozen=True)
class TransferOptions(PretrainedOptions):
    """Options of TransferTrainer: those of :class:`PretrainedOptions` with upstream's defaults for the encoder.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> TransferOptions().encoder_lr_factor
    0.1
    """

    # nnssl fine-tunes with a tenth of nnU-Net's rate, after a warm-up. Both lower the score of a short run clearly
    # (docs/results/fine-tuning.md, few-shot.md), and were not measured with files from long pre-trainings.
    encoder_lr_factor: float = number(
        0.1, 0.0, 10.0, doc="Learning rate of the encoder relative to the decoder's; a tenth, as in nnssl."
    )
    warmup: float = number(
        0.05, 0.0, 1.0, doc="Fraction of the epochs over which the encoder's learning rate rises linearly."
    )


@dataclass(frozen=True)
class EncoderDecoderOptions(PretrainedOptions):
    """Options of DenseTrainer and MAETrainer, whose pre-trainings train encoder and decoder.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> EncoderDecoderOptions().transfer
    'encoder+decoder'
    """

    transfer: Literal["encoder+decoder", "encoder"] = choice(
        "encoder+decoder",
        "encoder",
        doc="Which part of the network is loaded; the pre-training trains both.",
    )


@dataclass(frozen=True)
class AuxiliaryLossOptions(PretrainedOptions):
    """Options of every trainer with auxiliary losses.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> AuxiliaryLossOptions(aux=False).aux_weight
    0.1
    """

    aux: bool = flag(True, doc="Whether the auxiliary losses are used.")
    aux_weight: float = number(0.1, 0.0, 100.0, doc="Weight of the auxiliary losses relative to the segmentation loss.")
    aux_ramp: float = number(
        0.1, 0.0, 1.0, doc="Fraction of the run over which the weight of the auxiliary losses rises linearly from 0."
    )


@dataclass(frozen=True)
class DenseContrastOptions(AuxiliaryLossOptions):
    """Options of every trainer with InfoNCE at sampled positions of the encoder's feature maps.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> DenseContrastOptions(num_positions=128).temperature
    0.2
    """

    temperature: float = number(0.2, 0.0, 10.0, low_excluded=True, doc="Temperature of InfoNCE.")
    num_positions: int = count(
        256, 2, doc="Positions per sample and encoder stage at which InfoNCE compares the views; 2 give one negative."
    )


@dataclass(frozen=True)
class AnatomixTrainerOptions(DenseContrastOptions):
    """Options of AnatomixTrainer, whose InfoNCE has several positives per anchor: all positions of its label.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> AnatomixTrainerOptions().transfer
    'encoder+decoder'
    """

    transfer: Literal["encoder", "encoder+decoder"] = choice(
        "encoder+decoder",
        "encoder",
        doc="Which part of the network is loaded; the pre-training trains encoder and decoder.",
    )
    temperature: float = number(
        0.33, 0.0, 10.0, low_excluded=True, doc="Temperature of InfoNCE, as in the pre-training."
    )
    num_positions: int = count(512, 2, doc="Positions per sample and encoder stage, as in the pre-training.")
    second_view: Literal["intensity", "synthetic"] = choice(
        "intensity",
        "synthetic",
        doc="The second view: nnU-Net's intensity transforms, or the labels painted in a random appearance.",
    )


@dataclass(frozen=True)
class PUIRTrainerOptions(AuxiliaryLossOptions):
    """Options of PUIRTrainer; ``aux_weight`` multiplies the four weights, and modalities are dropped without them too.

    Raises:
        OptionError: a value has the wrong type or is out of range.

    >>> PUIRTrainerOptions(weight_decomposition=0).weight_invariance
    1.0
    """

    tokens: Literal["spatial", "channel"] = choice(
        "spatial", "channel", doc="Tokens that attend to the prior; the same as in pre-training."
    )
    prior: int = count(64, 1, doc='Number of entries of the prior for "spatial" tokens; the same as in pre-training.')
    stem: Literal["shared", "own"] = choice(
        "shared",
        "own",
        doc="What is in front of the shared encoder: nothing, or a few filters of each modality; as in pre-training.",
    )
    modality_dropout: float = number(
        0.5, 0.0, 1.0, doc="Fraction of the samples that are segmented from a random subset of their modalities."
    )
    dropout_ramp: float = number(
        0.3, 0.0, 1.0, doc="Fraction of the run over which `modality_dropout` rises linearly from 0."
    )
    weight_invariance: float = number(
        1.0, 0.0, 100.0, doc="Weight of the invariance between modalities; 0 switches the loss off."
    )
    weight_equivariance: float = number(
        1.0, 0.0, 100.0, doc="Weight of the equivariance of the segmentation; 0 switches the loss off."
    )
    weight_decomposition: float = number(
        1.0, 0.0, 100.0, doc="Weight of the reconstruction of all modalities; 0 switches the loss off."
    )
    weight_distillation: float = number(
        1.0,
        0.0,
        100.0,
        doc="Weight of the distillation from the segmentation of all modalities to that of a subset; 0: off.",
    )
    equivariance_probability: float = number(
        0.25, 0.0, 1.0, low_excluded=True, doc="Fraction of the steps with an additional pass for the equivariance."
    )
    checkpointing: Literal["auto", "on", "off"] = choice(
        "auto",
        "on",
        "off",
        doc="Recompute the encoder's activations in the backward pass; auto: if the estimate exceeds the GPU's memory.",
    )
