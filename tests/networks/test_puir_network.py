"""PUIRNet: missing modalities have no influence; gates, prior, presence, memory estimate and parameter names."""

import math

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.normalization import default_normalization_schemes

from nnunet_invariance.networks.architectures.bottleneck_decoder import BottleneckDecoder
from nnunet_invariance.networks.architectures.fusion import GatedFusion
from nnunet_invariance.networks.architectures.modality_stem import ModalityStem
from nnunet_invariance.networks.architectures.prior import PriorAttention
from nnunet_invariance.networks.architectures.puir import PUIRNet, gigabytes
from nnunet_invariance.networks.planned import unique_tensors
from nnunet_invariance.networks.presence import present_channels
from tests.helpers.small_checkpoints import anisotropic, architecture, build

PATCH = (16, 16, 16)


def network(name: str = "PlainConvUNet", channels: int = 3, tokens: str = "spatial", seed: int = 0) -> PUIRNet:
    torch.manual_seed(seed)
    net = PUIRNet(architecture(name, channels), PATCH, tokens, length=5)
    for fusion in net.fusions:  # initially all modalities have the same weight
        torch.nn.init.normal_(fusion.score.weight)
        torch.nn.init.normal_(fusion.modality)
    return net


@pytest.mark.parametrize("name", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("tokens", ["spatial", "channel"])
def test_an_absent_modality_has_no_influence_and_no_gradient(name, tokens):
    net, x = network(name, tokens=tokens), torch.randn(2, 3, *PATCH)
    present = torch.tensor([[True, False, True], [False, True, False]])
    other = torch.where(present[..., None, None, None], x, 100 * torch.randn_like(x))
    assert torch.equal(net(x, present), net(other, present))
    constant = torch.where(present[..., None, None, None], x, -3.5)  # recognised without the mask
    assert torch.equal(net(x, present), net(constant))
    x.requires_grad_()
    net(x, present).square().sum().backward()
    gradient = x.grad.abs().amax((2, 3, 4))
    assert torch.equal(gradient > 0, present)


def test_a_modality_that_is_present_has_influence():
    net, x = network(), torch.randn(1, 3, *PATCH)
    for channel in range(3):
        other = x.clone()
        other[:, channel] += torch.randn(PATCH)
        assert not torch.allclose(net(x), net(other))


def test_without_present_modalities_the_output_is_finite_and_constant():
    net = network()
    outputs = [net(x) for x in (torch.zeros(1, 3, *PATCH), torch.full((1, 3, *PATCH), 7.0))]
    outputs.append(net(torch.randn(1, 3, *PATCH), torch.zeros(1, 3, dtype=torch.bool)))
    assert outputs[0].isfinite().all()
    for output in outputs[1:]:
        assert torch.equal(outputs[0], output)
    outputs[0].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_gates_are_a_softmax_over_present_modalities():
    maps, present = torch.randn(2, 3, 4, 2, 2, 2), torch.tensor([[True, False, True], [True, True, True]])
    fusion = GatedFusion(torch.nn.Conv3d, 4, 3)
    torch.nn.init.normal_(fusion.score.weight)
    torch.nn.init.normal_(fusion.modality)
    fused, weight = fusion(maps, present), fusion.score.weight.flatten()
    for b, f, v in [(0, 1, (0, 1, 0)), (1, 3, (1, 1, 0))]:
        who = present[b].nonzero().flatten().tolist()
        logits = torch.stack([weight @ maps[(b, i, slice(None), *v)] + fusion.modality[i, f] for i in who])
        one = sum(g * maps[(b, i, f, *v)] for g, i in zip(logits.softmax(0), who, strict=True))
        torch.testing.assert_close(fused[(b, f, *v)], one)


def test_each_channel_initially_prefers_one_modality_and_the_others_share_its_weight_where_it_is_missing():
    fusion, maps = GatedFusion(torch.nn.Conv3d, 6, 3), torch.randn(1, 3, 6, 2, 2, 2)
    fused = {k: fusion(maps, torch.tensor([k]))[0] for k in [(True, True, True), (False, True, True)]}
    for f in range(6):
        for kept, found in fused.items():
            weights = [math.exp(4.0 * (f % 3 == i)) * kept[i] for i in range(3)]
            one = sum(w * maps[0, i, f] for i, w in enumerate(weights)) / sum(weights)
            torch.testing.assert_close(found[f], one)


def test_exchanged_modalities_initially_change_the_output():
    """With uniform gates the network could not tell who is who, and would first have to learn it."""
    torch.manual_seed(0)
    net, x = PUIRNet(architecture(channels=3), PATCH, length=5), torch.randn(1, 3, *PATCH)
    outputs = [net(x), net(x[:, [1, 2, 0]])]
    assert (outputs[0] - outputs[1]).abs().mean() > 0.1 * outputs[0].std()
    for fusion in net.fusions:
        torch.nn.init.zeros_(fusion.modality)
    torch.testing.assert_close(net(x), net(x[:, [1, 2, 0]]), rtol=1e-4, atol=1e-5)


def test_a_stem_of_each_modality_is_a_residual_and_leaves_missing_ones_empty():
    stem, x = ModalityStem(2, (1, 3, 3)).double(), torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    x[1, 0] = 0
    assert torch.equal(stem(x), x)
    torch.nn.init.normal_(stem.modality_weights)
    found = stem(x)
    assert not found[1, 0].any()
    for b, c in np.ndindex(2, 2):
        filtered = torch.nn.functional.conv3d(x[b, c][None, None], stem.modality_filters[c][:, None], padding=(0, 1, 1))
        flat = filtered[0].flatten(1)
        normal = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        added = stem.modality_weights[c] @ torch.where(normal > 0, normal, 0.01 * normal)
        torch.testing.assert_close(found[b, c], x[b, c] + added.view(3, 5, 4))


def test_the_stem_has_rows_that_follow_the_names_of_the_modalities():
    net = PUIRNet(architecture(channels=3), PATCH, length=5, stem="own")
    rows = [name for name, tensor in net.named_parameters() if name.endswith(PUIRNet.tables)]
    assert {"stem.modality_filters", "stem.modality_weights", "fusions.0.modality"} < set(rows)
    assert all(len(net.get_parameter(name)) == 3 for name in rows)
    grown = net.compute_conv_feature_map_size(PATCH) - network(channels=3).compute_conv_feature_map_size(PATCH)
    assert grown == 3 * 8 * 16**3


def test_gates_stay_in_half_precision_under_autocast():
    maps, present = torch.randn(2, 3, 4, 4, 4, 4, dtype=torch.bfloat16), torch.tensor([[True, False, True]] * 2)
    fusion = GatedFusion(torch.nn.Conv3d, 4, 3)
    torch.nn.init.normal_(fusion.score.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = fusion(maps, present)
    assert fused.dtype == torch.bfloat16
    torch.testing.assert_close(fused.float(), fusion(maps.float(), present), rtol=0.03, atol=0.03)


def test_equal_estimates_fuse_to_the_estimate():
    estimate, present = torch.randn(1, 1, 4, 2, 2, 2), torch.tensor([[True, False, True]])
    fusion = GatedFusion(torch.nn.Conv3d, 4, 3)
    torch.nn.init.normal_(fusion.modality)
    torch.testing.assert_close(fusion(estimate.expand(-1, 3, -1, -1, -1, -1), present), estimate[:, 0])


def test_prior_attention_equals_its_equation():
    for tokens in ("spatial", "channel"):
        module = PriorAttention(8, (2, 2, 2), tokens, 5).double()
        z = torch.randn(1, 8, 2, 2, 2, dtype=torch.float64)
        rows = z[0].flatten(1).T
        q = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        q = q if tokens == "spatial" else q.T
        mha, prior = module.attention, module.prior[0]
        qkv = zip((q, prior, prior), mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3), strict=True)
        q, k, v = (x @ w.T + b for x, w, b in qkv)
        width = q.shape[1] // mha.num_heads
        heads = [
            ((q[:, s] @ k[:, s].T / width**0.5).softmax(1) @ v[:, s])
            for s in (slice(h * width, (h + 1) * width) for h in range(mha.num_heads))
        ]
        expected = torch.cat(heads, 1) @ mha.out_proj.weight.T + mha.out_proj.bias
        expected = expected.T if tokens == "spatial" else expected
        torch.testing.assert_close(module(z)[0].flatten(1), expected)


def test_presence_under_padding_and_ct_normalisation():
    x = torch.randn(1, 6, 8, 8, 8)
    x[:, 1] = 0
    x[:, 2] = -2.7  # CT normalisation of 0
    x[:, 3] = 0
    x[:, 3, 2:6, 1:8, :] = -2.7  # the same in a volume smaller than the patch
    x[:, 4] = 0
    x[:, 4, 2:6, 1:8, :] = torch.randn(4, 7, 8)  # a real image in a small volume
    x[:, 5] = (x[:, 5] > 0).float()  # two values, but no box
    expected = torch.tensor([[True, False, False, False, True, True]])
    assert torch.equal(present_channels(x), expected)
    for axes in [(2,), (3, 4), (2, 3, 4)]:
        assert torch.equal(present_channels(x.flip(axes)), expected)


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("scheme", ["ZScore", "CT", "No", "RescaleTo01", "RGBTo01"])
def test_a_missing_modality_is_recognised_after_every_normalisation_of_nnunet(scheme, value):
    properties = {"mean": 35.0, "std": 9.0, "percentile_00_5": -50.0, "percentile_99_5": 50.0}
    kind = getattr(default_normalization_schemes, f"{scheme}Normalization")
    slot = kind(False, properties).run(np.full((6, 6, 6), value, np.float32))
    padded = torch.from_numpy(np.pad(slot, 1))[None, None]
    assert not present_channels(padded).any()


def test_recomputed_activations_give_the_same_gradients():
    net, x = network("ResidualEncoderUNet"), torch.randn(2, 3, *PATCH)
    gradients = []
    for net.checkpointing in (False, True):
        net.zero_grad()
        net(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_shapes_with_anisotropic_strides_and_deep_supervision():
    net = PUIRNet(anisotropic(2), (8, 16, 16))
    x = torch.randn(1, 2, 8, 16, 16)
    assert net(x).shape == (1, 2, 8, 16, 16)
    net.decoder.deep_supervision = True
    logits, estimates, profile = net(x, return_estimates=True)
    assert [tuple(logit.shape[2:]) for logit in logits] == [(8, 16, 16), (8, 8, 8)]
    assert estimates.profiles.shape == (1, 2, 16, 4, 4, 4)
    assert profile.shape == (1, 16, 4, 4, 4)
    assert BottleneckDecoder(net.encoder, 2)(profile).shape == x.shape


def test_any_one_channel_encoder_can_be_loaded_and_parameter_names_are_those_of_nnunet():
    single = build(architecture(channels=1), seed=3)
    net = network()
    net.encoder.load_state_dict(single.encoder.state_dict())
    stock = {name for name in unique_tensors(single) if not name.startswith("decoder.seg_layers")}
    assert stock < set(unique_tensors(net))
    again = network(seed=1)
    again.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, *PATCH)
    assert torch.equal(net(x), again(x))


def test_the_memory_estimate_counts_encoder_and_gates_once_per_modality():
    stock, (whole, half, quarter) = build(architecture(channels=1), 0), (16**3, 8**3, 4**3)
    encoder = stock.encoder.compute_conv_feature_map_size(PATCH) + 4 * whole + 8 * half + 16 * quarter
    rebuilt = 8 * quarter + 8 * half / 2 + 4 * half + 4 * whole / 2 + 4 * whole
    decoder = stock.decoder.compute_conv_feature_map_size(PATCH)
    assert network(channels=4).compute_conv_feature_map_size(PATCH) == 4 * encoder + decoder + rebuilt
    assert gigabytes(560e6, 2) == 8.0
    assert gigabytes(560e6, 4) == 16.0
