"""A teacher whose weights are the moving average of the student's (arXiv 1703.01780), and whether to trust it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from nnunet_invariance.pretraining.engine.method import update_ema
from nnunet_invariance.trainers.schedule import ramp

#: A teacher whose pseudo-Dice is lower than the student's by more than this is not trusted.
MARGIN = 0.05
#: Nor is one whose pseudo-Dice is below this, as that of a network that has not learned yet.
LEAST_DICE = 0.1
#: Least confident foreground of an unlabelled patch, relative to the labelled foreground of a validation patch.
LEAST_FOREGROUND = 0.01


class MeanTeacher:
    r"""The moving average of a network's weights.

    .. math:: \theta'_t = \alpha \, \theta'_{t-1} + (1 - \alpha) \, \theta_t

    Buffers are copied. The teacher is always in evaluation mode and has no gradients.

    Args:
        network: of the student's architecture; its values are replaced.
        ema: :math:`\alpha`, in [0, 1).

    >>> student = nn.Linear(1, 1, bias=False)
    >>> teacher = MeanTeacher(nn.Linear(1, 1, bias=False), ema=0.5)
    >>> teacher.start_from(student)
    >>> _ = nn.init.ones_(student.weight), nn.init.zeros_(teacher.network.weight)
    >>> teacher.follow(student)
    >>> teacher.network.weight.item()
    0.5
    """

    def __init__(self, network: nn.Module, ema: float) -> None:
        self.network = network.eval().requires_grad_(False)
        self.ema = ema

    def start_from(self, student: nn.Module) -> None:
        """Copy the student."""
        self.network.load_state_dict(student.state_dict())

    def follow(self, student: nn.Module) -> None:
        """Move towards the student after one of its steps."""
        update_ema(self.network, student, self.ema)


class Trust:
    """Whether the teacher is right and confident enough to learn from; it is not before the first judgement.

    Attributes:
        given: the current judgement. reason: why it is not given, for the log.

    >>> trust = Trust()
    >>> trust.judge(teacher=0.8, student=0.79, foreground=0.5)
    True
    >>> trust.judge(teacher=0.6, student=0.79, foreground=0.5), trust.reason
    (False, 'its pseudo-Dice 0.600 is clearly below the 0.790 of the student')
    """

    def __init__(self) -> None:
        self.given = False
        self.reason = "it has not been validated yet"

    def judge(self, teacher: float, student: float, foreground: float) -> bool:
        """Judge the teacher of an epoch.

        Args:
            teacher, student: pseudo-Dice on the same validation patches; NaN if these hold no foreground.
            foreground: confident foreground per unlabelled patch, relative to the labelled foreground per validation
                patch; NaN if no unlabelled patch was looked at, which leaves the judgement as it is.
        """
        if math.isnan(foreground):
            return self.given
        if teacher < student - MARGIN:
            self.given = False
            self.reason = f"its pseudo-Dice {teacher:.3f} is clearly below the {student:.3f} of the student"
        elif teacher < LEAST_DICE:
            self.given, self.reason = False, f"its pseudo-Dice {teacher:.3f} is below {LEAST_DICE}"
        elif foreground < LEAST_FOREGROUND:
            self.given = False
            self.reason = "it finds almost no confident foreground in the unlabelled scans"
        else:
            self.given, self.reason = True, ""
        return self.given

    def state(self) -> dict[str, Any]:
        """Content for a checkpoint."""
        return {"given": self.given, "reason": self.reason}

    def load(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state`."""
        self.given, self.reason = state["given"], state["reason"]


def scheduled_weight(progress: float, weight: float, ramp_share: float, last_phase: float) -> float:
    """Weight of the loss on unlabelled scans, without regard to trust; ``progress`` of the run is in [0, 1).

    >>> [scheduled_weight(progress, 1.0, 0.4, 0.1) for progress in (0.0, 0.2, 0.8, 0.95)]
    [0.0, 0.5, 1.0, 0.0]
    """
    return 0.0 if progress >= 1 - last_phase else weight * ramp(progress, ramp_share)


def pseudo_dice(outputs: Sequence[dict[str, Any]]) -> float:
    """Mean over classes of the Dice over all patches, from nnU-Net's counts; NaN if there is no foreground at all.

    >>> pseudo_dice([{"tp_hard": np.array([2.0, 0.0]), "fp_hard": np.zeros(2), "fn_hard": np.zeros(2)}])
    1.0
    """
    tp, fp, fn = (np.sum([output[name] for output in outputs], 0) for name in ("tp_hard", "fp_hard", "fn_hard"))
    found = 2 * tp + fp + fn > 0
    return float(np.mean(2 * tp[found] / (2 * tp + fp + fn)[found])) if found.any() else math.nan


def keeps_teacher(keep: str, teacher: Sequence[float], student: Sequence[float], epochs: int = 10) -> bool:
    """Whether the final weights are the teacher's: as told, or by the mean pseudo-Dice of the last epochs.

    >>> keeps_teacher("better", [0.1, 0.8], [0.9, 0.7], epochs=1)
    True
    """
    if keep != "better":
        return keep == "teacher"
    return float(np.mean(teacher[-epochs:])) >= float(np.mean(student[-epochs:]))
