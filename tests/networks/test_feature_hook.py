"""The feature hook with and without compilation, sampled positions, and the projection head."""

import copy
import gc
import math
import weakref

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_invariance.networks.feature_hook import EncoderFeatureHook
from nnunet_invariance.networks.heads.projection import (
    ProjectionHead,
    contrast_stage,
    gather_positions,
    sample_positions,
)
from nnunet_invariance.networks.planned import cumulative_strides


def network(residual=False, dimensions=3):
    torch.manual_seed(0)
    conv, norm = (nn.Conv3d, nn.InstanceNorm3d) if dimensions == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    common = {
        "input_channels": 1,
        "num_classes": 3,
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": conv,
        "kernel_sizes": 3,
        "strides": [1, 2, 2],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": {"affine": True},
        "nonlin": nn.LeakyReLU,
        "deep_supervision": True,
    }
    if residual:
        return ResidualEncoderUNet(n_blocks_per_stage=[1, 1, 1], **common)
    return PlainConvUNet(n_conv_per_stage=[1, 1, 1], **common)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def image(dimensions=3):
    return torch.randn((2, 1) + (16,) * dimensions, generator=torch.Generator().manual_seed(1))


@pytest.mark.integration
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_popped_maps_equal_a_direct_call_and_have_its_gradients(backend, residual, dimensions):
    plain = network(residual, dimensions)
    hooked = copy.deepcopy(plain)
    hook = EncoderFeatureHook(hooked.encoder)
    # fullgraph: the hook must not break the network into several graphs
    run = hooked if backend is None else torch.compile(hooked, backend=backend, fullgraph=True)
    x = image(dimensions)
    for _ in range(2):
        hooked.zero_grad()
        run(x)[0].mean()
        maps = hook.pop()
        expected = plain.encoder(x)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(maps, expected, strict=True))
        maps[-1].square().mean().backward()
        plain.zero_grad()
        expected[-1].square().mean().backward()
        for a, b in zip(hooked.encoder.parameters(), plain.encoder.parameters(), strict=True):
            assert a.grad is not None
            assert a.grad.abs().sum() > 0
            assert torch.allclose(a.grad, b.grad, atol=1e-6)


@pytest.mark.integration
def test_both_losses_reach_the_encoder_in_one_compiled_backward():
    reference, hooked = network(), network()
    hook = EncoderFeatureHook(hooked.encoder)
    run = torch.compile(hooked, backend="aot_eager")
    x = image()
    outputs = run(x)
    (sum(o.square().mean() for o in outputs) + hook.pop()[1].square().mean()).backward()
    (sum(o.square().mean() for o in reference(x)) + reference.encoder(x)[1].square().mean()).backward()
    for a, b in zip(hooked.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("backend", [None, "eager"])
def test_the_hook_is_inactive_in_evaluation_mode(backend):
    hooked = network()
    hook = EncoderFeatureHook(hooked.encoder)
    run = hooked if backend is None else torch.compile(hooked, backend=backend)
    run(image())
    hook.pop()
    hooked.eval()
    run(image())
    with pytest.raises(RuntimeError, match="empty"):
        hook.pop()
    hooked.train()
    run(image())
    assert len(hook.pop()) == 3


def test_the_hook_does_not_change_the_network():
    plain, hooked = network(), network()
    EncoderFeatureHook(hooked.encoder)
    assert list(hooked.state_dict()) == list(plain.state_dict())
    assert torch.equal(hooked(image())[0], plain(image())[0])
    plain.load_state_dict(hooked.state_dict(), strict=True)


@pytest.mark.parametrize("release", ["pop", "clear"])
def test_the_hook_releases_the_maps(release):
    hooked = network()
    hook = EncoderFeatureHook(hooked.encoder)
    hooked(image())
    alive = weakref.ref(hook._skips[0])
    assert alive() is not None
    getattr(hook, release)()
    gc.collect()
    assert alive() is None


# ---- stage, positions, head ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "strides", "positions", "stage"),
    [
        ((128, 128, 128), [1, 2, 2, 2, 2, 2], 256, 4),  # 8^3
        ((128, 128, 128), [1, 2, 2, 2, 2, 2], 64, 5),  # 4^3
        ((32, 32, 32), [1, 2, 2], 256, 2),  # 8^3
        ((40, 56, 40), [1, 2, 2, 2], 256, 2),  # 10 x 14 x 10; below it 5 x 7 x 5 = 175
        ((4, 4, 4), [1, 2], 256, 0),  # none has as many
    ],
)
def test_stage_is_the_deepest_one_with_enough_positions(patch, strides, positions, stage):
    total = cumulative_strides([[s] * 3 for s in strides])
    assert contrast_stage(patch, total, positions) == stage


def test_positions_are_sampled_inside_the_image_without_replacement():
    content = torch.zeros(3, 1, 8, 8, 8)
    content[0, :, :5] = 1  # map rows 0, 1 full, row 2 half: still content
    content[1] = 1
    content[2, :, :3, :3, :3] = 1  # row 0 full in each axis; 3 / 2 -> a quarter or less elsewhere
    for seed in range(20):
        indices, valid = sample_positions(content, (4, 4, 4), 48, torch.Generator().manual_seed(seed))
        assert indices.shape == valid.shape == (3, 48)
        assert valid.sum(1).tolist() == [48, 48, 4]
        drawn = [sorted(i[c].tolist()) for i, c in zip(indices, valid, strict=True)]
        assert all(len(set(d)) == len(d) for d in drawn)
        assert set(drawn[0]) == set(range(48))
        assert max(drawn[0]) < 48
        assert drawn[2] == [0, 1, 4, 16]  # the corner cell, and those of which exactly half is content
        assert len(set(range(64)) - set(drawn[1])) == 16


def test_positions_follow_the_generator_and_are_uniform():
    content = torch.ones(1, 1, 4, 4)
    draw = lambda seed: sample_positions(content, (4, 4), 4, torch.Generator().manual_seed(seed)).indices  # noqa: E731
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    hits = torch.zeros(16)
    runs = 2000
    for seed in range(runs):
        hits[draw(seed)[0]] += 1
    assert hits.sum() == 4 * runs
    spread = math.sqrt(runs * 0.25 * 0.75)
    assert (hits - runs / 4).abs().max() < 4.5 * spread


def test_gathered_rows_are_the_columns_of_the_map():
    maps = torch.randn(2, 5, 3, 4, 2)
    index = torch.randint(0, 24, (2, 6))
    rows = gather_positions(maps, index)
    assert rows.shape == (2, 6, 5)
    for b in range(2):
        for n in range(6):
            d, h, w = (int(i) for i in torch.unravel_index(index[b, n], (3, 4, 2)))
            assert torch.equal(rows[b, n], maps[b, :, d, h, w])


def test_head_commutes_with_gathering():
    torch.manual_seed(0)
    maps, head = torch.randn(2, 6, 4, 4), ProjectionHead(6, 10)
    index = torch.randint(0, 16, (2, 7))
    everywhere = head(maps.flatten(2).transpose(1, 2))
    expected = everywhere.gather(1, index[..., None].expand(-1, -1, 10))
    assert torch.allclose(head(gather_positions(maps, index)), expected, atol=1e-6)
