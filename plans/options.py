"""The options block of a plans file: ``plans["configurations"][c]["nnunet_invariance"]``."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from nnunet_invariance.common.options import Options, choice, count, flag, is_int, number, option
from nnunet_invariance.errors import OptionError

BLOCK = "nnunet_invariance"


@dataclass(frozen=True)
class BaselineOptions(Options):
    """What every trainer understands, BaselineTrainer too.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    subject: ClassVar[str] = f"Option {{name!r}} of the plans block {BLOCK!r} is {{value!r}}"
    remedy: ClassVar[str] = "Correct it in your plans copy."

    #: Training iterations per epoch; null keeps nnU-Net's own number (250).
    iterations_per_epoch: int | None = count(None, 1, optional=True)
    #: Validation iterations per epoch; null keeps nnU-Net's own number (50).
    val_iterations_per_epoch: int | None = count(None, 1, optional=True)
    #: Seed of initialisation, sampling and augmentation; null leaves them unseeded, as nnU-Net does.
    seed: int | None = option(
        None,
        "a whole number from 0 to 4294967295 (the range of NumPy's seeds), or null",
        lambda v: v is None or (is_int(v) and 0 <= v < 2**32),
    )


@dataclass(frozen=True)
class TrainerOptions(BaselineOptions):
    """What the trainers with a pre-trained encoder and auxiliary losses understand.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    #: Checkpoint to start from, written by ``weights plan``; null looks at the other places.
    checkpoint: str | None = option(
        None, "the path of a checkpoint, or null", lambda v: v is None or (isinstance(v, str) and v.strip() != "")
    )
    #: Least share of the encoder's parameters that must come from the file; below it the run stops.
    min_coverage: float = number(1.0, 0.0, 1.0)
    #: What is taken from the file. Segmentation layers are always the network's own.
    transfer: Literal["encoder", "encoder+decoder"] = choice("encoder", "encoder+decoder")
    #: Which network of the file is taken: the averaged teacher or the student that was trained.
    branch: Literal["teacher", "student"] = choice("teacher", "student")
    #: Auxiliary loss between the two views of a patch; "none" makes no second view at all.
    aux: Literal["info_nce", "none"] = choice("info_nce", "none")
    #: Weight of the auxiliary loss beside the segmentation loss.
    aux_weight: float = number(0.1, 0.0, 100.0)
    #: Share of the run over which the auxiliary weight rises linearly from 0.
    aux_ramp: float = number(0.1, 0.0, 1.0)
    #: Temperature of InfoNCE.
    temperature: float = number(0.2, 0.0, 10.0, low_excluded=True)
    #: Positions drawn per sample and encoder stage for InfoNCE; 2 is the least that has a negative.
    positions: int = count(256, 2)
    #: Learning rate of the encoder as a share of the rest's; 0 would never train it, use ``frozen_epochs`` to wait.
    #: A tenth cost 0.02 of Dice in short runs (docs/results/few-shot.md).
    encoder_lr_factor: float = number(1.0, 0.0, 10.0)
    #: Share of the epochs over which the learning rate of the encoder rises linearly; decoder and ``_scratch`` wait for
    #: nothing.
    warmup: float = number(0.0, 0.0, 1.0)
    #: Epochs at the start in which the encoder is not trained.
    frozen_epochs: int = count(0, 0)


@dataclass(frozen=True)
class MAETrainerOptions(TrainerOptions):
    """As :class:`TrainerOptions`, without auxiliary losses, and from the network itself: ``mae`` has no teacher.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    #: ``pretrain mae`` leaves no teacher.
    branch: Literal["student"] = choice("student")
    #: The plain baseline has no auxiliary loss.
    aux: Literal["none"] = choice("none")


@dataclass(frozen=True)
class ChannelDropoutOptions(BaselineOptions):
    """What ChannelDropoutTrainer understands.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    #: Share of the samples that are segmented from a random subset of their channels.
    modality_dropout: float = number(0.5, 0.0, 1.0)


def _is_stages(value: Any) -> bool:
    whole = isinstance(value, list) and all(is_int(stage) and stage >= 0 for stage in value)
    return whole and len(value) > 0 and len(set(value)) == len(value)


@dataclass(frozen=True)
class ICMSegOptions(TrainerOptions):
    """What ICMSegTrainer understands; ``aux_weight`` is that of InfoNCE, and 0 trains on styles alone.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    #: Intervention that makes the second view; docs/icmseg.md describes each.
    style: Literal["mixed", "gin", "gin_ipa", "randconv", "slaug", "gmm", "clusters"] = choice(
        "mixed", "gin", "gin_ipa", "randconv", "slaug", "gmm", "clusters"
    )
    #: What InfoNCE contrasts a position with; ``same_position`` of other samples is ICMSeg's own, for large batches.
    contrast: Literal["all_positions", "within_image", "same_position"] = choice(
        "all_positions", "within_image", "same_position"
    )
    #: What becomes of positions of the anchor's own label: negatives, nothing, or positives.
    label_mask: Literal["none", "exclude_same_class", "supcon"] = choice("none", "exclude_same_class", "supcon")
    #: Chance that the second view of a patch is a stored one, made by ``style preprocess``.
    views_probability: float = number(0.0, 0.0, 1.0)
    #: Weight of the divergence between what both views are segmented as.
    consistency_weight: float = number(0.0, 0.0, 100.0)
    #: Mirroring in training and prediction as nnU-Net plans it; false where left and right organs differ.
    mirroring: bool = flag(True)
    #: Encoder stages of InfoNCE, 0 is the finest; null takes the deepest one with enough positions.
    stages: Sequence[int] | None = option(
        None, "a list of different whole numbers of at least 0, or null", lambda v: v is None or _is_stages(v)
    )


