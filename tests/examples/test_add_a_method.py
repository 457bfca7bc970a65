"""The example of a method outside of the package: its loss, and the way from its installation to a segmentation."""

import importlib
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_invariance import registry
from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.cli.main import main
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.locate import FINAL
from tests.helpers.commands import run_here
from tests.helpers.methods import setup
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import make_trainer

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_a_method"
PLANS = "VoCoExamplePlans"

pytestmark = pytest.mark.integration  # pip installs the example


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder in which the example is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")  # the build writes into the source folder
    words = ("install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", "site", "./source")
    subprocess.run([sys.executable, "-m", "pip", *words], cwd=folder, check=True)
    return folder / "site"


@pytest.fixture
def voco(installed, monkeypatch):
    """The module of the losses; the example is an installed package during the test, so its entry point is found."""
    monkeypatch.setattr(registry, "_methods", registry.methods())
    monkeypatch.syspath_prepend(installed)
    for cached in (registry._load_entry_points, find_trainer):
        cached.cache_clear()
    yield importlib.import_module("voco_loss")
    for cached in (registry._load_entry_points, find_trainer):
        cached.cache_clear()
    for path in EXAMPLE.glob("voco_*.py"):
        sys.modules.pop(path.stem, None)


def slow_overlaps(origin, size, grid):
    """The share of a crop's voxels in each base crop, counted voxel by voxel."""
    counts = dict.fromkeys(itertools.product(range(grid), repeat=3), 0)
    for voxel in itertools.product(*(range(low, low + s) for low, s in zip(origin, size, strict=True))):
        counts[tuple(v // s for v, s in zip(voxel, size, strict=True))] += 1
    return [number / math.prod(size) for number in counts.values()]


def slow_cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("grid", [2, 3])
def test_overlap_targets_equal_counted_voxels(voco, grid):
    size = (2, 3, 4)
    last = [(grid - 1) * s for s in size]
    origins = [[list(o) for o in itertools.islice(itertools.product(*(range(n + 1) for n in last)), 0, None, 5)]]
    targets = voco.overlap_targets(torch.tensor(origins, dtype=torch.float64), size, grid)
    expected = [[slow_overlaps(origin, size, grid) for origin in origins[0]]]
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64))


def test_the_losses_equal_slow_loops(voco):
    bases, crops = torch.randn(2, 8, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    target = torch.rand(2, 3, 8, dtype=torch.float64)
    position, separation = [], []
    for b in range(2):
        for k, n in itertools.product(range(3), range(8)):
            prediction = max(0.0, slow_cosine(crops[b, k].tolist(), bases[b, n].tolist()))
            position.append(-math.log(1 - abs(target[b, k, n].item() - prediction)))
        for n, m in itertools.permutations(range(8), 2):
            separation.append(max(0.0, slow_cosine(bases[b, n].tolist(), bases[b, m].tolist())))
    loss = voco.position_loss(voco.similarity(crops, bases), target)
    assert loss.item() == pytest.approx(sum(position) / len(position))
    assert voco.separation_loss(bases).item() == pytest.approx(sum(separation) / len(separation))


def test_the_position_loss_is_finite_at_the_largest_distance(voco):
    prediction = torch.ones(1, 1, 8, requires_grad=True)
    loss = voco.position_loss(prediction, torch.zeros(1, 1, 8))
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad.isfinite().all()


def test_base_crops_and_random_crops_show_the_voxels_of_their_overlaps(voco):
    """A crop that equals a base crop has overlap 1 with this one, so tiles, cuts and targets have the same order."""
    method = importlib.import_module("voco_method")
    size, grid = (2, 3, 4), 2
    regions = torch.arange(2 * 4 * 6 * 8.0).reshape(2, 1, 4, 6, 8)
    corners = torch.tensor(list(itertools.product((0, 2), (0, 3), (0, 4)))).expand(2, 8, 3)
    assert torch.equal(method.tile(regions, size), method.cut(regions, corners, size))
    assert torch.equal(voco.overlap_targets(corners.float(), size, grid), torch.eye(8).expand(2, 8, 8))


def test_the_overlaps_of_new_crops_are_learned(voco):
    example = importlib.import_module("voco_method")
    method = example.VoCo(setup(), example.VoCoOptions(num_crops=8)).train()
    coarse = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = {"image": torch.nn.functional.interpolate(coarse, size=method.region_size, mode="trilinear")}

    def output(seed):
        return method(method.make_views(batch, torch.Generator().manual_seed(seed)), 0.5)

    def correlation():
        return sum(output(1000 + seed).diagnostics["correlation"].item() for seed in range(5)) / 5

    before = correlation()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 5e-3)
    for step in range(100):
        optimizer.zero_grad()
        sum(output(step).losses.values()).backward()
        optimizer.step()
    assert before < 0.2
    assert correlation() > 0.25, before


def test_from_the_entry_point_to_the_stock_training(voco, tiny, results):
    plans = cut_down(tiny.plans, PLANS, iterations_per_epoch=2, val_iterations_per_epoch=1, mirroring=[])
    (tiny.preprocessed / tiny.name / f"{PLANS}.json").write_text(json.dumps(plans))
    words = ["--epochs", "1", "--iterations", "2", "-device", "cpu", "--set", "workers=0", "num_crops=2"]
    assert main(["pretrain", "voco", tiny.name, "3d_fullres", "-p", PLANS, *words]) == 0

    command = ("nnUNetv2_train", "777", "3d_fullres", "0", "-tr", "VoCoTrainer_1epoch", "-device", "cpu", "-p", PLANS)
    assert run_here(*command) == 0
    assert (results / f"VoCoTrainer_1epoch__{PLANS}__3d_fullres" / "fold_0" / "checkpoint_final.pth").is_file()

    weights = load_checkpoint(results / "pretraining" / f"voco__{PLANS}__3d_fullres" / FINAL).tensors
    encoder = {name.removeprefix("network."): t for name, t in weights.items() if name.startswith("network.encoder.")}
    for name, loads in (("VoCoTrainer_1epoch", True), ("VoCoTrainer_scratch_1epoch", False)):
        trainer = make_trainer(tiny, name, plans)
        trainer.on_train_start()
        network = trainer.network.state_dict()
        assert all(torch.equal(network[key], value) for key, value in encoder.items()) == loads
    assert encoder
