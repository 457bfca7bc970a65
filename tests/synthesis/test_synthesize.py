"""Templates, procedural shapes, online augmentation, and the files that ``synthesize`` leaves."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import EnvironmentNotSetError, OptionError, OutputError, TemplateError
from nnunet_invariance.synthesis import files as writing
from nnunet_invariance.synthesis import online
from nnunet_invariance.synthesis.engine import SynthesisEngine, SyntheticPairs, made_templates
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator
from nnunet_invariance.synthesis.shapes import rasterize_shape, sample_shape
from nnunet_invariance.synthesis.templates import read_templates

SIZE = (32, 32, 32)


@pytest.fixture(scope="module")
def engine():
    return SynthesisEngine(SynthesisOptions(size=SIZE), seed=1)


def write_map(path, labels, spacing=(1.0, 1.0, 1.0)):
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(spacing)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


# --- templates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_templates_of_any_labels_in_physical_proportions(tmp_path, ending):
    labels = np.zeros((10, 20, 40), np.int16)
    labels[2:6, 5:15, 10:20] = 7
    labels[7:8, 3:9, 30:38] = -300
    write_map(tmp_path / "deep" / f"map{ending}", labels, spacing=(1.0, 2.0, 4.0))  # x, y, z: 40 mm every way
    bank = read_templates(tmp_path, (40, 40, 40))
    assert [tuple(bank.mask(i).shape) for i in range(len(bank))] == [(4, 12, 8), (16, 20, 10)]
    assert bank.mask(1).all()


def test_a_folder_without_templates(tmp_path):
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(
        TemplateError, match=r"No templates found: .* contains no label maps; expected .*\.mha.*procedural"
    ):
        read_templates(tmp_path, SIZE)
    with pytest.raises(TemplateError, match="is not a folder"):
        read_templates(tmp_path / "nowhere", SIZE)


def test_files_that_are_no_templates_are_named(tmp_path):
    def refused(name):
        with pytest.raises(TemplateError) as error:
            read_templates(tmp_path / name, SIZE)
        return str(error.value)

    write_map(tmp_path / "empty" / "a.nii.gz", np.zeros((8, 8, 8), np.uint8))
    assert re.search(r"a\.nii\.gz: no label other than 0 was found", refused("empty"))
    write_map(tmp_path / "image" / "b.nii.gz", np.random.default_rng(0).random((8, 8, 8)))
    assert "b.nii.gz: found values that are not integers" in refused("image")
    write_map(tmp_path / "flat" / "c.mha", np.ones((8, 8), np.uint8)[None][0])
    assert "c.mha: found 2 dimensions and 1 value per voxel; expected 3 and 1" in refused("flat")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "d.nii.gz").write_bytes(b"not an image")
    assert "d.nii.gz could not be read as a label map" in refused("broken")


@pytest.mark.integration
def test_procedural_shapes_are_all_there_and_repeat():
    bank, again, other = (made_templates(SynthesisOptions(size=(64, 64, 64)), seed) for seed in (0, 0, 1))
    assert len(bank) > 60
    assert torch.equal(bank.flat, again.flat)
    assert bank.flat.shape != other.flat.shape or not torch.equal(bank.flat, other.flat)
    volumes = [bank.mask(i).sum().item() for i in range(len(bank))]
    assert min(volumes) > 10


def test_shapes_without_displacement_are_what_they_are_called():
    def volume(kind, **changes):
        drawn = replace(sample_shape(kind, 64, element_generator(0, 0)), **changes)
        still = [torch.zeros_like(grid) for grid in drawn.grids]
        straight = drawn.waves * torch.tensor([0.0, 1, 1])
        return [m.float().mean().item() * 8 for m in rasterize_shape(replace(drawn, grids=still, waves=straight), 64)]

    radii = torch.tensor([0.8, 0.6, 0.5])
    assert volume("sphere", radii=radii) == pytest.approx([4 / 3 * np.pi * 0.24], rel=0.06)
    assert volume("tube", radii=radii, thickness=0.2) == pytest.approx([np.pi * 0.2**2 * 1.6], rel=0.1)
    assert volume("sheet", radii=radii, thickness=0.2) == pytest.approx([0.2 * np.pi * 0.48], rel=0.1)
    assert sum(volume("organ", radii=radii)) == pytest.approx(4 / 3 * np.pi * 0.24, rel=0.06)


# --- online augmentation ------------------------------------------------------------------------------------------


NOTHING = online.IntensityChange(None, None, None, None, None)


def test_nothing_drawn_changes_only_the_scale(engine):
    pair = engine.batch([0, 1])
    still = online.Augmentation(False, (), None, (NOTHING, NOTHING))
    same = online.apply_augmentation(pair, [still, replace(still, swapped=True)])
    assert torch.equal(same.labels, pair.labels)
    scaled = [online.scale_to_percentile(view) for view in pair.views]
    assert torch.equal(same.views[0][0], scaled[0][0])
    assert torch.equal(same.views[0][1], scaled[1][1])
    flipped = online.apply_augmentation(pair, [replace(still, flipped=(0, 2)), still])
    assert torch.equal(flipped.labels[0], pair.labels[0].flip([1, 3]))
    assert torch.equal(flipped.views[1][0], scaled[1][0].flip([1, 3]))


def test_geometry_is_shared_by_labels_and_views(engine):
    labels = engine.batch([2]).labels
    views = (labels.float(), 40 - labels.float())
    turn = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    moved = online.apply_augmentation(
        SyntheticPairs(labels, *views), [online.Augmentation(False, (1,), turn, (NOTHING, NOTHING))]
    )
    assert moved.labels.dtype == labels.dtype
    top = online.scale_to_percentile(labels.float())
    assert torch.allclose(moved.views[0], moved.labels.float() / labels.max() * top.max(), atol=1e-3)
    assert torch.equal(moved.labels, torch.rot90(labels.flip(3), -1, (3, 4)))


def test_percentile_is_numpys_nearest():
    x = torch.rand(2, 1, 30, 30, 30) ** 4
    low, high = x.amin((1, 2, 3, 4)), np.quantile(x.flatten(1).numpy(), 0.9999, axis=1, method="inverted_cdf")
    expected = (x - low.reshape(-1, 1, 1, 1, 1)) / (torch.tensor(high) - low).reshape(-1, 1, 1, 1, 1)
    assert torch.allclose(online.scale_to_percentile(x), expected, rtol=1e-3)


def test_motion_that_goes_nowhere_is_identity_and_one_that_shifts_is_not():
    x = torch.rand(1, 1, 16, 16, 16)
    still = online.Motion(torch.eye(3).repeat(2, 1, 1), torch.zeros(2, 3), torch.tensor([0.3, 0.6]))
    assert torch.allclose(online.motion(x, [still]), x, atol=1e-4)
    moved = online.motion(x, [replace(still, shifts=torch.full((2, 3), 3.0))])
    assert (moved - x).abs().mean() > 0.01
    assert moved.mean().item() == pytest.approx(x.mean().item(), abs=1e-5)  # the centre is of the first position
    always = replace(still, shifts=torch.tensor([[2.0, -1, 3]] * 2), times=torch.tensor([0.0, 0.0]))
    assert torch.allclose(online.motion(x, [always]), x, atol=1e-4)


def test_noise_gamma_and_repeatability(engine):
    x = torch.rand(2, 1, 32, 32, 32) - 0.2
    noisy = online.add_noise(x, [(0.1, 3), (0.0, 4)])
    assert (noisy - x)[0].std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(noisy[1], x[1])
    assert torch.allclose(online.signed_gamma(x, [1.0, 2.0])[1], x[1].sign() * x[1] ** 2)
    pair = engine.batch([0, 1, 2])
    draws = [online.sample_augmentation(element_generator(9, i)) for i in range(3)]
    one, two = online.apply_augmentation(pair, draws), online.apply_augmentation(pair, draws)
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(one.views, two.views, strict=True))
    alone = online.apply_augmentation(engine.batch([1]), draws[1:2])
    assert torch.equal(alone.labels[0], one.labels[1])
    assert torch.allclose(alone.views[1][0], one.views[1][1], atol=1e-4)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_pairs_are_written_continued_and_pictured(tmp_path, capsys):
    out = tmp_path / "out"
    words = ["synthesize", str(out), "--size", "32", "-n"]
    assert main([*words, "2", "--preview"]) == 0
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = [f"{kind}/synthetic_00000{i}.nii.gz" for kind in ("labels", "view1", "view2") for i in (0, 1)]
    assert files == sorted([*names, "preview.png", "synthesis.json"])
    assert (out / "preview.png").read_bytes().startswith(b"\x89PNG")
    first = out / "view1" / "synthetic_000000.nii.gz"
    made = SynthesisEngine(SynthesisOptions(size=SIZE)).batch([0])
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(first)))
    np.testing.assert_array_equal(written, (made.views[0][0, 0] * 255).round().numpy())
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "labels" / first.name)))
    np.testing.assert_array_equal(labels, made.labels[0, 0].numpy())

    time, content = first.stat().st_mtime_ns, (out / "view2" / first.name).read_bytes()
    (out / "labels" / "synthetic_000001.nii.gz").unlink()
    assert main([*words, "3"]) == 0
    assert first.stat().st_mtime_ns == time
    assert (out / "view2" / first.name).read_bytes() == content
    assert len(list((out / "labels").iterdir())) == 3
    capsys.readouterr()
    assert main([*words, "3", "--seed", "8"]) == 2
    assert "these elements were made with other settings (seed was" in capsys.readouterr().err


@pytest.mark.integration
def test_a_data_set_as_nnunet_expects_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert main(["synthesize", "Shapes", "--size", "32", "-n", "2", "--as-dataset", "950"]) == 0
    root = tmp_path / "Dataset950_Shapes"
    content = json.loads((root / "dataset.json").read_text())
    assert content["numTraining"] == 2
    assert sorted(content["labels"].values()) == list(range(42))
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(root), num_processes=1)
    capsys.readouterr()
    assert main(["synthesize", "Other", "--size", "32", "-n", "1", "--as-dataset", "950"]) == 2
    assert "Id 950 is taken by Dataset950_Shapes" in capsys.readouterr().err


def test_bad_input_of_the_command(tmp_path, monkeypatch, capsys):
    for words, message in (
        (["--size", "50"], "multiple of 16. The next that fit: (64, 64, 64)"),
        (["--size", "32", "-n", "0"], "-n is 0; expected at least 1"),
        (["--templates", str(tmp_path)], "No templates found"),
    ):
        assert main(["synthesize", str(tmp_path / "out"), *words]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(EnvironmentNotSetError, match="nnUNet_raw is ''"):
        writing.dataset_layout("Shapes", 1)
    with pytest.raises(OptionError, match=r"expected an id from 1 to 999 and a name"):
        writing.dataset_layout("some/where", 950)


def test_a_folder_that_cannot_be_written(tmp_path, engine):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        writing.write_elements(engine, writing.pairs_layout(tmp_path / "file"), 1)
    (tmp_path / "labels").write_text("")
    with pytest.raises(OutputError, match=r"labels.* could not be written"):
        writing.write_elements(engine, writing.pairs_layout(tmp_path), 1)
