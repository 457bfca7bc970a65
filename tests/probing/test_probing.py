"""Linear probes: exact interpolation, an optimal classifier, and a report from the command line."""

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import OptionError, ShapeError, UnsupportedConfigurationError
from nnunet_invariance.networks.hypercolumns import (
    LINEAR,
    HypercolumnMaps,
    compute_hypercolumns,
    linear_map,
    sample_hypercolumns,
)
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.probing import ProbeOptions, fit_linear_probe, probe
from nnunet_invariance.probing.protocol import ProbeResult, ProbeScores, load_probed_network, random_network
from nnunet_invariance.probing.report import summary, to_text
from nnunet_invariance.probing.run import name_files
from nnunet_invariance.probing.samples import load_patch, sample_voxels
from nnunet_invariance.weights.checkpoint import save_checkpoint
from tests.helpers.small_checkpoints import build, metadata


def pyramid(size: tuple[int, ...], channels: tuple[int, ...] = (3, 5, 7)) -> HypercolumnMaps:
    generator = torch.Generator().manual_seed(1)
    maps = []
    for stage, width in enumerate(channels):
        shape = [max(1, n // 2**stage) for n in size]
        maps.append(torch.randn(1, width, *shape, generator=generator))
    return HypercolumnMaps(tuple(f"encoder_{i}" for i in range(len(channels))), tuple(maps))


def upsampled(maps: HypercolumnMaps, size: tuple[int, ...]) -> Tensor:
    """The whole hypercolumn at every voxel, by brute force: (1, C, *size)."""
    mode = LINEAR[len(size)]
    return torch.cat([F.interpolate(m, size=size, mode=mode, align_corners=False) for m in maps.maps], 1)


@pytest.mark.parametrize("size", [(8, 12, 16), (8, 20)])
def test_sampled_hypercolumns_equal_upsampled_maps(size):
    maps = pyramid(size)
    voxels = torch.stack([torch.arange(n).repeat(3)[: min(size)] % n for n in size], 1)
    expected = upsampled(maps, size)[0][(slice(None), *voxels.T)].T
    torch.testing.assert_close(sample_hypercolumns(maps, size, voxels[None])[0], expected)


@pytest.mark.parametrize("size", [(8, 12, 16), (8, 20)])
def test_a_linear_map_of_each_stage_equals_that_of_the_whole_hypercolumn(size):
    maps = pyramid(size)
    weight, bias = torch.randn(4, 15), torch.randn(4)
    whole = torch.einsum("kc,bc...->bk...", weight, upsampled(maps, size)) + bias.reshape(1, 4, *[1] * len(size))
    torch.testing.assert_close(linear_map(maps, weight, bias, size), whole, rtol=1e-4, atol=1e-4)


def test_the_classifier_is_the_optimum_that_scikit_learn_finds():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    features = rng.normal(size=(300, 6)) * [1, 10, 0.1, 1, 1, 1] + labels[:, None] * [1, 5, 0.05, 0, 0, 1] + 4
    l2 = 1e-2
    standardised = (features - features.mean(0)) / features.std(0)
    # scikit-learn minimises C sum_i CE_i + |W|^2 / 2
    theirs = linear_model.LogisticRegression(C=1 / (300 * l2), tol=1e-8, max_iter=5000).fit(standardised, labels)
    as_tensors = (torch.from_numpy(features).float(), torch.from_numpy(labels))
    ours = fit_linear_probe(*as_tensors, 3, l2, max_iterations=1000)
    probabilities = ours(as_tensors[0]).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(standardised), atol=2e-3)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.ones(3, 2), torch.tensor([0, 1])),
        (torch.ones(2, 2), torch.tensor([0, 5])),
        (torch.ones(0, 2), torch.tensor([])),
    ],
    ids=["length", "class", "empty"],
)
def test_shapes_and_classes_are_checked(features, labels):
    with pytest.raises(ShapeError, match=r"expected|must be"):
        fit_linear_probe(features, labels.long(), 2)


def test_voxels_are_sampled_per_class():
    labels = torch.zeros(10, 10, 10, dtype=torch.long)
    labels[:2], labels[5, 5, :3], labels[9] = 1, 2, -1
    voxels, found = sample_voxels(labels, 3, 20, torch.Generator().manual_seed(0))
    assert torch.equal(labels[tuple(voxels.T)], found)
    assert found.bincount().tolist() == [80, 20, 3]
    assert len(voxels.unique(dim=0)) == len(voxels)


def test_a_network_without_stages_is_refused():
    with pytest.raises(UnsupportedConfigurationError, match="Linear has no encoder and decoder"):
        compute_hypercolumns(nn.Linear(1, 1), torch.ones(1, 1))


class Oracle(nn.Module):
    """A network whose first map contains the labels of the patch, looked up by the image."""

    def __init__(self, network: nn.Module, patches: list) -> None:
        super().__init__()
        self.decoder, self.patches, self.real = network.decoder, patches, network.encoder

    def encoder(self, image: Tensor) -> list[Tensor]:
        skips = self.real(image)
        patch = next(p for p in self.patches if torch.equal(p.image, image))
        hot = F.one_hot(patch.labels.clamp(min=0), skips[0].shape[1]).movedim(-1, 0)[None].float()
        return [hot * 10, *skips[1:]]


