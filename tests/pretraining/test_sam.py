"""The anatomical embedding: its loss against a slow loop, its geometry, its networks, matching, and its runs."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from nnunet_invariance.augmentation.device_views import apply_affine, input_positions, sample_affine
from nnunet_invariance.errors import (
    NonFiniteEmbeddingError,
    OptionError,
    TooFewVolumesError,
    UnsupportedConfigurationError,
    WeightsIncompatibleError,
)
from nnunet_invariance.losses.hard_negative_info_nce import HardNegativeInfoNCE
from nnunet_invariance.networks.architectures.resnet3d import ResNet3d
from nnunet_invariance.networks.heads.anatomical_embedding import EmbeddingHead, upsample_unit
from nnunet_invariance.networks.matching import describe, locate, make_embedding, match_points
from nnunet_invariance.nnunet.cases import make_manifest, scan_cases
from nnunet_invariance.pretraining.data.crops import OverlappingCrops
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods.sam import SAM, SAMOptions
from nnunet_invariance.weights.checkpoint import load_checkpoint
from tests.helpers.planned_networks import architecture
from tests.helpers.pretraining_runs import run_pretraining
from tests.helpers.tiny_pretraining import copy_cases

SHORT = ["epochs=1", "iterations=2", "lr=1e-3", "workers=0", "batch_size=2", "features=8"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- loss ------------------------------------------------------------------------------------------------------------


def loss_inputs(dtype=torch.float32, samples=3, side=3, features=4, seed=0):
    """Two views of ``side`` ^ 3 cells; those of sample 1 show different positions; some cells are padding."""
    g = generator(seed)
    grid = torch.tensor(list(itertools.product(range(side), repeat=3)), dtype=dtype)
    views = [grid + 0.4 * torch.rand(samples, 1, 3, generator=g, dtype=dtype) for _ in range(2)]
    views[1][1:2] += 100
    position = torch.cat(views, 1)
    keys = torch.nn.functional.normalize(torch.randn(*position.shape[:2], features, generator=g, dtype=dtype), dim=-1)
    guide = torch.nn.functional.normalize(torch.randn(keys.shape, generator=g, dtype=dtype), dim=-1)
    valid = torch.rand(position.shape[:2], generator=g) > 0.2
    return keys, position, valid, guide


def slow_loss(loss, keys, position, valid, indices, guide=None):
    """The equation, query by query, in Python numbers."""
    samples = []
    flat = [(b, m) for b in range(len(keys)) for m in range(keys.shape[1])]

    def cosine(rows, a, b):
        return sum(x * y for x, y in zip(rows[a].tolist(), rows[b].tolist(), strict=True))

    for b in range(len(keys)):
        terms = []
        for n in range(indices.query.shape[1]):
            if not indices.valid_mask[b, n]:
                continue
            q, p = indices.query[b, n].item(), indices.positive[b, n].item()
            hardness = []
            for m in indices.candidates[b].tolist():
                far = math.dist(position[b, q].tolist(), position[b, m].tolist()) >= loss.min_negative_distance
                if far and m != p and valid[b, m]:
                    score = cosine(keys[b], q, m) + (0 if guide is None else cosine(guide[b], q, m))
                    hardness.append((score, cosine(keys[b], q, m)))
            hardness.sort(reverse=True)
            chosen = [hardness[r][1] for r in indices.ranks[b, n].tolist() if r < len(hardness)]
            for index in indices.cross_sample[b].tolist():
                other, m = flat[index]
                if valid[other, m]:
                    chosen.append(sum(x * y for x, y in zip(keys[b, q].tolist(), keys[other, m].tolist(), strict=True)))
            top = cosine(keys[b], q, p) / loss.temperature
            total = math.exp(top) + sum(math.exp(s / loss.temperature) for s in chosen)
            terms.append(math.log(total) - top)
        samples.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(samples) / len(samples)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("queries", [0, 5])
def test_the_loss_equals_the_slow_loop(dtype, tolerance, queries):
    keys, position, valid, guide = loss_inputs(dtype)
    loss = HardNegativeInfoNCE(
        0.7, 1.2, queries, num_hardest=12, num_negatives=7, num_cross_sample=6, max_candidates=40
    )
    indices = loss.sample_indices(position, valid, generator(1))
    assert indices.valid_mask.any(1).all()
    for hint in (None, guide):
        expected = slow_loss(loss, keys, position, valid, indices, hint)
        assert loss(keys, position, valid, indices, hint).item() == pytest.approx(expected, rel=tolerance)


def test_the_gradient_of_the_loss_is_right_and_the_guide_gets_none():
    keys, position, valid, guide = loss_inputs(torch.float64, samples=2, side=2, features=2)
    loss = HardNegativeInfoNCE(0.9, 0.8, 3, num_hardest=6, num_negatives=4, num_cross_sample=3)
    indices = loss.sample_indices(position, valid, generator(2))
    keys.requires_grad_()
    guide.requires_grad_()
    assert torch.autograd.gradcheck(lambda k: loss(k, position, valid, indices, guide.detach()), keys)
    loss(keys, position, valid, indices, guide).backward()
    assert guide.grad is None


def test_sampled_indices_meet_the_conditions_of_the_loss():
    _, position, valid, _ = loss_inputs(side=4)
    loss = HardNegativeInfoNCE(0.7, 1.2, 6, num_hardest=20, num_negatives=9, num_cross_sample=50, max_candidates=60)
    indices = loss.sample_indices(position, valid, generator(3))
    half = position.shape[1] // 2
    for b in range(len(position)):
        assert len(set(indices.candidates[b].tolist())) == 60
        assert (indices.cross_sample[b] // position.shape[1] != b).all()
        for n in torch.nonzero(indices.valid_mask[b]).flatten().tolist():
            q, p = indices.query[b, n].item(), indices.positive[b, n].item()
            assert valid[b, q]
            if b == 1:  # its views show different positions
                assert p == q
                continue
            assert (q < half) != (p < half)
            other = range(half, 2 * half) if q < half else range(half)
            distance = {m: math.dist(position[b, q].tolist(), position[b, m].tolist()) for m in other if valid[b, m]}
            assert distance[p] == pytest.approx(min(distance.values()))
            assert distance[p] < 0.7
        assert all(len(set(ranks)) == 9 and max(ranks) < 20 for ranks in indices.ranks[b].tolist())
    again = loss.sample_indices(position, valid, generator(3))
    assert all(torch.equal(getattr(indices, name), getattr(again, name)) for name in vars(indices))


def test_one_volume_alone_and_padding_alone_give_finite_losses():
    keys, position, valid, _ = loss_inputs(samples=1)
    loss = HardNegativeInfoNCE(0.7, 1.2, 5, num_hardest=12, num_negatives=7, num_cross_sample=6)
    indices = loss.sample_indices(position, valid, generator())
    assert indices.cross_sample.shape == (1, 0)
    assert loss(keys, position, valid, indices).isfinite()
    nothing = torch.zeros_like(valid)
    assert loss(keys, position, nothing, loss.sample_indices(position, nothing, generator())) == 0


# ---- geometry --------------------------------------------------------------------------------------------------------


def test_cells_have_the_right_positions_in_the_volume():
    """In a view of an image of its own coordinates, the value of each cell is the position of that cell."""
    size, spacing, cell = (16, 20, 24), (2.0, 1.0, 1.5), (2, 2, 2)
    axes = [(torch.arange(n) + 0.5 - n / 2) * s for n, s in zip(size, spacing, strict=True)]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None].expand(2, -1, -1, -1, -1)
    matrix = sample_affine(2, spacing, generator(4), scale=(0.8, 0.95))
    values = apply_affine(coordinates, matrix, spacing)
    values = torch.nn.functional.avg_pool3d(values, cell).flatten(2).mT
    positions = input_positions(matrix, size, cell, spacing)
    middle = (positions.abs() < torch.tensor([n * s / 2 - 3 for n, s in zip(size, spacing, strict=True)])).all(-1)
    assert middle.float().mean() > 0.3
    assert torch.allclose(values[middle], positions[middle], atol=1e-3)


def make_cases(tiny):
    configuration = tiny.plans["configurations"]["3d_fullres"]
    return scan_cases(tiny.preprocessed / tiny.name / configuration["data_identifier"], 1, (4, 4, 4))[0]


def test_two_crops_of_a_volume_agree_with_their_origins(tiny):
    cases = make_cases(tiny)
    source = OverlappingCrops(cases, (24, 24, 24), 4, seed=0, steps=20)
    batch = source[3]
    assert torch.equal(batch["image"], source[3]["image"])
    assert batch["keys"][:4] == batch["keys"][4:]
    assert len(set(batch["keys"][:4])) == 4
    common = 0
    for first in range(4):
        a, b = first, first + 4
        shift = (batch["origin"][a] - batch["origin"][b]).int().tolist()
        for index in torch.nonzero(batch["valid"][a, 0])[::97].tolist():
            other = [i + s for i, s in zip(index, shift, strict=True)]
            if all(0 <= o < 24 for o in other) and batch["valid"][b, 0][tuple(other)]:
                assert batch["image"][a, 0][tuple(index)] == batch["image"][b, 0][tuple(other)]
                common += 1
    assert common > 20
    assert (batch["image"][~batch["valid"].expand_as(batch["image"])] == 0).all()


# ---- networks --------------------------------------------------------------------------------------------------------


def test_the_network_of_the_paper_has_its_size_and_shapes():
    with torch.device("meta"):
        encoder, head = ResNet3d(1), EmbeddingHead(ResNet3d.output_channels, ResNet3d.strides)
        fine, coarse = head(encoder(torch.empty(1, 1, 32, 96, 96)))
    assert sum(p.numel() for module in (encoder, head) for p in module.parameters()) == 32_832_960
    assert fine.shape == (1, 128, 16, 48, 48)
    assert coarse.shape == (1, 128, 8, 6, 6)
    assert head.fine_cell == (2, 2, 2)
    assert head.coarse_cell == (4, 16, 16)


@pytest.mark.parametrize(
    ("strides", "fine", "coarse"),
    [
        (((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)), (2, 2, 2), (16, 16, 16)),
        (((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)), (1, 2, 2), (4, 8, 8)),
        (((1, 1, 1), (2, 2, 2)), (2, 2, 2), (2, 2, 2)),
    ],
)
@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_every_stage_of_a_planned_encoder_is_trained(kind, strides, fine, coarse):
    torch.manual_seed(0)
    size = tuple((2 if axis == 0 else 1) * max(8, math.prod(s[axis] for s in strides)) for axis in range(3))
    setup = Setup(architecture(kind, strides, 2), size, (1.0, 1.0, 1.0), 2, False, ())
    sam = SAM(setup, SAMOptions(features=8)).train()
    assert (sam.heads.fine_cell, sam.heads.coarse_cell) == (fine, coarse)
    batch = {
        "image": torch.rand(4, 2, *size),
        "valid": torch.ones(4, 1, *size, dtype=torch.bool),
        "origin": torch.zeros(4, 3),
    }
    output = sam(sam.make_views(batch, generator()), 0.0)
    sum(output.losses.values()).backward()
    assert all(value.isfinite() for value in output.losses.values())
    assert [n for n, p in sam.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for n, p in sam.network.named_parameters() if n.startswith("decoder."))
    assert any(p.grad.abs().sum() > 0 for p in sam.network.encoder.stages[-1].parameters())


# ---- matching --------------------------------------------------------------------------------------------------------


def random_embedding(seed, coarse_grid=(2, 3, 2), shape=(14, 23, 16), fine_cell=(2, 2, 2), coarse_cell=(8, 8, 8)):
    g = generator(seed)
    grid = tuple(n * c // f for n, c, f in zip(coarse_grid, coarse_cell, fine_cell, strict=True))
    fine, coarse = (torch.nn.functional.normalize(torch.randn(6, *s, generator=g), dim=0) for s in (grid, coarse_grid))
    return make_embedding(fine, coarse, fine_cell, coarse_cell, shape, (1.0, 2.0, 1.0)), fine, coarse


def test_matching_equals_the_slow_search(monkeypatch):
    monkeypatch.setattr("nnunet_invariance.networks.matching.VALUES", 1000)  # more than one chunk
    (a, fine_a, coarse_a), (b, fine_b, coarse_b) = random_embedding(0), random_embedding(1)
    up_a, up_b = (upsample_unit(c[None], fine_a.shape[1:])[0] for c in (coarse_a, coarse_b))
    points = torch.rand(9, 3, generator=generator(2)) * torch.tensor(a.shape)
    found = match_points(a, b, points)

    def best(p, fine, up, fine_t, up_t):
        i, j, k = torch.minimum(p // 2, torch.tensor([6.0, 10.0, 7.0])).int().tolist()  # the last cells inside
        winner = (-2.0, None)
        for place in itertools.product(*(range(math.ceil(n / 2 - 0.5)) for n in a.shape)):
            at = (slice(None), *place)
            score = (fine[:, i, j, k] @ fine_t[at] + up[:, i, j, k] @ up_t[at]).item() / 2
            winner = max(winner, (score, place), key=lambda pair: pair[0])
        return winner[0], torch.tensor(winner[1]) * 2.0 + 1

    for p, match, similarity, cycle in zip(points, *found, strict=True):
        score, place = best(p, fine_a, up_a, fine_b, up_b)
        assert similarity.item() == pytest.approx(score, rel=1e-5)
        assert torch.equal(match, place)
        back = best(place, fine_b, up_b, fine_a, up_a)[1]
        assert cycle.item() == pytest.approx(math.dist((back * torch.tensor([1, 2, 1])).tolist(),
                                                       (p * torch.tensor([1, 2, 1])).tolist()), rel=1e-5)  # fmt: skip


def test_a_volume_matches_itself():
    embedding, _, _ = random_embedding(3)
    points = torch.rand(20, 3, generator=generator(4)) * (torch.tensor(embedding.shape) - 1)
    found = match_points(embedding, embedding, points)
    assert torch.allclose(found.similarity, torch.ones(20), atol=1e-5)
    assert ((found.points - points).abs() <= 1 + 1e-6).all()
    assert locate(describe(embedding, points), embedding)[0].shape == (20, 3)


def test_windows_are_joined_to_one_embedding(tiny):
    torch.manual_seed(0)
    sam = SAM(Setup(architecture(), (8, 8, 8), (1.0,) * 3, 2, False, ()), SAMOptions(features=8))
    embed = Embedder(sam.network.encoder, sam.heads, sam.size, (1.0,) * 3, "cpu")
    for shape in ((8, 8, 8), (5, 19, 12), (20, 9, 8)):
        made = embed(torch.randn(1, *shape))
        assert made.fine.shape[1:] == tuple(math.ceil(n / 2 - 0.5) for n in shape)
        assert torch.allclose(made.fine.norm(dim=0), torch.ones(made.fine.shape[1:]), atol=1e-5)
    image = torch.randn(1, 8, 8, 8)
    one, _ = sam.heads(sam.network.encoder(image[None]))
    assert torch.allclose(embed(image).fine, one[0], atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_is_refused(value):
    sam = SAM(Setup(architecture(), (8, 8, 8), (1.0,) * 3, 2, False, ()), SAMOptions(features=8))
    embed = Embedder(sam.network.encoder, sam.heads, sam.size, (1.0,) * 3, "cpu")
    image = torch.zeros(1, 8, 8, 8)
    image[0, 1, 2, 3] = value
    with pytest.raises(
        NonFiniteEmbeddingError, match=r"volume of shape \(1, 8, 8, 8\) has 1 of 512 values.*Preprocess"
    ):
        embed(image)
    with torch.no_grad():
        next(sam.heads.coarse.parameters()).fill_(value)
    with pytest.raises(
        NonFiniteEmbeddingError, match=r"(fine|coarse) embedding.*repeat `nnunet-invariance pretrain sam`"
    ):
        embed(torch.ones(1, 8, 8, 8))


# ---- the run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(results):
    """Folder of the run in this test's results tree."""
    return results / "pretraining" / "sam__nnUNetPlans__3d_fullres"


