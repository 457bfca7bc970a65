"""Dense InfoNCE against a slow loop over its equation."""

import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_invariance.losses import DenseInfoNCE


def slow_loss(first, second, positions, valid, temperature, least_distance) -> float:
    """The equation, row by row."""
    samples = []
    for a, b, p, v in zip(first, second, positions, valid, strict=True):
        rows = [(F.normalize(view[n], dim=0), p[n], view_index, n) for view_index, view in enumerate((a, b))
                for n in range(len(a)) if v[n]]  # fmt: skip
        errors = []
        for z, where, view_index, n in rows:
            positive, total = None, 0.0
            for other, there, other_view, m in rows:
                similarity = float(z @ other) / temperature
                if m == n and other_view != view_index:
                    positive = similarity
                elif m == n or float((where - there).norm()) < least_distance:
                    continue
                total += math.exp(similarity)
            errors.append(math.log(total) - positive)
        samples.append(sum(errors) / len(errors) if errors else 0.0)
    return sum(samples) / len(samples)


@pytest.mark.parametrize("least_distance", [0.0, 1.0, 3.0, 100.0])
def test_it_is_the_slow_loop(least_distance):
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.randn(3, 7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    positions = torch.rand(3, 7, 3, generator=generator, dtype=torch.float64) * 4
    valid = torch.rand(3, 7, generator=generator) < 0.8
    valid[2] = False
    expected = slow_loss(first, second, positions, valid, 0.3, least_distance)
    found = DenseInfoNCE(0.3, least_distance)(first, second, positions, valid)
    assert found.item() == pytest.approx(expected, abs=1e-9)


def test_without_distant_positions_nothing_is_left_to_learn():
    rows = torch.randn(1, 4, 3)
    assert DenseInfoNCE(least_distance=100.0)(rows, -rows, torch.rand(1, 4, 3)) == 0


def test_accuracy_counts_rows_that_find_their_twin():
    rows, positions = torch.eye(4)[None], torch.arange(4.0)[None, :, None] * 10
    loss = DenseInfoNCE()
    assert loss.accuracy(rows, rows, positions) == 1
    assert loss.accuracy(rows, rows.roll(1, 1), positions) == 0
    swapped = rows[:, [1, 0, 2, 3]]
    assert loss.accuracy(rows, swapped, positions) == 0.5
    assert loss.accuracy(rows, swapped, positions, torch.tensor([[True, True, False, False]])) == 0
    assert loss.accuracy(torch.ones_like(rows), torch.ones_like(rows), positions) == 0
