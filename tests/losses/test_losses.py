"""Self-distillation and masked reconstruction: equality with slow loops of their equations."""

import math

import pytest
import torch

from nnunet_invariance.losses.masked_reconstruction import MaskedReconstructionLoss
from nnunet_invariance.losses.self_distillation import SelfDistillationLoss


def _slow_cross_entropy(student, teacher, center, tau_s, tau_t):
    """One token, element by element."""
    t = [(x - c) / tau_t for x, c in zip(teacher.tolist(), center.tolist(), strict=True)]
    s = [x / tau_s for x in student.tolist()]
    top_t, top_s = max(t), max(s)
    total_t = sum(math.exp(x - top_t) for x in t)
    log_total_s = math.log(sum(math.exp(x - top_s) for x in s)) + top_s
    return -sum(math.exp(a - top_t) / total_t * (b - log_total_s) for a, b in zip(t, s, strict=True))


def test_self_distillation_equals_the_slow_loop_and_ignores_masked_tokens():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    weight = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    loss = SelfDistillationLoss(6, student_temperature=0.3)
    loss.center.copy_(torch.randn(6))
    rows = []
    for b in range(3):
        tokens = [
            _slow_cross_entropy(student[b, n], teacher[b, n], loss.center, 0.3, 0.2) for n in range(4) if weight[b, n]
        ]
        rows.append(sum(tokens) / len(tokens) if tokens else 0.0)
    assert loss(student, teacher, 0.2, weight).item() == pytest.approx(sum(rows) / 3, rel=1e-5)
    flat = [_slow_cross_entropy(student[b, 0], teacher[b, 0], loss.center, 0.3, 0.2) for b in range(3)]
    assert loss(student[:, 0], teacher[:, 0], 0.2).item() == pytest.approx(sum(flat) / 3, rel=1e-5)
    student.requires_grad_()
    loss(student, teacher, 0.2, weight).backward()
    assert (student.grad[weight == 0] == 0).all()
    assert (student.grad[weight == 1] != 0).any()


def test_self_distillation_is_minimal_if_the_student_equals_the_target_and_the_teacher_gets_no_gradient():
    loss = SelfDistillationLoss(5, student_temperature=0.1)
    teacher = torch.randn(2, 5, requires_grad=True)
    matching = torch.log(loss.target(teacher, 0.5)) * 0.1
    entropy = -(loss.target(teacher, 0.5) * torch.log(loss.target(teacher, 0.5))).sum(-1).mean()
    assert torch.allclose(loss(matching, teacher, 0.5), entropy, rtol=1e-5)
    assert loss(matching + 0.1 * torch.randn(2, 5), teacher, 0.5) > entropy
    student = torch.randn(2, 5, requires_grad=True)
    loss(student, teacher, 0.5).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_center_is_an_exponential_mean():
    loss = SelfDistillationLoss(3, center_momentum=0.9)
    values = torch.randn(4, 3)
    expected = torch.zeros(3)
    for value in values:
        loss.update_center(value)
        expected = 0.9 * expected + 0.1 * value
    assert torch.allclose(loss.center, expected, rtol=1e-5)


def test_masked_reconstruction_equals_the_slow_loop():
    torch.manual_seed(1)
    x, y = torch.randn(3, 2, 3, 4, 2), torch.randn(3, 2, 3, 4, 2)
    hidden = torch.rand(3, 1, 3, 4, 2) > 0.4
    hidden[2] = False
    rows = []
    for b in range(3):
        errors = [
            ((x[b, :, i, j, k] - y[b, :, i, j, k]) ** 2).mean().item()
            for i in range(3)
            for j in range(4)
            for k in range(2)
            if hidden[b, 0, i, j, k]
        ]
        rows.append(sum(errors) / len(errors) if errors else 0.0)
    assert MaskedReconstructionLoss()(x, y, hidden).item() == pytest.approx(sum(rows) / 3, rel=1e-5)


def test_visible_voxels_have_no_influence():
    x, y = torch.randn(2, 1, 4, 4, 4), torch.randn(2, 1, 4, 4, 4)
    hidden = torch.rand(2, 1, 4, 4, 4) > 0.5
    changed = torch.where(hidden, x, 1e6 * torch.randn_like(x))
    loss = MaskedReconstructionLoss()
    assert loss(x, y, hidden) == loss(changed, y, hidden)


def test_gradients():
    torch.manual_seed(2)
    loss = SelfDistillationLoss(4, 0.5).double()
    loss.center.normal_()
    teacher, weight = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([[1, 1, 0], [0, 1, 1]])
    student = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, 0.5, weight), student)
    image, hidden = torch.randn(2, 1, 2, 3, 2, dtype=torch.float64), torch.rand(2, 1, 2, 3, 2) > 0.3
    guess = torch.randn(2, 1, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda g: MaskedReconstructionLoss()(g, image, hidden), guess)
