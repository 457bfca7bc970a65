"""Mined pairs: the choice of partners, the table and its file, sampling from it, and the accuracy of the matches."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import (
    CheckpointCorruptError,
    DamagedFileError,
    OptionError,
    TooFewVolumesError,
    WeightsIncompatibleError,
    WeightsNotFoundError,
)
from nnunet_invariance.networks.matching import describe, locate, make_embedding, match_points
from nnunet_invariance.nnunet.cases import Case, body_box, load_volume
from nnunet_invariance.pretraining.data import mining
from nnunet_invariance.pretraining.data.alignment import (
    BodyCoordinates,
    RandomPoints,
    SameVolume,
    sample_points_in_body,
)
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.pretraining.data.mining import (
    MinedPairs,
    MiningOptions,
    PairTable,
    choose_partners,
    load_pairs,
    mine_pairs,
    save_pairs,
)
from nnunet_invariance.pretraining.data.patients import patients_of
from nnunet_invariance.pretraining.engine.method import Setup
from nnunet_invariance.pretraining.methods.alice import Alice, AliceOptions
from nnunet_invariance.pretraining.methods.sam import SAM, SAMOptions
from nnunet_invariance.weights.checkpoint import read_metadata
from tests.helpers.known_anatomy import true_matches, write_volumes
from tests.helpers.planned_networks import architecture
from tests.helpers.pretraining_runs import run_pretraining

CASES = [Case(f"p{i // 2}_{i}", "", (20, 20, 20), ((0, 20),) * 3) for i in range(6)]


def make_sam(cases, features, volumes=2):
    torch.manual_seed(0)
    planned = architecture(strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)))
    planned.arch_kwargs["features_per_stage"] = [8, 16, 32, 64]
    setup = Setup(planned, (24, 24, 24), (1.0, 1.0, 1.0), 4, False, tuple(cases))
    return SAM(setup, SAMOptions(batch_size=volumes, features=features)).train()


def embedder(sam):
    return Embedder(sam.network.encoder, sam.heads, sam.size, sam.setup.spacing, "cpu")


def small_table():
    rng = np.random.default_rng(0)
    source = np.repeat(np.arange(6, dtype=np.int32), 2)
    points = rng.uniform(0, 20, (2, 12, 3)).astype(np.float32)
    score = np.linspace(0.5, 0.95, 12).astype(np.float32)
    good = score > 0.7
    return PairTable(source, (source + 2) % 6, *points, score, np.zeros(12, np.float32), good)


def test_partners_are_of_different_patients():
    patients = patients_of(CASES, r"(p\d)_.*")
    assert patients == ["p0", "p0", "p1", "p1", "p2", "p2"]
    partners = choose_partners(patients, 3, np.random.default_rng(0))
    assert all(len(set(chosen)) == 3 for chosen in partners)
    assert all(patients[i] != patients[j] for i, chosen in enumerate(partners) for j in chosen)
    assert all(len(chosen) == 4 for chosen in choose_partners(patients, 8, np.random.default_rng(0)))
    with pytest.raises(TooFewVolumesError, match="at least two patients"):
        choose_partners(["a", "a"], 8, np.random.default_rng(0))
    with pytest.raises(TooFewVolumesError, match=r"1 volume"):
        choose_partners(["a"], 8, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("(p", "not a regular expression"),
        ("p.*", "has no group"),
        ("(x)", "does not match the name of the case 'p0_0'"),
    ],
)
def test_patterns_without_a_patient_are_refused(pattern, error):
    with pytest.raises(OptionError, match=error):
        patients_of(CASES, pattern)


@pytest.mark.parametrize("alignment", [BodyCoordinates, RandomPoints])
def test_pairs_of_other_alignments_are_of_different_patients_too(alignment):
    rng = np.random.default_rng(0)
    sampled = [alignment(r"(p\d)_.*").sample_pair(CASES, rng) for _ in range(100)]
    assert all(pair.first.name[:2] != pair.second.name[:2] for pair in sampled)
    assert {pair.first.name for pair in sampled} == {case.name for case in CASES}
    twins = [Case("scan", folder, (20, 20, 20), ((0, 20),) * 3) for folder in ("a", "b")]
    assert {alignment().sample_pair(twins, rng).first.folder for _ in range(20)} == {"a", "b"}


def test_patterns_are_checked_for_every_alignment():
    setup = Setup(architecture(), (16, 16, 16), (1.0, 1.0, 1.0), 2, False, tuple(CASES))
    for pairs in ("coordinates", "random", "same-volume"):
        with pytest.raises(OptionError, match="not a regular expression"):
            AliceOptions(alignment=pairs, patients="(p")
        with pytest.raises(OptionError, match="does not match the name of the case"):
            Alice(setup, AliceOptions(alignment=pairs, patients="(x)"))
    with pytest.raises(TooFewVolumesError, match="at least two patients"):
        Alice(setup, AliceOptions(patients="(p)"))
    alice = Alice(setup, AliceOptions(patients=r"(p\d)", head_width=8, num_prototypes=8))
    assert alice.alignment.patients == r"(p\d)"
    options = AliceOptions(alignment="same-volume", patients="(p)", head_width=8, num_prototypes=8)
    assert Alice(setup, options).batch_size == 1


def test_a_table_is_read_as_written_and_for_its_own_data_only(tmp_path):
    table, sheet = small_table(), {"manifest_sha256": "abc", "points": 256}
    save_pairs(tmp_path, table, sheet)
    read = load_pairs(tmp_path, sheet)
    assert all(np.array_equal(value, getattr(table, name)) for name, value in vars(read).items())
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.safetensors", "pairs.json"}
    with pytest.raises(WeightsIncompatibleError, match=r"manifest_sha256 is 'abc', expected 'xyz'.*mined again"):
        load_pairs(tmp_path, {"manifest_sha256": "xyz"})
    data = bytearray((tmp_path / "pairs.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "pairs.safetensors").write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match="does not match the checksum"):
        load_pairs(tmp_path, sheet)


def test_pairs_that_cannot_be_read_are_named_with_the_remedy(tmp_path):
    sheet = {"manifest_sha256": "abc"}
    save_pairs(tmp_path, small_table(), sheet)
    written = (tmp_path / "pairs.json").read_text()
    for content in (written[:20], "[1, 2]", "3", "\xff"):
        (tmp_path / "pairs.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(DamagedFileError, match=r"pairs\.json .*pairs\.json away, so that the pairs"):
            load_pairs(tmp_path, sheet)
    (tmp_path / "pairs.json").write_text(written)
    (tmp_path / "pairs.safetensors").unlink()
    with pytest.raises(CheckpointCorruptError, match=r"pairs\.safetensors cannot be read.*mined again"):
        load_pairs(tmp_path, sheet)


def test_pairs_are_sampled_from_accepted_rows_and_matches_follow_the_nearest_row():
    table = small_table()
    pairs, rng = MinedPairs(CASES, table), np.random.default_rng(0)
    sampled = [pairs.sample_pair(CASES, rng) for _ in range(200)]
    assert {p.first.name for p in sampled} == {c.name for c in CASES}
    scores = {p.first.name: min(q.score for q in sampled if q.first == p.first) for p in sampled}
    without_accepted = {CASES[i].name for i in range(6) if not table.accepted[table.first == i].any()}
    assert all((score > 0.7) != (name in without_accepted) for name, score in scores.items())
    row = 11
    source, target = CASES[table.first[row]], CASES[table.second[row]]
    moved, score = pairs.match(source, target, table.first_point[row][None] + 0.25)
    assert np.allclose(moved, table.second_point[row] + 0.25, atol=1e-5)
    assert score[0] == table.score[row]
    with pytest.raises(WeightsIncompatibleError, match="has no pair of"):
        pairs.match(target, source, table.first_point[:1])


def test_a_similar_pair_with_a_large_cycle_error_has_the_score_minus_one():
    table = dataclasses.replace(small_table(), score=np.full(12, 0.95, np.float32), accepted=np.arange(12) > 1)
    table.cycle_error[:2] = 80.0
    pairs = MinedPairs(CASES, table)
    assert {p.first.name: p.score for p in (pairs.sample_pair(CASES, np.random.default_rng(i)) for i in range(60))} == {
        case.name: -1.0 if case is CASES[0] else pytest.approx(0.95) for case in CASES
    }
    assert pairs.match(CASES[0], CASES[2], table.first_point[:1])[1].tolist() == [-1.0]
    assert pairs.match(CASES[1], CASES[3], table.first_point[2:3])[1] == pytest.approx(0.95)


def test_mined_points_lie_in_the_body_and_not_only_in_its_box():
    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.1, (40, 40, 40)).astype(np.float32)
    away = np.square(np.indices(image.shape) + 0.5 - 20).sum(0)
    image[away < 15**2] += 2  # a ball: half of its box is air
    case = Case("ball", "", image.shape, body_box(image))
    points = sample_points_in_body(case, image, 256, rng)
    assert points.shape == (256, 3)
    assert (image[tuple(points.astype(int).T)] > 1).all()
    assert len(np.unique(points, axis=0)) == 256
    assert np.allclose(points.mean(0), 20, atol=1.5)
    thin = np.zeros((40, 40, 40), np.float32)
    thin[[1, -2], [1, -2], [1, -2]] = 1  # two voxels of a body that is a box for the rest
    points = sample_points_in_body(Case("thin", "", thin.shape, body_box(thin)), thin, 256, rng)
    assert points.shape == (256, 3)
    assert ((points >= 1) & (points < 39)).all()


@pytest.mark.integration
def test_the_limits_do_not_reject_an_untrained_embedding(tmp_path):
    """As docs/alice.md warns."""
    cases, _ = write_volumes(tmp_path / "volumes", 3)
    table = mine_pairs(embedder(make_sam(cases, features=32)), cases, MiningOptions(num_points=32))
    assert (table.score > 0.7).mean() > 0.9
    assert table.accepted.mean() > 0.3


class Stub:
    """An embedding of random vectors, the same for the same image: 12 x 4 x 4 fine cells, anisotropic voxels."""

    device, spacing, head = torch.device("cpu"), (1.0, 2.0, 3.0), SimpleNamespace(fine_cell=(2, 2, 2))

    def __call__(self, image):
        sampled = torch.Generator().manual_seed(int(image.flat[0]))
        maps = (torch.randn(3, *grid, generator=sampled) for grid in ((12, 4, 4), (6, 2, 2)))
        fine, coarse = (torch.nn.functional.normalize(m, dim=0) for m in maps)
        return make_embedding(fine, coarse, (2, 2, 2), (4, 4, 4), (24, 8, 8), self.spacing)


@pytest.mark.integration
def test_the_table_contains_every_match_and_both_limits(monkeypatch):
    """Against matching pair by pair: 8 partners, similarity above 0.7, cycle error of at most 4 fine cells."""
    cases = [Case(str(i), "", (24, 8, 8), ((0, 24), (0, 8), (0, 8))) for i in range(10)]
    images = {case.name: np.random.default_rng(i).normal(i, 0.3, (1, 24, 8, 8)) for i, case in enumerate(cases)}
    for i, case in enumerate(cases):
        images[case.name].flat[0] = i
    monkeypatch.setattr(mining, "load_volume", lambda case: images[case.name])
    embed = Stub()
    table = mine_pairs(embed, cases, MiningOptions())
    assert len(table.first) == 10 * 8 * 256
    seen = set()
    for i in range(10):
        assert len(set(table.second[table.first == i])) == 8
        for j in sorted(set(table.second[table.first == i])):
            rows = (table.first == i) & (table.second == j)
            first, second = embed(images[str(i)]), embed(images[str(j)])
            found = match_points(first, second, torch.from_numpy(table.first_point[rows]))
            back = locate(describe(second, found.points), first)[0].numpy()
            cells = np.linalg.norm((back - table.first_point[rows]) / 2, axis=1)
            assert np.array_equal(table.second_point[rows], found.points.numpy())
            assert np.allclose(table.score[rows], found.similarity, atol=1e-6)
            assert np.allclose(table.cycle_error[rows], found.cycle_error, atol=1e-4)
            limits = table.score[rows] > 0.7, cells <= 4
            assert np.array_equal(table.accepted[rows], limits[0] & limits[1])
            seen |= set(zip(*(limit.tolist() for limit in limits), strict=True))
    assert len(seen) == 4


@pytest.mark.integration
def test_descriptors_are_kept_on_the_cpu(tmp_path, monkeypatch):
    """Mining holds one embedding at a time on the device, not the descriptors of all pairs."""
    moved = []
    monkeypatch.setattr(mining, "_move", lambda parts, device: moved.append(device) or parts)
    cases, _ = write_volumes(tmp_path / "volumes", 2)
    mine_pairs(embedder(make_sam(cases, features=8)), cases, MiningOptions(num_points=4))
    assert moved.count("cpu") == 4  # stored: those of two volumes and of two pairs
    assert moved.count(torch.device("cpu")) == 4  # moved back to the embedder's device


def test_the_other_alignments():
    rng = np.random.default_rng(0)
    same = SameVolume().sample_pair(CASES, rng)
    assert same.first is same.second
    assert np.array_equal(same.first_point, same.second_point)
    points = rng.uniform(0, 20, (50, 3))
    once, score = RandomPoints().match(CASES[0], CASES[1], points)
    assert np.array_equal(once, RandomPoints().match(CASES[0], CASES[1], points)[0])
    assert np.ptp(once, axis=0).min() > 10
    assert (score == 1).all()


@pytest.mark.integration
def test_mining_finds_the_points_of_a_copy_of_the_volume(tmp_path):
    """Volumes with the same image match at the same point, with similarity 1 and a cycle error below one cell."""
    cases, _ = write_volumes(tmp_path / "a", 1)
    embed = embedder(make_sam(cases, features=8))
    twin = [cases[0], Case(cases[0].name, cases[0].folder, cases[0].shape, cases[0].body)]
    options = MiningOptions(num_points=20, patients="(.*)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnunet_invariance.pretraining.data.mining.patients_of", lambda cases, pattern: ["a", "b"])
        table = mine_pairs(embed, twin, options)
    assert len(table.first) == 40
    assert table.accepted.all()
    assert np.allclose(table.score, 1, atol=1e-4)
    assert (np.abs(table.second_point - table.first_point) <= 2 + 1e-4).all()  # an odd side ends in half a cell
    again = embed(load_volume(cases[0])[:])
    assert again.fine.shape[1:] == tuple(n // 2 if n % 2 == 0 else (n + 1) // 2 - 1 for n in cases[0].shape)


def listing(folder):
    """Every file below a folder, with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pretraining_runs(results):
    """Folder of all runs in this test's results tree."""
    return results / "pretraining"


