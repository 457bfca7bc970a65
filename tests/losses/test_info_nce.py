"""Patch-wise InfoNCE: equality with a slow loop of its equation, and properties that follow from it."""

import math

import pytest
import torch

from nnunet_invariance.losses.info_nce import PatchInfoNCE


def slow_loop(first, second, valid, temperature):
    """The equation, one anchor and one negative at a time."""
    rows = []
    for view, embeddings in enumerate((first, second)):
        for b in range(embeddings.shape[0]):
            for n in range(embeddings.shape[1]):
                if valid[b, n]:
                    unit = embeddings[b, n] / embeddings[b, n].norm()
                    rows.append(((view, b, n), unit))
    total = 0.0
    for (view, b, n), anchor in rows:
        others = {key: float(anchor @ z) / temperature for key, z in rows if key != (view, b, n)}
        total += math.log(sum(math.exp(s) for s in others.values())) - others[1 - view, b, n]
    return total / len(rows)


def embeddings(batch=2, positions=5, features=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, positions, features)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]


VALID = torch.tensor([[True, True, False, True, True], [False, True, True, False, True]])


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("valid", [VALID, torch.ones(2, 5, dtype=torch.bool)])
def test_equals_the_slow_loop(temperature, valid):
    a, b = embeddings()
    assert PatchInfoNCE(temperature)(a, b, valid).item() == pytest.approx(
        slow_loop(a, b, valid, temperature), rel=1e-10
    )


def test_all_positions_count_without_a_mask():
    a, b = embeddings()
    assert torch.equal(PatchInfoNCE()(a, b), PatchInfoNCE()(a, b, torch.ones(2, 5, dtype=torch.bool)))


@pytest.mark.parametrize("valid", [None, VALID])
def test_gradient_equals_finite_differences(valid):
    a, b = (x.requires_grad_() for x in embeddings(features=3))
    assert torch.autograd.gradcheck(lambda a, b: PatchInfoNCE()(a, b, valid), (a, b))


@pytest.mark.parametrize("rubbish", [0.0, 1e6, math.inf, math.nan])
def test_masked_positions_have_no_influence(rubbish):
    a, b = embeddings(dtype=torch.float32)
    results = []
    for fill in (None, rubbish):
        pair = [x.clone() if fill is None else x.masked_fill(~VALID[..., None], fill) for x in (a, b)]
        pair = [x.requires_grad_() for x in pair]
        loss = PatchInfoNCE()(*pair, VALID)
        loss.backward()
        assert all((x.grad[~VALID] == 0).all() for x in pair)
        results.append((loss.detach(), *(x.grad[VALID] for x in pair)))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_without_valid_positions_the_loss_is_zero_and_has_a_zero_gradient():
    a, b = (x.requires_grad_() for x in embeddings())
    loss = PatchInfoNCE()(a, b, torch.zeros(2, 5, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (a.grad == 0).all()
    assert (b.grad == 0).all()


def test_a_single_position_has_no_negatives_and_zero_loss():
    a, b = embeddings(batch=1, positions=1)
    assert PatchInfoNCE()(a, b).item() == pytest.approx(0, abs=1e-12)


def test_equal_views_are_easier_than_unrelated_ones():
    a, b = embeddings(positions=64, features=16)
    equal, near, unrelated = (PatchInfoNCE()(a, x).item() for x in (a, a + 0.3 * b, b))
    assert equal < near < unrelated
    assert unrelated > math.log(2 * 2 * 64 - 1)  # higher than the loss of equal rows, on average


def test_order_of_positions_samples_and_views_does_not_matter():
    a, b = embeddings(positions=9)
    valid = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = PatchInfoNCE()(a, b, valid)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(PatchInfoNCE()(a[:, order], b[:, order], valid[:, order]), expected)
    assert torch.allclose(PatchInfoNCE()(a.flip(0), b.flip(0), valid.flip(0)), expected)
    assert torch.allclose(PatchInfoNCE()(b, a, valid), expected)
    moved = PatchInfoNCE()(a, b[:, order], valid)
    assert not torch.allclose(moved, expected)


def test_length_of_an_embedding_does_not_matter():
    a, b = embeddings()
    assert torch.allclose(PatchInfoNCE()(7 * a, 0.1 * b), PatchInfoNCE()(a, b))


def test_computes_in_float32_under_autocast():
    a, b = embeddings(dtype=torch.float32)
    expected = PatchInfoNCE()(a.bfloat16().float(), b.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = PatchInfoNCE()(a.bfloat16(), b.bfloat16())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
