"""Stages count from the finest: files fill networks of another depth in encoder and decoder."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.transfer import can_load, load_pretrained
from tests.helpers.small_checkpoints import NETWORKS, architecture, build, checkpoint

FOUR, SIX = (4, 8, 16, 16), (4, 8, 16, 16, 20, 20)
ALL = {"transfer": "encoder+decoder", "branch": "teacher"}


def planned(features: tuple[int, ...], network: str = "PlainConvUNet", **changes: object) -> Architecture:
    """An architecture of any depth; two convolutions or blocks per stage."""
    result = architecture(network, features=features)
    result.arch_kwargs[NETWORKS[network]] = [2] * len(features)
    result.arch_kwargs.update(changes)
    return result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint_final.safetensors"


@pytest.fixture
def image() -> Tensor:
    return torch.randn(1, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))


def decoder_step(decoder: nn.Module, level: int, coarse: Tensor, skip: Tensor) -> Tensor:
    """Output at ``level`` (0 is the finest) of one decoder stage, computed with nnU-Net's own modules."""
    number = len(decoder.stages) - 1 - level
    return decoder.stages[number](torch.cat((decoder.transpconvs[number](coarse), skip), 1))


@pytest.mark.integration
@pytest.mark.parametrize("network_class", NETWORKS)
def test_four_stages_fill_the_finest_of_six_and_compute_the_same(path: Path, image: Tensor, network_class: str) -> None:
    source = build(planned(FOUR, network_class), seed=2).eval()  # the teacher of the file
    file = checkpoint(path, planned(FOUR, network_class))
    network = build(planned(SIX, network_class), seed=9).eval()
    before = {name: tensor.detach().clone() for name, tensor in unique_tensors(network).items()}
    report = load_pretrained(network, file, min_coverage=0.6, **ALL)

    with torch.no_grad():
        theirs, ours = source.encoder(image), network.encoder(image)
        for level in range(4):
            assert torch.equal(ours[level], theirs[level])
        for level in range(3):
            coarse = torch.randn(1, FOUR[level + 1], *ours[level + 1].shape[2:])
            expected = decoder_step(source.decoder, level, coarse, theirs[level])
            assert torch.equal(decoder_step(network.decoder, level, coarse, ours[level]), expected)

    random = [name for name in before if name.startswith(("encoder.stages.4.", "encoder.stages.5."))]
    random += [name for name in before if name.startswith(("decoder.stages.0.", "decoder.transpconvs.1."))]
    assert random
    assert all(torch.equal(unique_tensors(network)[name], before[name]) for name in random)
    assert [stage.is_complete for stage in report.encoder_stages] == [True] * 4 + [False] * 2
    assert [stage.is_complete for stage in report.decoder_stages] == [True] * 3 + [False] * 2
    assert report.coverage == pytest.approx(4 / 6)
    assert report.decoder == "partly random"
    assert "random stages: 4, 5; 0 is the finest" in report.to_text()
    assert "decoder: partly random (random stages: 3, 4; 0 is the finest)" in report.to_text()
    assert json.loads(json.dumps(report.to_dict()))["encoder_stages"][5]["from_file"] == 0


def test_six_stages_fill_all_of_four(path: Path, image: Tensor) -> None:
    source = build(planned(SIX), seed=2).eval()
    file = checkpoint(path, planned(SIX))
    network = build(planned(FOUR), seed=9).eval()
    report = load_pretrained(network, file, **ALL)
    assert (report.coverage, report.decoder) == (1, "from the file")
    with torch.no_grad():
        theirs, ours = source.encoder(image), network.encoder(image)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs[:4], strict=True))
        coarse = torch.randn(1, 16, *theirs[3].shape[2:])
        expected = decoder_step(source.decoder, 2, coarse, theirs[2])
        assert torch.equal(decoder_step(network.decoder, 2, coarse, ours[2]), expected)
    coarser = [entry for entry in report.skipped if "coarser than the decoder" in entry.rule]
    assert {entry.name.split(".")[2] for entry in coarser} == {"0", "1"}