def pretrain(tiny, *settings, **kwargs):
    return run_pretraining("sam", tiny.name, "3d_fullres", device="cpu", settings=[*SHORT, *settings], **kwargs)


def test_a_run_writes_an_embedding_and_a_preview(tiny, run_folder, caplog):
    caplog.set_level("INFO")
    path = pretrain(tiny, "preview=true")
    assert f"preview of matches written: {run_folder / 'preview.png'}" in (run_folder / "log.txt").read_text()
    assert path == run_folder / "checkpoint_final.safetensors"
    assert (run_folder / "preview.png").read_bytes().startswith(b"\x89PNG")
    checkpoint = load_checkpoint(path)
    assert checkpoint.metadata["pretrained"] == ["encoder"]
    assert {name.split(".")[0] for name in checkpoint.tensors} == {"network", "heads"}
    embedding = Embedder.load(path)(np.random.default_rng(0).normal(size=(1, 20, 33, 40)))
    assert embedding.fine.shape == (8, 10, 16, 20)
    (run_folder / "preview.png").unlink()
    stamp = path.stat().st_mtime_ns
    assert pretrain(tiny, "preview=true", resume=True) == path
    assert (run_folder / "preview.png").is_file()
    assert path.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("backbone", ["planned", "resnet"])
def test_a_stopped_run_continues_bit_identical(tiny, run_folder, monkeypatch, backbone):
    monkeypatch.setattr(ResNet3d, "output_channels", (8, 8, 16, 16))
    settings = ("epochs=2", f"backbone={backbone}")
    whole = load_checkpoint(pretrain(tiny, *settings)).tensors
    means = [tensor for name, tensor in whole.items() if name.endswith("running_mean")]
    assert bool(means) == (backbone == "resnet")
    assert all(mean.any() for mean in means)
    from nnunet_invariance.pretraining.engine import loop

    end = loop.Loop._end_epoch

    def stop_after_one(self, *args):
        end(self, *args)
        self.stop_requested = True

    monkeypatch.setattr(loop.Loop, "_end_epoch", stop_after_one)
    with pytest.raises(loop.PretrainingStopped):
        pretrain(tiny, *settings)
    monkeypatch.setattr(loop.Loop, "_end_epoch", end)
    again = load_checkpoint(pretrain(tiny, *settings, resume=True)).tensors
    assert whole.keys() == again.keys()
    assert [n for n in whole if not torch.equal(whole[n], again[n])] == []