@pytest.mark.slow
def test_alice_samples_from_pairs_that_are_mined_once(tiny, pretraining_runs, capsys):
    settings = ["epochs=1", "iterations=1", "workers=0"]
    alice = [
        "-device",
        "cpu",
        "--epochs",
        "1",
        "--iterations",
        "1",
        "--set",
        "workers=0",
        "head_width=8",
        "num_prototypes=8",
    ]
    command = ["pretrain", "alice", tiny.name, "3d_fullres", *alice]
    with pytest.raises(WeightsNotFoundError, match="--alignment sam needs a finished anatomical embedding"):
        run_pretraining("alice", tiny.name, "3d_fullres", device="cpu", settings=[*settings, "alignment=sam"])
    run_pretraining("sam", tiny.name, "3d_fullres", device="cpu", settings=[*settings, "batch_size=2", "features=4"])
    folder = pretraining_runs / "sam__nnUNetPlans__3d_fullres"
    assert main([*command, "--alignment", "sam", "--patients", r"(case_\d+)"]) == 0
    sheet = json.loads((folder / "pairs.json").read_text())
    assert sheet["pairs"] == 6 * 5 * 256  # six volumes, so five partners each
    assert len(sheet["cases"]) == 6
    stamp = (folder / "pairs.safetensors").stat().st_mtime_ns
    assert main([*command, "--alignment", "sam", "--patients", r"(case_\d+)"]) == 0
    assert (folder / "pairs.safetensors").stat().st_mtime_ns == stamp
    run = pretraining_runs / "alice__nnUNetPlans__3d_fullres"
    prepared = read_metadata(run / "checkpoint_final.safetensors")["prepared"]
    assert prepared == {"pairs_sha256": sheet["sha256"]}
    (run / "checkpoint_final.safetensors").rename(run / "checkpoint_latest.safetensors")
    (folder / "pairs.json").unlink()
    data = (folder / "pairs.safetensors").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mining, "sample_points_in_body", lambda *arguments: sample_points_in_body(*arguments) + 1)
        assert main([*command, "--alignment", "sam", "--patients", r"(case_\d+)", "--c"]) == 2
    assert "prepared differs (pairs_sha256: was" in capsys.readouterr().err
    (folder / "pairs.safetensors").write_bytes(data)
    (folder / "pairs.json").write_text(json.dumps(sheet))
    sheet["manifest_sha256"] = "of other data"
    (folder / "pairs.json").write_text(json.dumps(sheet))
    before = listing(pretraining_runs)
    assert main([*command, "--alignment", "sam", "--patients", r"(case_\d+)"]) == 2
    assert listing(pretraining_runs) == before
    assert main([*command, "--alignment", "random"]) == 0
    assert main([*command, "--alignment", "same-volume"]) == 0