def test_a_deeper_network_needs_permission(path: Path) -> None:
    file = checkpoint(path, planned(FOUR))
    network = build(planned(SIX), seed=9)
    with pytest.raises(WeightsIncompatibleError, match=r"(?s)fills 4 of 6 encoder stages.*stage 4: random"):
        load_pretrained(network, file)
    assert not can_load(network, file)
    assert can_load(network, file, allow_deeper_network=True)
    assert load_pretrained(network, file, allow_deeper_network=True).coverage == pytest.approx(4 / 6)


@pytest.mark.parametrize("features", [(4, 8, 24, 16, 20, 20), (6, 8, 16, 16, 20, 20)])
def test_permission_for_depth_is_no_permission_for_gaps(path: Path, features: tuple[int, ...]) -> None:
    file = checkpoint(path, planned(FOUR))
    assert not can_load(build(planned(features), seed=9), file, allow_deeper_network=True)


def test_a_file_that_lost_a_whole_stage_is_no_shallower_file(path: Path) -> None:
    """The stages up to the deepest one of the file count, a gap among them too."""
    whole = checkpoint(path, planned(FOUR))
    kept = {name: t for name, t in whole.tensors.items() if not name.startswith("teacher.encoder.stages.2.")}
    assert not can_load(
        build(planned(SIX), seed=9),
        dataclasses.replace(whole, tensors=kept),
        allow_deeper_network=True,
        branch="teacher",
    )


def test_nothing_of_the_encoder_in_the_file_is_refused(path: Path) -> None:
    whole = checkpoint(path, planned(FOUR))
    kept = {name: t for name, t in whole.tensors.items() if name.startswith("teacher.decoder.")}
    nothing = dataclasses.replace(whole, tensors=kept)
    with pytest.raises(WeightsIncompatibleError):
        load_pretrained(build(planned(FOUR), seed=9), nothing, allow_deeper_network=True)


FLAT_FIRST = {
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
}


def test_anisotropic_plans_give_the_same_output_where_the_input_is_constant_along_the_axis(path: Path) -> None:
    """Upsampling with two taps becomes upsampling with one, whose output is the mean over the taps."""
    source = build(planned(FOUR), seed=2).eval()
    network = build(planned(SIX, **FLAT_FIRST), seed=9).eval()
    report = load_pretrained(network, checkpoint(path, planned(FOUR)), allow_deeper_network=True, **ALL)
    rules = {entry.name: entry.rule for entry in report.adapted}
    assert rules["decoder.transpconvs.4.weight"].startswith("kernel axis 0: 2 -> 1, mean over the taps")
    assert rules["encoder.stages.0.0.convs.0.conv.weight"] == "kernel axis 0: 3 -> 1, sum over the taps"
    assert [stage.is_complete for stage in report.decoder_stages] == [True] * 3 + [False] * 2

    plane = torch.randn(1, 8, 1, 16, 16).expand(-1, -1, 8, -1, -1)
    with torch.no_grad():
        ours = network.decoder.transpconvs[4](plane)  # (1, 4, 8, 32, 32)
        theirs = source.decoder.transpconvs[2](plane).unflatten(2, (8, 2)).mean(3)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        image = torch.randn(1, 1, 1, 32, 32).expand(-1, -1, 32, -1, -1)
        inside = (..., slice(4, -4), slice(None), slice(None))  # the source pads the axis with zeros
        first = [n.encoder.stages[0][0].convs[0].conv(image)[inside] for n in (network, source)]
        torch.testing.assert_close(first[0], first[1], rtol=1e-4, atol=1e-5)


def test_the_shipped_file_fills_the_finest_stages_of_stock_plans() -> None:
    """Stock six-stage plans of nnU-Net have 32 to 320 features."""
    from nnunet_invariance.weights import locate

    file = load_checkpoint(locate.SHIPPED / "anatomix_plain4.safetensors")
    network = planned((32, 64, 128, 256, 320, 320)).build()
    report = load_pretrained(network, file, transfer="encoder+decoder", allow_deeper_network=True)
    assert report.coverage == pytest.approx(4 / 6)
    assert [stage.is_complete for stage in report.decoder_stages] == [True] * 3 + [False] * 2
