"""Self-distillation between a student and an EMA teacher, without negatives."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.losses.precision import at_least_float32


class SelfDistillationLoss(nn.Module):
    r"""Cross-entropy between a centred, sharpened teacher and a student (DINO form; Alice, arXiv 2302.05615).

    .. math:: L = -\sum_k p_k \log q_k, \quad
              p = \mathrm{softmax}((t - c) / \tau_t), \quad q = \mathrm{softmax}(s / \tau_s)

    The centre :math:`c` is a running mean of the teacher's logits; subtracting it keeps the teacher from putting all
    mass on one code (Caron et al., arXiv 2104.14294).

    Args:
        codes: length K of the logits.
        student_temperature: :math:`\tau_s`.
        center_momentum: share of the old centre that is kept by :meth:`update_center`, in [0, 1).
    """

    def __init__(self, codes: int, student_temperature: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(codes))

    def target(self, teacher: Tensor, teacher_temperature: float) -> Tensor:
        """The teacher's distribution :math:`p`, at least float32, without gradient. Shape as ``teacher``: (..., K)."""
        return torch.softmax((at_least_float32(teacher.detach()) - self.center) / teacher_temperature, dim=-1)

    def forward(
        self, student: Tensor, teacher: Tensor, teacher_temperature: float, weight: Tensor | None = None
    ) -> Tensor:
        """The loss, averaged over tokens within a sample and then over samples.

        Shape:
            student, teacher: (B, K) or (B, N, K) logits. weight: (B, N), 0 for tokens that do not count.
            Samples without a token that counts add zero. Returns a scalar, at least 0.
        """
        log_q = F.log_softmax(at_least_float32(student) / self.student_temperature, dim=-1)
        cross_entropy = -(self.target(teacher, teacher_temperature) * log_q).sum(-1)
        if cross_entropy.ndim == 1:
            return cross_entropy.mean()
        if weight is None:
            return cross_entropy.mean(1).mean()
        weight = weight.to(cross_entropy.dtype)
        return ((cross_entropy * weight).sum(1) / weight.sum(1).clamp(min=1)).mean()

    @torch.no_grad()
    def update_center(self, mean_logits: Tensor) -> None:
        """Move the centre towards this step's mean teacher logits (K,), averaged over all ranks."""
        mean_logits = mean_logits.float()
        if dist.is_available() and dist.is_initialized():
            mean_logits = mean_logits.clone()
            dist.all_reduce(mean_logits)
            mean_logits /= dist.get_world_size()
        self.center.lerp_(mean_logits, 1 - self.center_momentum)
