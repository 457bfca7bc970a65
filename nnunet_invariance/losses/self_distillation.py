"""Self-distillation between a student and an EMA teacher, without negatives."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.common.collectives import all_reduce_sum, get_world_size
from nnunet_invariance.common.precision import at_least_float32
from nnunet_invariance.losses.sinkhorn import sinkhorn_knopp


class SelfDistillationLoss(nn.Module):
    r"""Cross-entropy between a centred, sharpened teacher and a student (DINO form; Alice, arXiv 2302.05615).

    .. math:: L = -\sum_k p_k \log q_k, \quad
              p = \mathrm{softmax}((t - c) / \tau_t), \quad q = \mathrm{softmax}(s / \tau_s)

    The centre :math:`c` is a running mean of the teacher's logits; subtracting it keeps the teacher from putting all
    mass on one code (Caron et al., arXiv 2104.14294). With ``sinkhorn``, :math:`p` is
    :func:`~nnunet_invariance.losses.sinkhorn.sinkhorn_knopp` of :math:`t / \tau_t` instead.

    Args:
        codes: length K of the logits.
        student_temperature: :math:`\tau_s`.
        center_momentum: share of the old centre that is kept by :meth:`update_center`, in [0, 1).
        guard: against collapse; with ``none`` and ``sinkhorn`` the centre stays 0.
    """

    def __init__(
        self,
        codes: int,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        guard: Literal["center", "sinkhorn", "none"] = "center",
    ) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.guard = guard
        self.register_buffer("center", torch.zeros(codes))

    def target(self, teacher: Tensor, teacher_temperature: float, weight: Tensor | None = None) -> Tensor:
        """The teacher's distribution :math:`p`, at least float32, without gradient. Shape as ``teacher``: (..., K).

        ``weight`` (...): 0 for tokens that take no share of the codes; the other guards do not need it.
        """
        logits = (at_least_float32(teacher.detach()) - self.center) / teacher_temperature
        if self.guard != "sinkhorn":
            return torch.softmax(logits, dim=-1)
        counts = None if weight is None else weight.flatten() > 0
        return sinkhorn_knopp(logits.flatten(0, -2), counts).view_as(logits)

    def forward(
        self, student: Tensor, teacher: Tensor, teacher_temperature: float, weight: Tensor | None = None
    ) -> Tensor:
        """The loss, averaged over tokens within a sample and then over samples.

        Shape:
            student, teacher: (B, K) or (B, N, K) logits. weight: (B,) or (B, N), 0 for what does not count.
            Samples that do not count, or without a token that does, add zero. Returns a scalar, at least 0.
        """
        log_q = F.log_softmax(at_least_float32(student) / self.student_temperature, dim=-1)
        per_token = teacher.ndim == 3  # all samples of one code a sample have a target, also those that do not count
        p = self.target(teacher, teacher_temperature, weight if per_token else None)
        cross_entropy = -(p * log_q).sum(-1)
        if weight is None:
            return cross_entropy.mean()
        weight = weight.to(cross_entropy.dtype)
        if not per_token:
            return (cross_entropy * weight).mean()
        return ((cross_entropy * weight).sum(1) / weight.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def update_center(self, mean_logits: Tensor) -> None:
        """Move the centre towards this step's mean teacher logits (K,), averaged over all ranks."""
        if self.guard == "center":
            mean = all_reduce_sum(mean_logits.to(self.center.dtype, copy=True)) / get_world_size()
            self.center.lerp_(mean, 1 - self.center_momentum)
