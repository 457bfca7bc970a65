"""Adaptation of kernels between one tap and several, compared with convolutions."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunet_invariance.weights.kernel_rules import adapt_kernel
from nnunet_invariance.weights.transfer import load_pretrained
from tests.helpers.small_checkpoints import FLAT, FULL, NETWORKS, architecture, build, checkpoint, with_kernels


def slow_sum(kernel: Tensor) -> Tensor:
    """(O, I, 3, 3, 3) to (O, I, 1, 3, 3), tap by tap."""
    result = torch.zeros(*kernel.shape[:2], 1, *kernel.shape[3:])
    for tap in range(kernel.shape[2]):
        result[:, :, 0] += kernel[:, :, tap]
    return result


def test_summed_taps_give_the_same_output_on_an_image_that_is_constant_along_the_axis():
    kernel = torch.randn(4, 2, 3, 3, 3)
    value, rule = adapt_kernel(kernel, (4, 2, 1, 3, 3), takes_image=False)
    assert rule == "kernel axis 0: 3 -> 1, sum over the taps"
    torch.testing.assert_close(value, slow_sum(kernel))
    image = torch.randn(1, 2, 1, 9, 9).expand(-1, -1, 7, -1, -1)
    torch.testing.assert_close(F.conv3d(image, value)[:, :, 1:-1], F.conv3d(image, kernel), rtol=1e-4, atol=1e-4)


def test_a_centred_tap_is_the_same_function_on_any_image():
    kernel = torch.randn(4, 2, 1, 3, 3)
    value, rule = adapt_kernel(kernel, (4, 2, 5, 3, 3), takes_image=False)
    assert rule == "kernel axis 0: 1 -> 5, in the centre"
    image = torch.randn(1, 2, 7, 9, 9)
    expected = F.conv3d(image, kernel, padding=(0, 1, 1))
    torch.testing.assert_close(F.conv3d(image, value, padding=(2, 1, 1)), expected, rtol=1e-5, atol=1e-5)


def test_channels_and_several_axes_are_adapted_together():
    value, rule = adapt_kernel(torch.ones(4, 2, 3, 3, 1), (4, 3, 1, 1, 3), takes_image=True)
    assert value.shape == (4, 3, 1, 1, 3)
    assert rule.startswith("input channels 2 -> 3; kernel axis 0")
    assert rule.count(";") == 3
    torch.testing.assert_close(value[..., 1], torch.full((4, 3, 1, 1), 9 * 2 / 3))
    assert not value[..., 0].any()


@pytest.mark.parametrize("wanted", [(4, 2, 5, 3, 3), (4, 2, 2, 3, 3), (5, 2, 1, 3, 3), (4, 3, 1, 3, 3), (4, 2, 3, 3)])
def test_other_shapes_are_not_adapted(wanted):
    assert adapt_kernel(torch.ones(4, 2, 3, 3, 3), wanted, takes_image=False) is None
    assert adapt_kernel(torch.ones(4), (5,), takes_image=False) is None


@pytest.mark.parametrize("network", NETWORKS)
def test_a_centred_tap_keeps_the_output_of_the_whole_encoder(tmp_path: Path, network: str) -> None:
    full = architecture(network)
    flat = with_kernels(full, [FLAT, FULL, FULL])
    file = checkpoint(tmp_path / "a.safetensors", flat)
    theirs, ours = build(flat, 2), build(full, 9)
    report = load_pretrained(ours, file)
    assert report.coverage == 1
    assert {entry.rule for entry in report.adapted} == {"kernel axis 0: 1 -> 3, in the centre"}
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        for mine, their in zip(ours.encoder(image), theirs.encoder(image), strict=True):
            torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


def test_summed_taps_fill_the_encoder_and_are_reported(tmp_path: Path) -> None:
    full = architecture()
    file = checkpoint(tmp_path / "a.safetensors", full)
    ours = build(with_kernels(full, [FLAT, FULL, FULL]), 9)
    report = load_pretrained(ours, file)
    assert report.coverage == 1
    assert [entry.name for entry in report.adapted] == ["encoder.stages.0.0.convs.0.conv.weight"]
    assert "kernel axis 0: 3 -> 1, sum over the taps" in report.to_text()
