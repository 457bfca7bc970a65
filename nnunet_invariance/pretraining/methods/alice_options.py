"""Options of the pre-training of Alice, with presets for the authors' code and for the figures of the paper."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from nnunet_invariance.common.options import choice, count, number, option, text
from nnunet_invariance.networks.architectures.nnformer import NNFORMER
from nnunet_invariance.networks.heads.casa import HEADS
from nnunet_invariance.pretraining.data.patients import WHOLE_NAME, patients_of
from nnunet_invariance.pretraining.engine.options import MethodOptions, automatic_number, by_steps

INF = math.inf
#: What both forms of the authors share.
AUTHORS: dict[str, object] = {
    "collapse_guard": "center",
    "weight_inter": 1.0,
    "teacher_temperature": 0.01,
    "teacher_temperature_start": 0.008,
    "ema_start": 0.996,
    "head_width": 2048,
}


def default_ema_start(steps: int) -> float:
    r"""Momentum with which :math:`e^{-10}` of the teacher's initial weights are left at the end of a short run.

    >>> [default_ema_start(steps) for steps in (100, 1_000, 100_000)]
    [0.9, 0.98, 0.996]
    """
    return min(0.996, max(0.9, 1 - 20 / steps))


#: Titles of the diagnostics; entropies are fractions of that of the uniform distribution.
TITLES = {
    "target_entropy": "entropy of a target (1: collapse)",
    "mean_target_entropy": "entropy of the mean target (0: collapse)",
    "effective_rank": "directions of the targets (higher is better)",
    "class_target_entropy": "entropy of class targets (1: no effect)",
    "confident_pairs": "share of confident pairs (higher is better)",
}


@dataclass(frozen=True)
class AliceOptions(MethodOptions):
    """Options of ``pretrain alice``; the presets ``release`` and ``paper`` set several of them at once.

    Raises:
        OptionError: a value is out of range, or ``patients`` is not a regular expression with a group.

    >>> AliceOptions.from_preset("paper").encoding
    'sparse'
    """

    batch_size: int = count(0, 0, doc="Pairs of crops per step and rank; 0: half the planned batch size, at least 1.")
    mask_ratio: float = number(
        0.75, 0, 1, low_excluded=True, high_excluded=True, doc="Fraction of the cells that are hidden from the student."
    )
    mask_mode: Literal["block3d", "tube"] = choice(
        "block3d", "tube",
        doc="block3d hides single cells; tube hides columns of cells, along z with NNFormerUNet, otherwise along the "
        "first axis.",
    )  # fmt: skip
    encoding: Literal["dense", "sparse"] = choice(
        "dense", "sparse",
        doc="dense sets hidden voxels to zero; sparse excludes hidden cells from convolutions and norms, and fills "
        "them with one learned token per stage before the decoder (arXiv 2301.03580).",
    )  # fmt: skip
    casa: Literal["none", "residual", "plain"] = choice(
        "none", "residual", "plain",
        doc="none: the student's token in a hidden cell predicts the teacher's token in the same cell (iBOT, arXiv "
        "2111.07832); residual and plain align the tokens by cross-attention first, as in the authors' code, or as in "
        "the paper's figure (attention and output projection only).",
    )  # fmt: skip
    casa_target: Literal["ema", "shared"] = choice(
        "ema", "shared", doc="Whether the target's CASA is a moving average of the student's, or equals it."
    )
    target_tokens: Literal["encoder", "decoder"] = choice(
        "encoder", "decoder", doc="The teacher's tokens that are predicted, or that the target of CASA attends to."
    )
    mim_voxels: Literal["masked", "all"] = choice(
        "masked", "all", doc="Voxels of the reconstruction loss; padding is never among them."
    )
    score_threshold: float = number(
        0.7, -1, 1, doc="Pairs whose matching score is lower have no inter-volume loss; scores are in [-1, 1]."
    )
    collapse_guard: Literal["center", "sinkhorn", "none"] = choice(
        "sinkhorn", "center", "none",
        doc="sinkhorn balances the prototypes; center subtracts a running mean from the teacher's logits.",
    )  # fmt: skip
    weight_inter: float | None = automatic_number(
        "Weight of the class-token loss between the two volumes of a pair; None: 0 in a network with instance norm, "
        "whose class tokens hardly differed between volumes of Hippocampus, otherwise 1."
    )
    weight_intra: float = number(1.0, 0, INF, doc="Weight of the token loss within one volume.")
    weight_mim: float | None = automatic_number(
        "Weight of the masked reconstruction; None: 10 on images in [0, 1], 1 on z-scored images."
    )
    student_temperature: float = number(0.1, 0, INF, low_excluded=True, doc="Softmax temperature of the student.")
    teacher_temperature: float = number(
        0.07, 0, INF, low_excluded=True, doc="Softmax temperature of the teacher after its warm-up."
    )
    teacher_temperature_start: float = number(
        0.04, 0, INF, low_excluded=True,
        doc="The teacher's temperature in step 0; it changes linearly during the first 3 % of the run.",
    )  # fmt: skip
    ema_start: float | None = by_steps(
        default_ema_start, 0, 1,
        "The teacher's momentum in step 0; it rises to 1 along a cosine. None: by the number of steps T, 1 - 20 / T in "
        "[0.9, 0.996].",
    )  # fmt: skip
    alignment: Literal["coordinates", "sam", "same-volume", "random"] = choice(
        "coordinates", "sam", "same-volume", "random", doc="How the two crops of a pair are aligned (--alignment)."
    )
    patients: str = text(
        WHOLE_NAME,
        doc="Regular expression whose first group is the patient in a case's name; pairs join different patients "
        "(--patients).",
    )
    head_width: int = count(
        0, 0, doc="Width of the projection head's MLP; 0: eight times the channels of the token stage, at most 2048."
    )
    num_prototypes: int = option(
        512, f"a positive multiple of {HEADS}, the number of CASA's heads",
        lambda v: isinstance(v, int) and v >= HEADS and v % HEADS == 0,
        "Number of prototypes of the self-distillation, and width of CASA.",
    )  # fmt: skip

    presets: ClassVar[dict[str, dict[str, object]]] = {
        "release": {
            **AUTHORS,
            "mask_mode": "tube",
            "casa": "residual",
            "target_tokens": "decoder",
            "casa_target": "shared",
            "weight_mim": 5.0,  # the authors' code has 10, for half of the mean squared error on images in [0, 1]
        },
        "paper": {**AUTHORS, "encoding": "sparse", "casa": "plain", "target_tokens": "encoder"},
    }
    preset_of_network: ClassVar[dict[str, str]] = {NNFORMER: "release"}

    def __post_init__(self) -> None:
        super().__post_init__()
        patients_of((), self.patients)  # checks the pattern before anything is written
        if (self.casa, self.encoding, self.target_tokens) == ("none", "sparse", "encoder"):
            # the encoder of a sparse student has no features in the hidden cells
            raise self.error("target_tokens", "decoder with encoding=sparse and casa=none")
