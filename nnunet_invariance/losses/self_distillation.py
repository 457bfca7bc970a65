"""Self-distillation between a student and an EMA teacher, without negatives."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.common.collectives import all_reduce_sum, get_world_size
from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.base import (
    Loss,
    check_choice,
    check_count,
    check_dimensions,
    check_number,
    check_shape,
    check_temperature,
)
from nnunet_invariance.losses.sinkhorn import sinkhorn_knopp


class SelfDistillationLoss(Loss):
    r"""Cross-entropy between a centred, sharpened teacher and a student (DINO, arXiv 2104.14294; Alice, 2302.05615).

    .. math:: L = -\sum_k p_k \log q_k, \quad
              p = \mathrm{softmax}((t - c) / \tau_t), \quad q = \mathrm{softmax}(s / \tau_s)

    The centre :math:`c` is a running mean of the teacher's logits; subtracting it prevents the teacher from assigning
    all probability to one prototype. With ``collapse_guard="sinkhorn"``, :math:`p` is
    :func:`~nnunet_invariance.losses.sinkhorn.sinkhorn_knopp` of :math:`t / \tau_t` instead.

    >>> loss = SelfDistillationLoss(num_prototypes=4)
    >>> loss(torch.zeros(2, 4), torch.zeros(2, 4), teacher_temperature=0.04)  # log 4
    tensor(1.3863)

    Args:
        num_prototypes: length K of the logits.
        student_temperature: :math:`\tau_s`, larger than 0.
        center_momentum: share of the old centre that :meth:`update_center` keeps, in [0, 1).
        collapse_guard: "center", "sinkhorn" or "none"; the centre stays 0 with the last two.

    Raises:
        OptionError: a value is unknown or out of range.
    """

    center: Tensor

    def __init__(
        self,
        num_prototypes: int,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        collapse_guard: Literal["center", "sinkhorn", "none"] = "center",
    ) -> None:
        super().__init__()
        self.num_prototypes = check_count("num_prototypes", num_prototypes, 1)
        self.student_temperature = check_temperature(student_temperature, "student_temperature")
        self.center_momentum = check_number("center_momentum", center_momentum, 0, 1, high_excluded=True)
        self.collapse_guard = check_choice("collapse_guard", collapse_guard, "center", "sinkhorn", "none")
        self.register_buffer("center", torch.zeros(num_prototypes))

    def target(self, teacher: Tensor, teacher_temperature: float, valid_mask: Tensor | None = None) -> Tensor:
        """The teacher's distribution :math:`p` in float32 or better, without gradient.

        Shape:
            teacher: (..., K) logits. Returns the same shape; rows sum to 1.
            valid_mask: (...) bool; tokens that are False take no share of the prototypes in Sinkhorn-Knopp.
        """
        logits = (at_least_float32(teacher.detach()) - self.center) / teacher_temperature
        if self.collapse_guard != "sinkhorn":
            return torch.softmax(logits, dim=-1)
        valid = None if valid_mask is None else valid_mask.flatten().bool()
        return sinkhorn_knopp(logits.flatten(0, -2), valid).view_as(logits)

    def forward(
        self, student: Tensor, teacher: Tensor, teacher_temperature: float, valid_mask: Tensor | None = None
    ) -> Tensor:
        """The loss in float32 or better, averaged over the valid tokens of a sample and then over samples.

        Shape:
            student, teacher: (B, K) or (B, N, K) logits.
            valid_mask: (B,) or (B, N) bool, False for samples or tokens that do not count. Default: all True.
            Returns a scalar, at least 0. Samples that do not count, or without a token that does, add 0.

        Raises:
            OptionError: the teacher's temperature is not larger than 0.
            ShapeError: the shapes do not agree.
        """
        check_temperature(teacher_temperature, "teacher_temperature")
        self._check_shapes(student, teacher, valid_mask)
        log_q = F.log_softmax(at_least_float32(student) / self.student_temperature, dim=-1)
        # All class tokens have a target, also those of samples that do not count; padded tokens take no share.
        per_token = teacher.ndim == 3
        p = self.target(teacher, teacher_temperature, valid_mask if per_token else None)
        cross_entropy = -(p * log_q).sum(-1)
        if valid_mask is None:
            return cross_entropy.mean()
        valid = valid_mask.bool()
        cross_entropy = torch.where(valid, cross_entropy, 0)
        if not per_token:
            return cross_entropy.mean()
        return (cross_entropy.sum(1) / valid.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def update_center(self, mean_logits: Tensor) -> None:
        """Move the centre towards the teacher's mean logits (K,) of this step, averaged over all ranks.

        Raises:
            ShapeError: there is another number of logits.
        """
        check_shape("mean_logits", mean_logits, self.center.shape, "(K,)")
        if self.collapse_guard == "center":
            mean = all_reduce_sum(mean_logits.to(self.center.dtype, copy=True)) / get_world_size()
            self.center.lerp_(mean, 1 - self.center_momentum)

    def _check_shapes(self, student: Tensor, teacher: Tensor, valid_mask: Tensor | None) -> None:
        check_dimensions("student", student, 2, "(B, K) or (B, N, K)", most=3)
        check_shape("student", student, (*student.shape[:-1], self.num_prototypes), "(..., K)")
        check_shape("teacher", teacher, student.shape, "that of 'student'")
        if valid_mask is not None:
            check_shape("valid_mask", valid_mask, student.shape[:-1], "that of 'student' without K")