def test_a_run_starts_from_an_earlier_one(tiny, run_folder, tmp_path):
    first = pretrain(tiny)
    before = load_checkpoint(first)
    settings = (f"initial_weights={first}", "lr=1e-12", "lr_end=1e-12", "weight_decay=0")
    second = load_checkpoint(pretrain(tiny, *settings))  # in the folder of the first one, which is moved aside
    for name, tensor in before.tensors.items():
        if name.startswith(("network.encoder", "heads.")):
            assert torch.allclose(second.tensors[name], tensor, atol=1e-6), name
    files = {path: path.stat().st_mtime_ns for path in run_folder.parent.rglob("*")}
    for other in ("backbone=resnet", "features=4"):
        with pytest.raises(WeightsIncompatibleError, match="Set backbone and features to those of the file"):
            pretrain(tiny, f"initial_weights={first}", other)
    assert {path: path.stat().st_mtime_ns for path in run_folder.parent.rglob("*")} == files


def test_bad_input_is_named(tiny, run_folder, tmp_path):
    with pytest.raises(OptionError, match="'backbone' is 'vgg'; expected one of 'planned', 'resnet'"):
        pretrain(tiny, "backbone=vgg")
    with pytest.raises(OptionError, match="The method 'mae' has no option 'preview'"):
        run_pretraining("mae", tiny.name, "3d_fullres", options={"preview": True})
    assert not run_folder.exists() or list(run_folder.glob("checkpoint*")) == []
    with pytest.raises(WeightsIncompatibleError, match=r"mae.*expected 'sam'"):
        Embedder.load(run_pretraining("mae", tiny.name, "3d_fullres", device="cpu", settings=SHORT[:4]))