@pytest.mark.slow
def test_mined_pairs_beat_coordinates_and_random_points_on_known_deformations(tmp_path):
    """Fields of view of 0.7 to 1 of the body on each axis, waves of up to 1.5 voxels, scales of 0.95 to 1.05."""
    cases, deformations = write_volumes(tmp_path / "volumes", 8)
    sam = make_sam(cases, features=32)
    optimizer = torch.optim.AdamW([p for p in sam.parameters() if p.requires_grad], 1e-3)
    source, generator = sam.dataset(150, 0, 0), torch.Generator()
    for step in range(150):
        generator.manual_seed(step)
        batch = {k: v for k, v in source[step].items() if k != "keys"}
        losses = sam(sam.make_views(batch, generator), step / 150).losses
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    mined = MinedPairs(cases, mine_pairs(embedder(sam), cases, MiningOptions(num_points=64)))
    rng = np.random.default_rng(0)
    pairs = [mined.sample_pair(cases, rng) for _ in range(1000)]

    def error(matches):
        true = [true_matches(p.first, p.second, p.first_point, deformations) for p in pairs]
        return np.nanmean(np.linalg.norm(np.stack(matches) - np.stack(true), axis=1))

    def of(alignment):
        return error([alignment.match(p.first, p.second, p.first_point[None])[0][0] for p in pairs])

    errors = error([p.second_point for p in pairs]), of(BodyCoordinates()), of(RandomPoints())
    print("mean displacement in voxels: mined {:.2f}, coordinates {:.2f}, random {:.2f}".format(*errors))
    assert errors[0] < 0.85 * errors[1] < errors[2]