def test_features_that_hold_the_labels_score_one_and_random_ones_do_not(tiny):
    planned = open_planned_dataset(tiny.name, "3d_fullres")
    labelled = sorted(path.stem for path in planned.folder.glob("*.pkl"))
    patches = [load_patch(str(planned.folder), name, planned.patch_size) for name in labelled]
    options = ProbeOptions(shots=(1, 2), draws=2, test_cases=2, random_networks=1, voxels_per_class=100)
    result = probe(planned, {"oracle": Oracle(random_network(planned, 0), patches)}, labelled, options)
    oracle, random = result.scores
    assert oracle.mean(1, "encoder_0") > 0.99
    assert random.random
    assert random.mean(1, "encoder_0") < 0.9
    assert oracle.dice[2, "all"].shape == (2, 2, len(result.classes))
    assert set(result.test).isdisjoint(result.train)


def test_random_networks_depend_on_their_seed_alone(tiny):
    planned = open_planned_dataset(tiny.name, "3d_fullres")
    first, other, again = (random_network(planned, seed).state_dict() for seed in (1, 2, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_file_with_fewer_stages_fills_the_finest_stages_of_the_plans(tiny, tmp_path):
    planned = open_planned_dataset(tiny.name, "3d_fullres")
    whole = Architecture.from_plans(planned.configuration.configuration["architecture"], 1, 1)
    stages = whole.arch_kwargs["n_stages"] - 1
    shallow = replace(whole, arch_kwargs=copy.deepcopy(whole.arch_kwargs))
    arguments = shallow.arch_kwargs
    for key in ("features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage"):
        arguments[key] = arguments[key][:stages]
    arguments |= {"n_stages": stages, "n_conv_per_stage_decoder": arguments["n_conv_per_stage_decoder"][: stages - 1]}
    tensors = {f"network.{n}": t.detach() for n, t in unique_tensors(build(shallow, 3)).items()}
    save_checkpoint(tmp_path / "a.safetensors", tensors, metadata(shallow, method="anatomix"))
    found = load_probed_network(planned, tmp_path / "a.safetensors").state_dict()
    random = random_network(planned, 0).state_dict()
    for name in (f"encoder.stages.{stage}.0.convs.0.conv.weight" for stage in range(stages)):
        assert torch.equal(found[name], tensors[f"network.{name}"])
    deepest = f"encoder.stages.{stages}.0.convs.0.conv.weight"
    assert torch.equal(found[deepest], random[deepest])


def test_the_command_writes_a_table_a_picture_and_scores(tiny, results, tmp_path, capsys):
    where = [tiny.name, "3d_fullres", "-device", "cpu"]
    few = ["--shots", "1", "--draws", "1", "--test-cases", "2", "--random", "1", "--out", str(tmp_path / "probe")]
    assert main(["probe", *where, *few]) == 0
    printed = capsys.readouterr().out
    assert "Dice of the linear probe, 1 labelled case" in printed
    assert f"finished: {tmp_path / 'probe' / 'probe.html'}" in printed
    assert "No checkpoint was probed; 1 random network can be compared." in (tmp_path / "probe/probe.html").read_text()
    data = json.loads((tmp_path / "probe/probe.json").read_text())
    assert set(data["networks"]) == {"random"}
    assert data["command"].startswith(f"nnunet-invariance probe {tiny.name} 3d_fullres -device cpu --shots 1")
    with open(tmp_path / "probe/scores.csv", newline="") as file:
        assert {row["map"] for row in csv.DictReader(file)} > {"all", "encoder_0"}
    for picture in ("probe.png", "features.png"):
        assert (tmp_path / "probe" / picture).read_bytes().startswith(b"\x89PNG")


def test_a_missing_pretraining_and_wrong_options_are_named(tiny, results, capsys):
    assert main(["probe", tiny.name, "3d_fullres", "-device", "cpu", "--methods", "mae"]) == 2
    assert f"nnunet-invariance pretrain mae {tiny.name} 3d_fullres" in capsys.readouterr().err
    with pytest.raises(OptionError, match="'shots' is \\(0,\\)"):
        ProbeOptions(shots=(0,))


def test_a_class_that_no_test_case_shows_is_left_out_of_the_report():
    dice = np.array([[[0.5, np.nan], [0.7, np.nan]]])
    scores = ProbeScores("a", False, {(1, "all"): dice, (1, "encoder_0"): dice}, [0.5])
    options = ProbeOptions(shots=(1,), draws=1, random_networks=0)
    result = ProbeResult((scores,), ("seen", "unseen"), ("encoder_0",), ("c1", "c2"), ("c3",), (), options)
    assert list(summary(result)["networks"]["a"]["1 shots"]["classes"]) == ["seen"]
    assert "unseen" not in to_text(result)


def test_checkpoints_of_one_name_are_told_apart():
    paths = [Path(f"{run}/mae/checkpoint_final.safetensors") for run in ("a", "b")]
    assert list(name_files([*paths, paths[0]])) == ["a/mae", "b/mae"]
    assert list(name_files([Path("x/one.safetensors"), Path("x/two.pth")])) == ["one", "two"]
    assert list(name_files([Path("x/one.safetensors"), Path("x/one.pth")])) == ["x/one.safetensors", "x/one.pth"]
    assert name_files([]) == {}


def test_the_mean_of_a_network_is_the_mean_over_cases_of_the_classes_that_a_case_has():
    dice = np.array([[[0.2, 0.4], [0.9, np.nan]]])
    assert ProbeScores("a", False, {(1, "all"): dice}).mean(1) == pytest.approx((0.3 + 0.9) / 2)