def test_two_dimensional_plans_are_refused(tiny, run_folder):
    plans = json.loads(json.dumps(tiny.plans))
    plans["plans_name"] = "flat"
    plans["configurations"]["2d"]["data_identifier"] = plans["configurations"]["3d_fullres"]["data_identifier"]
    path = tiny.preprocessed / tiny.name / "flat.json"
    path.write_text(json.dumps(plans))
    try:
        with pytest.raises(UnsupportedConfigurationError, match="is 2-D, but sam needs 3-D plans"):
            run_pretraining("sam", tiny.name, "2d", "flat", device="cpu")
    finally:
        path.unlink()
    assert not run_folder.parent.exists()


def test_one_volume_is_too_few(tiny, tmp_path):
    copy_cases(tiny, tmp_path / "one", [make_cases(tiny)[0].name])
    with pytest.raises(TooFewVolumesError, match="1 usable volume"):
        make_manifest([tmp_path / "one"], 1, (4, 4, 4), SAM.least_volumes)


def test_the_losses_are_those_of_the_paper_in_cells():
    sam = SAM(Setup(architecture(), (16, 16, 16), (1.0,) * 3, 2, False, ()), SAMOptions())
    fine, coarse = sam.fine_loss, sam.coarse_loss
    limits = "max_candidates=73728, temperature=0.5"
    assert fine.extra_repr() == (
        "max_positive_distance=0.5, min_negative_distance=5.0, num_queries=100, num_hardest=2000, num_negatives=500, "
        f"num_cross_sample=0, {limits}"
    )
    assert coarse.extra_repr() == (
        "max_positive_distance=0.75, min_negative_distance=0.75, num_queries=0, num_hardest=250, num_negatives=200, "
        f"num_cross_sample=1000, {limits}"
    )
    assert sam.loss_weights == {"fine": 1.0, "coarse": 1.0}


