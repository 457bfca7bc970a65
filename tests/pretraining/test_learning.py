"""Input of the pre-training and its effect on held-out volumes, with Alice on the tiny data set."""

import dataclasses
import json
import shutil

import blosc2
import numpy as np
import pytest
import torch

from nnunet_invariance.augmentation.masking import upsample_cells
from nnunet_invariance.errors import TooFewVolumesError
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.nnunet.cases import Case, body_box, make_manifest, scan_cases
from nnunet_invariance.pretraining.data.alignment import BodyCoordinates
from nnunet_invariance.pretraining.data.crops import PairedCrops, crop, crop_origin, matched_origins
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.engine.schedule import learning_rate
from nnunet_invariance.pretraining.measures.position_retrieval import masked_error, position_retrieval, token_centres
from nnunet_invariance.pretraining.methods.alice import Alice, AliceOptions
from tests.helpers.planned_networks import architecture
from tests.helpers.tiny_pretraining import batch_of, copy_cases, make_alice, pretrain

# ---- learning ----------------------------------------------------------------------------------------------


def test_every_loss_reaches_the_encoder(tiny):
    alice = make_alice(tiny, weight_inter=1.0)
    views = alice.make_views(batch_of(alice, 0), torch.Generator().manual_seed(0))
    for name in ("inter", "intra", "mim"):
        alice.zero_grad(set_to_none=True)
        alice(views, 0.5).losses[name].backward()
        norms = [p.grad.norm().item() for p in alice.network.encoder.stages.parameters() if p.grad is not None]
        assert max(norms) > 0, name
        assert all(p.grad is None for p in alice.teacher.parameters())


@pytest.mark.parametrize("kind", ["PlainConvUNet", "ResidualEncoderUNet"])
@pytest.mark.parametrize("strides", [((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)), ((1, 1, 1), (2, 2, 2))])
@pytest.mark.parametrize("channels", [1, 4])
def test_planned_networks_of_any_shape_are_trained(kind, strides, channels):
    torch.manual_seed(0)
    planned = architecture(kind, strides, channels)
    options = AliceOptions(head_width=16, num_prototypes=16)
    alice = Alice(Setup(planned, (8, 16, 16), (5.0, 1.0, 1.0), 2, True, ()), options).train()
    image = torch.rand(2, channels, 8, 16, 16)
    valid = torch.ones(2, 1, 8, 16, 16, dtype=torch.bool)
    batch = {"image": image, "valid": valid, "score": torch.ones(1)}
    views = alice.make_views(batch, torch.Generator().manual_seed(0))
    assert views["encoder_valid"].shape[1] == 8 * 16 * 16 // np.prod(alice.cell)
    output = alice(views, 0.0)
    assert alice.loss_weights["mim"] == 10  # images in [0, 1]
    sum(output.losses.values()).backward()
    idle = [n for n, p in alice.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_no_loss_depends_on_the_padding(tiny):
    alice = make_alice(tiny).eval()  # no dropout
    batch = batch_of(alice, 0)
    batch["valid"][0, :, :9] = False
    batch["valid"][1, :, :, 20:] = False
    batch["image"] = batch["image"] * batch["valid"]
    views = alice.make_views(batch, torch.Generator().manual_seed(3))
    padded_cells = ~views["encoder_valid"]
    assert padded_cells.any()
    assert not views["hidden"].flatten(1).all(1).any()
    plain = alice(views, 0.5)
    # the values in the padding must not change the target, and padded tokens must not be queries
    inside = upsample_cells(views["encoder_valid"].view(2, 1, 8, 8, 8), (4, 4, 4))
    changed = {**views, "image": torch.where(inside, views["image"], 1e3)}
    assert alice(changed, 0.5).losses["mim"] == plain.losses["mim"]
    seen = []
    alice.heads.intra.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[3]))
    alice(views, 0.5)
    assert torch.equal(seen[0], views["encoder_valid"] & views["hidden_cells"].flatten(1))


