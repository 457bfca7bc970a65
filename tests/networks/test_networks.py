"""Token stage, decoder features, CASA and heads."""

import pytest
import torch
from torch import nn

from nnunet_invariance.networks.heads.casa import CrossAttentionAlignment
from nnunet_invariance.networks.heads.distillation_head import CosinePrototypes
from nnunet_invariance.networks.planned import cumulative_strides, decode, token_stage, unique_tensors
from tests.helpers.planned_networks import architecture


@pytest.mark.parametrize(
    ("strides", "stage", "cell"),
    [
        ([[1] * 3] + [[2] * 3] * 5, 4, (16, 16, 16)),  # the stock 6-stage plan
        ([[1] * 3] + [[2] * 3] * 3, 3, (8, 8, 8)),  # Hippocampus: the deepest
        ([[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]], 4, (4, 16, 16)),  # anisotropic
        ([[1] * 3] + [[2] * 3] * 2, 2, (4, 4, 4)),
    ],
)
def test_tokens_are_the_stage_nearest_stride_16(strides, stage, cell):
    assert token_stage(strides) == stage
    assert cumulative_strides(strides)[stage] == cell


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("strides", [((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((1, 1, 1), (1, 2, 2), (2, 2, 2))])
def test_decode_is_the_stock_forward_pass(kind, strides):
    network = architecture(kind, strides).build().eval()
    x = torch.randn(2, 1, 16, 16, 16)
    skips = network.encoder(x)
    features = decode(network.decoder, skips)
    assert torch.equal(network.decoder.seg_layers[-1](features[-1]), network(x))
    assert [f.shape[1] for f in features] == [8, 4]


def test_unique_tensors_contains_every_tensor_exactly_once():
    network = architecture("ResidualEncoderUNet").build()
    tensors = unique_tensors(network)
    pointers = {t.data_ptr() for t in network.state_dict().values()}
    assert len(tensors) == len(pointers)
    assert {t.data_ptr() for t in tensors.values()} == pointers


def test_casa_equals_attention_computed_token_by_token():
    torch.manual_seed(0)
    casa = CrossAttentionAlignment(dim=12, heads=3, hidden=20).eval()
    query, target = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    valid = torch.rand(2, 7) > 0.3
    expected = torch.empty(2, 5, 12)
    for b in range(2):
        for n in range(5):
            parts = []
            for h in range(3):
                rows = slice(4 * h, 4 * h + 4)
                q = casa.query.weight[rows] @ query[b, n]
                kept = [m for m in range(7) if valid[b, m]]
                scores = torch.stack([(casa.key.weight[rows] @ target[b, m]) @ q / 2.0 for m in kept])
                share = torch.softmax(scores, 0)
                parts.append(
                    sum(w * (casa.value.weight[rows] @ target[b, m]) for w, m in zip(share, kept, strict=True))
                )
            h1 = casa.attention_norm(query[b, n] + casa.out.weight @ torch.cat(parts))
            expected[b, n] = casa.output_norm(h1 + casa.feed_forward(h1))
    assert torch.allclose(casa(query, target, valid), expected, atol=1e-5)


def test_casa_ignores_padding():
    casa = CrossAttentionAlignment(dim=8, heads=2, hidden=8).eval()
    query, target = torch.randn(1, 3, 8), torch.randn(1, 4, 8)
    valid = torch.tensor([[True, True, False, True]])
    changed = target.clone()
    changed[:, 2] = 1e3
    assert torch.equal(casa(query, target, valid), casa(query, changed, valid))


def test_logits_are_cosines():
    prototypes = CosinePrototypes(6, 4)
    x = torch.randn(3, 6)
    assert torch.allclose(
        prototypes(x), nn.functional.cosine_similarity(x[:, None], prototypes.weight[None], dim=-1), atol=1e-6
    )
    assert torch.allclose(prototypes(x), prototypes(7 * x), atol=1e-6)