def test_the_coarse_map_guides_the_choice_of_fine_negatives(tiny):
    setup = Setup(architecture(), (32, 32, 32), (1.0,) * 3, 4, False, tuple(make_cases(tiny)))
    sam = SAM(setup, SAMOptions(features=8)).train()
    views = sam.make_views({k: v for k, v in sam.dataset(5, 0, 0)[0].items() if k != "keys"}, generator())
    before = sam(views, 0.0).losses["fine"]
    with torch.no_grad():
        for p in sam.heads.coarse.parameters():
            p.copy_(torch.randn(p.shape, generator=generator(1)))
    after = sam(views, 0.0).losses["fine"]
    assert after != before
    assert torch.isclose(after, before, rtol=0.5)


def test_a_volume_thinner_than_a_fine_cell_is_matched(tiny):
    setup = Setup(architecture(), (16, 16, 16), (1.0,) * 3, 2, False, ())
    sam = SAM(setup, SAMOptions(features=8))
    embed = Embedder(sam.network.encoder, sam.heads, sam.size, (1.0,) * 3, "cpu")
    flat = embed(np.random.default_rng(0).normal(size=(1, 1, 20, 20)).astype(np.float32))
    found = match_points(flat, flat, torch.tensor([[0.5, 7.0, 9.0]]))
    assert found.points.tolist() == [[1.0, 7.0, 9.0]]
    assert found.similarity.item() == pytest.approx(1, abs=1e-5)


def test_thin_volumes_are_padded_and_no_index_is_in_the_padding(tiny):
    thin = [case for case in make_cases(tiny) if min(case.shape) < 32]
    assert thin
    setup = Setup(architecture(), (32, 32, 32), (1.0,) * 3, 2, False, tuple(thin * 2))
    sam = SAM(setup, SAMOptions(features=8)).train()
    batch = sam.dataset(5, 0, 0)[0]
    assert not batch["valid"].all()
    views = sam.make_views({k: v for k, v in batch.items() if k != "keys"}, generator())
    for name in ("fine", "coarse"):
        indices, valid = views[name]["indices"], views[name]["valid_mask"]
        assert valid.gather(1, indices.query)[indices.valid_mask].all()
        assert valid.gather(1, indices.positive)[indices.valid_mask].all()
    assert all(value.isfinite() for value in sam(views, 0.0).losses.values())