def test_pretraining_beats_random_weights_on_held_out_volumes(tiny, results):
    configuration = tiny.plans["configurations"]["3d_fullres"]
    architecture = Architecture.from_plans(configuration["architecture"], 1, 1)
    folder = tiny.preprocessed / tiny.name / configuration["data_identifier"]
    cases, _ = scan_cases(folder, 1, (4, 4, 4))
    held_out, used = cases[:2], cases[2:]
    torch.manual_seed(0)
    random_network = architecture.build().eval()
    alice = make_alice(tiny)
    alice.setup = dataclasses.replace(alice.setup, cases=tuple(used), patch_size=(24, 24, 24))
    optimizer = torch.optim.AdamW([p for p in alice.parameters() if p.requires_grad], 1e-3)
    source, generator = alice.dataset(1000, 0, 0), torch.Generator()
    for step in range(60):
        generator.manual_seed(step)
        batch = {k: v for k, v in source[step].items() if k != "keys"}
        output = alice(alice.make_views(batch, generator), step / 60)
        loss = sum(alice.loss_weights[n] * v for n, v in output.losses.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        alice.after_step(output, step / 60)
    size, spacing = (32, 32, 32), (1.0, 1.0, 1.0)
    trained = alice.network.eval()
    error, chance = position_retrieval(trained.encoder, held_out, size, spacing)
    random_error, _ = position_retrieval(random_network.encoder, held_out, size, spacing)
    assert error < random_error < chance
    assert masked_error(trained, held_out, size) < 0.7 * masked_error(random_network, held_out, size)


def test_a_collapse_gives_warnings(tiny):
    alice = make_alice(tiny, collapse_guard="center")
    good = {"mean_target_entropy": 0.5, "target_entropy": 0.3, "class_target_entropy": 0.5, "effective_rank": 20.0}
    assert alice.problems(good) == []
    assert "the same prototype" in alice.problems({**good, "mean_target_entropy": 0.0})[0]
    assert "uniform" in alice.problems({**good, "target_entropy": 0.995})[0]
    assert "has no effect" in alice.problems({**good, "class_target_entropy": 0.99})[0]
    few = {**good, "effective_rank": 1.2}
    assert alice.problems(few)[0].endswith("directions; try --set collapse_guard=sinkhorn")
    one_prototype = torch.zeros(1, 50, 64)
    one_prototype[..., 3] = 10.0
    valid = torch.ones(1, 64, dtype=torch.bool)
    noisy = one_prototype + 1e-3 * torch.randn(50, 64)
    measured = {k: v.item() for k, v in alice._diagnostics(noisy, valid[:, :50], 0.01).items()}
    assert measured["mean_target_entropy"] < 0.01
    balanced = make_alice(tiny)  # Sinkhorn spreads equal tokens over all prototypes
    measured = {k: v.item() for k, v in balanced._diagnostics(noisy, valid[:, :50], 0.07).items()}
    assert "uniform" in balanced.problems(measured)[0]
    assert "sinkhorn" not in balanced.problems(few)[0]  # which is in use
    spread = {k: v.item() for k, v in alice._diagnostics(torch.eye(64)[None], valid, 0.01).items()}
    assert spread["mean_target_entropy"] == pytest.approx(1, abs=1e-3)
    assert spread["effective_rank"] == pytest.approx(63, rel=1e-3)  # subtracting the mean removes one direction


def test_diagnostics_do_not_depend_on_tokens_that_are_not_valid(tiny):
    alice, targets = make_alice(tiny), torch.randn(2, 30, 64)
    valid = torch.rand(2, 30) < 0.7
    masked = alice._diagnostics(targets, valid, 0.1)
    selected = alice._diagnostics(targets[valid][None], torch.ones(1, int(valid.sum()), dtype=torch.bool), 0.1)
    for name, value in masked.items():
        assert torch.isclose(value, selected[name], rtol=1e-4), name


def test_the_learning_rate_warms_up_and_falls_to_its_end():
    options = LoopOptions(epochs=10, iterations=10, lr=1.0, lr_end=0.1, warmup=0.1)
    rates = [learning_rate(s, options) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


# ---- data --------------------------------------------------------------------------------------------------


def test_crops_stay_inside_large_volumes_and_are_padded_in_small_ones():
    volume = np.arange(2 * 10 * 6 * 8, dtype=np.float32).reshape(2, 10, 6, 8)
    image, valid = crop(volume, crop_origin(volume.shape[1:], np.array([0.0, 3.0, 7.9]), (4, 8, 4)), (4, 8, 4))
    assert image.shape == (2, 4, 8, 4)
    assert valid.shape == (1, 4, 8, 4)
    assert np.array_equal(image[:, :, 1:7], volume[:, 0:4, :, 4:8])
    assert valid[:, :, 1:7].all()
    assert not valid[:, :, [0, 7]].any()
    assert (image[:, :, [0, 7]] == 0).all()


def outside(lows, size, shapes):
    """Voxels of one axis of crops that lie outside their volumes."""
    return sum(max(0, -low) + max(0, low + size - n) for low, n in zip(lows, shapes, strict=True))


def test_matched_points_are_at_the_same_voxel_of_both_crops_with_the_least_padding():
    rng = np.random.default_rng(0)
    for _ in range(300):
        shapes, size = rng.integers(6, 40, (2, 3)).tolist(), rng.integers(4, 24, 3).tolist()
        points = [rng.uniform(0, shape) for shape in shapes]
        origins = matched_origins(shapes, points, size)
        place, other = (np.round(p).astype(int) - low for p, low in zip(points, origins, strict=True))
        assert np.array_equal(place, other)
        for *lows, p, s, first, second in zip(*origins, place, size, *shapes, strict=True):
            padding = {d: outside([low + d for low in lows], s, (first, second)) for d in range(-40, 41)}
            assert padding[0] == min(padding.values())
            assert abs(p - s // 2) == min(abs(p - d - s // 2) for d in padding if padding[d] == padding[0])
            assert 0 <= p <= s


def test_a_pair_shows_matched_anatomy_if_fields_of_view_differ(tiny):
    """Two parts of one image, matched exactly: voxels that are valid in both crops are equal."""
    whole = np.random.default_rng(0).normal(size=(1, 40, 40, 40)).astype(np.float32)
    first, second = whole[:, :30, 5:], whole[:, 8:, :, 12:]
    point = np.array([20.0, 20.0, 20.0])
    points = [point - (0, 5, 0), point - (8, 0, 12)]
    lows = matched_origins([first.shape[1:], second.shape[1:]], points, (24, 24, 24))
    (a, in_a), (b, in_b) = (crop(v, low, (24, 24, 24)) for v, low in zip((first, second), lows, strict=True))
    both = in_a & in_b
    assert both.mean() > 0.5
    assert np.array_equal(a[both], b[both])


def test_a_body_that_subsampling_misses_is_found():
    image = np.zeros((128, 128, 128), np.float32)
    image[33, 33, 33] = 1
    assert body_box(image) == ((33, 34),) * 3


def test_changed_voxels_change_the_hash_of_the_data(tiny, tmp_path):
    hashes = []
    for kind in ("one", "again", "scaled"):
        copy_cases(tiny, tmp_path / kind, ["case_000", "case_001"])
        if kind == "scaled":
            file = tmp_path / kind / "case_001.b2nd"
            image = 2 * blosc2.open(str(file))[:]  # the same shape and body
            file.unlink()
            blosc2.asarray(image, urlpath=str(file))
        hashes.append(make_manifest([tmp_path / kind], 1, (4, 4, 4), 2).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_body_coordinates_map_the_box_onto_the_box():
    a = Case("a", "", (20, 20, 20), ((2, 12), (0, 20), (5, 15)))
    b = Case("b", "", (40, 30, 20), ((10, 40), (0, 10), (5, 15)))
    points, score = BodyCoordinates().match(a, b, np.array([[2.0, 10.0, 5.0], [7.0, 20.0, 15.0]]))
    assert np.allclose(points, [[10, 5, 5], [25, 10, 15]])
    assert (score == 1).all()


def test_a_batch_depends_on_seed_rank_and_step_alone(tiny):
    alice = make_alice(tiny)

    def batch(seed, rank, step):
        return PairedCrops(alice.setup.cases, (32, 32, 32), BodyCoordinates(), 2, seed, 10, rank)[step]

    once, again = batch(1, 0, 3), batch(1, 0, 3)
    assert torch.equal(once["image"], again["image"])
    assert once["keys"] == again["keys"]
    for other in (batch(2, 0, 3), batch(1, 1, 3), batch(1, 0, 4)):
        assert not torch.equal(once["image"], other["image"])
    assert once["image"].shape == (4, 1, 32, 32, 32)
    assert all(q != k for q, k in zip(once["keys"][:2], once["keys"][2:], strict=True))


def test_token_centres_are_symmetric_and_in_mm():
    centres = token_centres((2, 3, 1), (4, 4, 4), (1.0, 2.0, 5.0))
    assert centres.shape == (6, 3)
    assert torch.allclose(centres.mean(0), torch.zeros(3))
    assert centres[0].tolist() == [-2.0, -8.0, 0.0]


def _spoil(folder, name, change):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    data, seg, _, properties = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
    data, seg = np.array(data[:]), np.array(seg[:])
    for path in folder.glob(f"{name}*"):
        path.unlink()
    data, seg = change(data, seg)
    nnUNetDatasetBlosc2.save_case(data, seg, properties, str(folder / name), chunks=data.shape, blocks=data.shape,
                                  chunks_seg=seg.shape, blocks_seg=seg.shape)  # fmt: skip


def _with_nan(data, seg):
    data[0, 3, 3, 3] = np.nan
    return data, seg


def test_unusable_volumes_are_named_skipped_and_counted(tiny, tmp_path, caplog):
    folder = tmp_path / "cases"
    copy_cases(tiny, folder, [f"case_{i:03d}" for i in range(5)])
    _spoil(folder, "case_000", _with_nan)
    _spoil(folder, "case_001", lambda d, s: (np.full_like(d, 2.0), s))
    _spoil(folder, "case_002", lambda d, s: (d[:, :3].copy(), s[:, :3].copy()))
    (folder / "case_003.b2nd").write_bytes(b"not blosc")
    with caplog.at_level("WARNING", logger="nnunet_invariance"), pytest.raises(TooFewVolumesError, match="1 usable"):
        make_manifest([folder], 1, (4, 4, 4), 2)
    for name, reason in (
        ("case_000", "NaN"),
        ("case_001", "constant"),
        ("case_002", "too small"),
        ("case_003", "cannot be read"),
    ):
        assert any(name in r.message and reason in r.message for r in caplog.records)
    manifest = make_manifest([folder], 1, (4, 4, 4), 1)  # from the cache
    assert [c.name for c in manifest.cases] == ["case_004"]
    assert len(manifest.skipped) == 4


def test_images_folder_is_preprocessed_once_and_used(tiny, results, tmp_path, caplog):
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in (tiny.raw / tiny.name / "imagesTs").glob("*.nii.gz"):
        shutil.copy(path, scans / path.name.replace("_0000", ""))
    (scans / "broken.nii.gz").write_bytes(b"not an image")
    path = pretrain(tiny, "epochs=1", images=[scans])
    manifest = json.loads((path.parent / "manifest.json").read_text())
    assert {c["name"] for c in manifest["cases"]} >= {"test_000", "test_001"}
    assert len(manifest["cases"]) == 8
    assert any("broken" in r.message for r in caplog.records)
    cache = next((tiny.preprocessed / tiny.name / "nnunet_invariance_images").glob("*/scans_*/test_000.b2nd"))
    stamp = cache.stat().st_mtime_ns
    (scans / "broken.nii.gz").unlink()
    pretrain(tiny, "epochs=1", images=[scans])
    assert cache.stat().st_mtime_ns == stamp
    shutil.rmtree(tiny.preprocessed / tiny.name / "nnunet_invariance_images")