@dataclass(frozen=True)
class TransferOptions(TrainerOptions):
    """As :class:`TrainerOptions`, with the defaults of TransferTrainer: imported files hold one network, no views.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    branch: Literal["student", "teacher"] = choice("student", "teacher")
    aux: Literal["none", "info_nce"] = choice("none", "info_nce")
    #: Upstream fine-tunes imported files with a tenth of nnU-Net's rate, after a warm-up; both cost a short run dearly
    #: (docs/results/fine-tuning.md, few-shot.md), and are not measured on files from long pre-trainings.
    encoder_lr_factor: float = number(0.1, 0.0, 10.0)
    warmup: float = number(0.05, 0.0, 1.0)


@dataclass(frozen=True)
class AnatomixOptions(TrainerOptions):
    """What AnatomixTrainer understands; ``aux`` "info_nce" is its multi-positive form over the segmentation's labels.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    #: Encoder and decoder were both pre-trained.
    transfer: Literal["encoder+decoder", "encoder"] = choice("encoder+decoder", "encoder")
    #: ``pretrain anatomix`` leaves no teacher.
    branch: Literal["student"] = choice("student")
    #: Temperature and positions of the pre-training.
    temperature: float = number(0.33, 0.0, 10.0, low_excluded=True)
    positions: int = count(512, 2)
    #: The second view: nnU-Net's intensity transforms, or a random appearance painted over the labels.
    second_view: Literal["intensity", "synthetic"] = choice("intensity", "synthetic")
    #: Frozen features of this U-Net beside the image, in front of the planned network.
    frozen_features: Literal["none", "anatomix", "anatomix-dev"] = choice("none", "anatomix", "anatomix-dev")
    #: Probability that training hides a channel, of the features or of the image, from the planned network.
    feature_dropout: float = number(0.75, 0.0, 0.99)


@dataclass(frozen=True)
class PUIRTrainerOptions(TrainerOptions):
    """What PUIRTrainer understands; ``aux_weight`` multiplies the three weights.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    #: ``pretrain puir`` leaves no teacher.
    branch: Literal["student"] = choice("student")
    #: "none": as if the three weights were 0. Modalities are dropped all the same.
    aux: Literal["puir", "none"] = choice("puir", "none")
    #: Who reads the prior, as in pre-training.
    tokens: Literal["spatial", "channel"] = choice("spatial", "channel")
    #: Entries of a "spatial" prior, as in pre-training.
    prior: int = count(64, 1)
    #: Share of the samples that are segmented from a random subset of their modalities.
    modality_dropout: float = number(0.5, 0.0, 1.0)
    #: Weight of the invariance between modalities; 0 leaves it away.
    weight_inv: float = number(1.0, 0.0, 100.0)
    #: Weight of the equivariance of the segmentation; 0 leaves it away.
    weight_equ: float = number(1.0, 0.0, 100.0)
    #: Weight of the reconstruction of all modalities; 0 leaves it away.
    weight_dec: float = number(1.0, 0.0, 100.0)
    #: Share of the steps with a second, turned pass for the equivariance.
    equ_probability: float = number(0.25, 0.0, 1.0, low_excluded=True)
    #: Recompute the encoder's activations; "auto" does where the estimate is above the GPU's memory.
    checkpointing: Literal["auto", "on", "off"] = choice("auto", "on", "off")


#: Every options class; a plans copy may hold fields of all of them.
OPTIONS = (TrainerOptions, ICMSegOptions, AnatomixOptions, PUIRTrainerOptions)

TrainerOptionsType = TypeVar("TrainerOptionsType", bound=BaselineOptions)


def read_options(cls: type[TrainerOptionsType], configuration: Mapping[str, Any]) -> TrainerOptionsType:
    """Read the block of one configuration; what it does not say has its default.

    A trainer passes over fields that only other trainers know, because all of a comparison share one plans copy.

    Args:
        cls: the options of the trainer.
        configuration: ``plans["configurations"][c]``, inherited keys included.

    Raises:
        OptionError: a field is unknown, of the wrong type or out of range.
    """
    block = configuration.get(BLOCK, {})
    if not isinstance(block, Mapping):
        msg = f"The plans block {BLOCK!r} is {block!r}; expected an object with options. Correct it in your plans copy."
        raise OptionError(msg)
    own = {item.name for item in dataclasses.fields(cls)}
    known = {item.name for options in OPTIONS for item in dataclasses.fields(options)}
    for name in block:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"Did you mean {nearest[0]!r}?" if nearest else f"Known options: {', '.join(sorted(known))}."
            raise OptionError(f"Unknown option {name!r} in the plans block {BLOCK!r}. {hint}")
    return cls(**{name: value for name, value in block.items() if name in own})
