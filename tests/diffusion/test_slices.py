"""The parts of the diffusion path that need no diffusion: slices, projections, conditions' oracles, quality, noise."""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.diffusion.conditions import EXTRAS, condition_channels, make_condition
from nnunet_invariance.diffusion.geometry import Geometry
from nnunet_invariance.diffusion.noise import named_generator, noise_along
from nnunet_invariance.diffusion.projection import project_image, project_labels
from nnunet_invariance.diffusion.quality import label_borders, match_slices, rejected_slices, replace_rejected
from nnunet_invariance.diffusion.slices import make_slices, open_slices
from nnunet_invariance.diffusion.views import put_back, view_names
from nnunet_invariance.diffusion.volumes import open_raw_dataset, read_case, slice_axis
from nnunet_invariance.errors import OptionError, OutputError, StyleFolderError
from tests.helpers.tiny_dataset import synthetic_case

NAME = "Dataset779_Sliced"


def write_raw(raw, name=NAME, shapes=((6, 20, 24), (5, 24, 20)), spacing=(1.0, 1.5, 4.0), labels=None, channels=None):
    """Small anisotropic volumes (z, y, x), with a turned direction and an origin."""
    folder = raw / name
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for index, shape in enumerate(shapes):
        for part, image in zip(("imagesTr", "labelsTr"), synthetic_case(shape, index), strict=True):
            image.SetSpacing(spacing)
            image.SetOrigin((3.0, -5.0, 7.0))
            end = "_0000" if part == "imagesTr" else ""
            sitk.WriteImage(image, folder / part / f"case_{index}{end}.nii.gz")
    content = {
        "channel_names": channels or {"0": "CT"},
        "labels": labels or {"background": 0, "body": 1, "core": 2},
        "numTraining": len(shapes),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A raw tree with one data set; nnU-Net's name look-up reads its own module, so names are given in full."""
    tree = tmp_path / "raw"
    for variable in ("raw", "preprocessed", "results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
        for module in ("paths", "utilities.dataset_name_id_conversion"):
            monkeypatch.setattr(f"nnunetv2.{module}.nnUNet_{variable}", str(tmp_path / variable))
    write_raw(tree)
    return tree


# ---- geometry --------------------------------------------------------------------------------------------------------


def test_a_slice_of_the_square_s_size_stays_as_it_is():
    stack = torch.rand(3, 16, 16)
    geometry = Geometry.fit((16, 16), (0.7, 0.7), 16)
    assert torch.equal(geometry.to_square(stack), stack)
    assert torch.equal(geometry.from_square(stack), stack)


@pytest.mark.parametrize(("shape", "spacing"), [((20, 30), (1, 1)), ((9, 40), (3, 0.8)), ((64, 17), (0.5, 2))])
def test_squares_are_isotropic_centred_and_go_back(shape, spacing):
    geometry = Geometry.fit(shape, spacing, 64)
    height, width = (n * s for n, s in zip(shape, spacing, strict=True))
    assert max(geometry.scaled) == 64
    assert geometry.scaled[0] / geometry.scaled[1] == pytest.approx(height / width, rel=0.05)
    rows, columns = torch.meshgrid(torch.linspace(0, 3, shape[0]), torch.linspace(0, 3, shape[1]), indexing="ij")
    smooth = ((rows.sin() + columns.cos()) / 4 + 0.5)[None]
    square = geometry.to_square(smooth)
    assert square.shape == (1, 64, 64)
    assert square.sum().item() == pytest.approx(square[(slice(None), *geometry.box)].sum().item())
    back = geometry.from_square(square)
    assert (back - smooth)[:, 1:-1, 1:-1].abs().max() < 0.06
    # a blob stays where it is: no shift by half a pixel
    blob = torch.exp(-((rows - 1.5) ** 2 + (columns - 1.5) ** 2) * 4)[None]
    moved = geometry.from_square(geometry.to_square(blob))
    for axis in (rows, columns):
        assert (moved * axis).sum() / moved.sum() == pytest.approx(float((blob * axis).sum() / blob.sum()), abs=0.02)


def test_labels_are_taken_from_the_nearest_pixel_only():
    labels = torch.randint(0, 7, (2, 20, 30)).to(torch.uint8)
    square = Geometry.fit((20, 30), (1, 1), 64).to_square(labels, labels=True)
    assert square.dtype == torch.uint8
    assert set(square.unique().tolist()) <= set(labels.unique().tolist()) | {0}
    doubled = Geometry.fit((32, 32), (1, 1), 64).to_square(torch.arange(32).repeat(1, 32, 1).to(torch.uint8), True)
    assert doubled[0, 0].tolist() == [i // 2 for i in range(64)]


def test_planes_are_anatomical():
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32))
    assert [slice_axis(image, plane) for plane in ("axial", "coronal", "sagittal")] == [0, 1, 2]
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))  # x to the back, y to the head, z to the left
    assert [slice_axis(image, plane) for plane in ("axial", "coronal", "sagittal")] == [1, 2, 0]
    assert slice_axis(image, None) == 0  # equal spacings: the first
    image.SetSpacing((2, 5, 1))
    assert slice_axis(image, None) == 1


# ---- slices ----------------------------------------------------------------------------------------------------------


def test_slices_hold_window_and_geometry_and_go_back_to_the_volume(raw, tmp_path, capsys):
    folder = tmp_path / "style"
    assert main(["style", "slices", NAME, str(folder), "--size", "64", "--window", "20", "200"]) == 0
    assert "slices of 2 volumes" in capsys.readouterr().out
    slices = open_slices(folder)
    assert (slices.dataset, slices.classes, slices.names) == (NAME, 3, ("case_0", "case_1"))
    data = open_raw_dataset(NAME)
    _, source, labels = read_case(*data.cases["case_0"], 3)
    case = slices.case("case_0")
    assert case.axis == 0  # 4 mm between slices
    assert case.image.shape == case.labels.shape == (6, 64, 64)
    assert case.geometry.scaled == (64, 51)  # 20 x 1.5 mm by 24 x 1 mm
    assert (case.image[0] > 0).any()
    squares = torch.from_numpy(np.array(case.image)).float() / 255
    back = put_back(squares, case, source)
    inside = np.clip(source, 20, 200)
    assert back.shape == source.shape
    assert np.corrcoef(back.ravel(), inside.ravel())[0, 1] > 0.95  # voxel noise is smoothed
    inside = np.array(case.labels[(slice(None), *case.geometry.box)])
    assert np.allclose(
        np.bincount(inside.ravel(), minlength=3) / inside.size,
        np.bincount(labels.ravel(), minlength=3) / labels.size,
        atol=0.01,
    )
    before = (folder / "slices/case_0.json").stat().st_mtime_ns
    make_slices(NAME, folder, 64, None, (20, 200))  # nothing is cut again
    assert (folder / "slices/case_0.json").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"slices\.json: these slices were made with other settings.*size was 64"):
        make_slices(NAME, folder, 128, None, (20, 200))


def test_slices_of_a_killed_run_are_named_and_made_again(raw, tmp_path):
    make_slices(NAME, tmp_path, 32)
    expected = np.load(tmp_path / "slices/case_1_image.npy")
    for file in ("case_1.json", "case_1_image.npy"):
        (tmp_path / "slices" / file).unlink()
    with pytest.raises(
        StyleFolderError, match=r"lacks 2 files: case_1_image\.npy, case_1\.json.*style slices Dataset779"
    ):
        open_slices(tmp_path)
    make_slices(NAME, tmp_path, 32)
    assert np.array_equal(np.load(tmp_path / "slices/case_1_image.npy"), expected)


def test_bad_data_for_slices(raw, tmp_path):
    out = tmp_path / "out"
    (raw / NAME / "labelsTr/case_1.nii.gz").rename(tmp_path / "away.nii.gz")
    with pytest.raises(StyleFolderError, match=r"no labels for 1 of 2 cases: case_1\.nii\.gz.*add the labels"):
        make_slices(NAME, out, 32)
    wrong = sitk.GetImageFromArray(np.full((5, 24, 20), 9, np.uint8))
    sitk.WriteImage(wrong, raw / NAME / "labelsTr/case_1.nii.gz")
    with pytest.raises(StyleFolderError, match=r"case_1.*labels 9 to 9; dataset.json knows 0 to 2"):
        make_slices(NAME, out, 32)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 24, 21), np.uint8)), raw / NAME / "labelsTr/case_1.nii.gz")
    with pytest.raises(StyleFolderError, match=r"shape \(5, 24, 21\), its image \(5, 24, 20\)"):
        make_slices(NAME, out, 32)
    write_raw(raw, "Dataset780_Two", channels={"0": "T1", "1": "T2"})
    with pytest.raises(StyleFolderError, match="has 2 channels"):
        make_slices("Dataset780_Two", out, 32)
    for size, window, words in ((33, None, "multiple of 8"), (32, (5, 5), "LOW below HIGH")):
        with pytest.raises(OptionError, match=words):
            make_slices(NAME, tmp_path / "nothing", size, None, window)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(StyleFolderError, match=r"contains no slices\.json.*style slices DATASET"):
        open_slices(tmp_path / "nothing")


# ---- projections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_projections_are_those_of_a_slow_loop(axis):
    random = np.random.default_rng(axis)
    volume, labels = random.uniform(-1100, 500, (3, 4, 5)), random.integers(0, 4, (3, 4, 5))
    rays, marks = np.moveaxis(volume, axis, -1), np.moveaxis(labels, axis, -1)
    for index in np.ndindex(rays.shape[:2]):
        path = sum(0.02 * max(0, 1 + h / 1000) * 1.7 for h in rays[index])
        assert project_image(volume, axis, "attenuation", 1.7)[index] == pytest.approx(1 - math.exp(-path))
        assert project_image(volume, axis, "mean", 1.7)[index] == pytest.approx(rays[index].mean())
        counts = [(marks[index] == label).sum() for label in range(1, 4)]
        assert project_labels(labels, axis, 4)[index] == (1 + int(np.argmax(counts)) if max(counts) else 0)


@pytest.mark.integration
def test_projections_are_a_data_set_and_are_sliced(raw, tmp_path, capsys):
    command = ["style", "slices", NAME, str(tmp_path / "style"), "--size", "32", "--project", "attenuation"]
    assert main(command) == 2
    assert "belong together" in capsys.readouterr().err
    assert main([*command, "--as-dataset", "791"]) == 0
    data = open_raw_dataset("Dataset791_Sliced_attenuation")
    image, picture, labels = read_case(*data.cases["case_0"], 3)
    assert picture.shape == labels.shape == (1, 6, 24)  # from the front: foot-head by left-right
    assert image.GetSpacing() == (1.0, 4.0, 999.0)
    assert picture.min() > 0
    assert picture.max() < 1
    assert open_slices(tmp_path / "style").case("case_0").image.shape == (1, 32, 32)
    write_raw(raw, "Dataset781_MR", channels={"0": "MRI"})
    command[2] = "Dataset781_MR"
    assert main([*command, "--as-dataset", "792"]) == 2
    assert "needs Hounsfield units" in capsys.readouterr().err
    assert not list(raw.glob("Dataset792*"))


# ---- conditions ------------------------------------------------------------------------------------------------------


def test_conditions_are_one_hot_with_background_and_never_have_four_channels():
    labels = torch.randint(0, 3, (2, 16, 16)).to(torch.uint8)
    images = torch.rand(2, 16, 16)
    plain = make_condition(labels, images, 3)
    for label in range(3):
        assert torch.equal(plain[:, label], (labels == label).float())
    for classes in range(2, 7):
        for extras in ((), ("body",), ("edges",), ("body", "edges"), EXTRAS):
            made = make_condition(labels % classes, images, classes, extras)
            assert made.shape[1] == condition_channels(classes, extras) != 4
            assert torch.equal(made[:, :classes].sum(1), torch.ones(2, 16, 16))
            assert made.min() >= 0
            assert made.max() <= 1
    assert condition_channels(4) == 5
    assert torch.equal(make_condition(labels, images, 4)[:, 4], torch.zeros(2, 16, 16))


def test_extra_conditions_show_body_tissues_and_edges():
    image = torch.zeros(1, 32, 32)
    image[:, 6:26, 6:26] = 0.8
    image[:, 12:16, 12:16] = 0.1  # a hole
    labels = torch.zeros(1, 32, 32, dtype=torch.uint8)
    labels[:, 6:10, 6:10] = 1
    body = make_condition(labels, image, 2, ("body",))[0, 2]
    assert body.sum() == 400
    assert body[13, 13] == 1
    clusters = make_condition(labels, image, 2, ("clusters",))[0, 2:]
    assert torch.equal(clusters.sum(0), torch.ones(32, 32))
    assert not torch.equal(clusters[:, 0, 0], clusters[:, 20, 20])
    edges = make_condition(labels, image, 2, ("edges",))[0, 2]
    assert edges[6, 15] > 0.5
    assert edges[20, 20] == edges[1, 1] == 0
    assert not make_condition(labels, torch.zeros_like(image), 2, ("body", "edges"))[0, 2:].any()


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_noise_along_the_slices():
    shared = noise_along(5, (4, 8, 8), "shared", named_generator(0))
    assert all(torch.equal(shared[0], slice_) for slice_ in shared)
    independent = noise_along(5, (4, 64, 64), "independent", named_generator(0))
    assert abs(torch.corrcoef(independent.flatten(1))[0, 1]) < 0.03
    chain = noise_along(50, (4, 64, 64), "autoregressive", named_generator(0), 0.8)
    drawn = noise_along(50, (4, 64, 64), "independent", named_generator(0))
    slow = [drawn[0]]
    for z in range(1, 50):
        slow.append(0.8 * slow[-1] + 0.6 * drawn[z])
    assert torch.allclose(chain, torch.stack(slow), atol=1e-5)
    assert chain[-1].std() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(chain[[20, 21]].flatten(1))[0, 1] == pytest.approx(0.8, abs=0.02)
    assert torch.equal(
        noise_along(3, (2,), "autoregressive", named_generator("a", "b"), 1.0)[2],
        noise_along(1, (2,), "shared", named_generator("a", "b"))[0],
    )
    assert named_generator("a", "bc").initial_seed() != named_generator("ab", "c").initial_seed()
    for kind, correlation in (("white", 0.9), ("autoregressive", 1.5)):
        with pytest.raises(OptionError, match="expected one of shared, autoregressive, independent"):
            noise_along(2, (1,), kind, named_generator(0), correlation)


# ---- quality ---------------------------------------------------------------------------------------------------------


def test_borders_are_pixels_beside_another_label():
    labels = torch.randint(0, 2, (2, 6, 7))
    found = label_borders(labels)
    for d, i, j in np.ndindex(2, 6, 7):
        near = [(i + a, j + b) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)) if 0 <= i + a < 6 and 0 <= j + b < 7]
        assert found[d, i, j] == any(labels[d, i, j] != labels[d, a, b] for a, b in near)


def test_flat_slices_and_slices_without_the_labels_edges_are_rejected():
    labels = torch.zeros(4, 32, 32, dtype=torch.uint8)
    labels[:3, 8:24, 8:24] = 1
    noise = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    images = torch.stack((labels[0] * 0.5 + 0.1 * noise, noise, torch.full((32, 32), 0.4), noise))
    # the object is there; noise in its place; flat; nothing labelled
    assert rejected_slices(images, labels).tolist() == [False, True, True, False]


def test_stand_ins_keep_content_in_the_style_of_the_volume():
    random = torch.Generator().manual_seed(0)
    images, source = 0.2 + 0.1 * torch.rand(4, 8, 8, generator=random), torch.rand(4, 8, 8, generator=random)
    rejected = torch.tensor([False, True, False, False])
    made = replace_rejected(images, source, rejected)
    assert torch.equal(made[~rejected], images[~rejected])
    assert torch.corrcoef(torch.stack((made[1].flatten(), source[1].flatten())))[0, 1] > 0.999
    assert 0.1 < made[1].mean() < 0.4
    flicker = images.clone()
    flicker[2] += 0.5
    smooth = match_slices(flicker)
    assert (smooth.mean((1, 2)) - images.mean()).abs().max() < 0.02
    assert torch.allclose(match_slices(images[:1]), images[:1], atol=1e-6)


def test_names_of_views():
    assert view_names(["axial abdomen"], ["T1 MRI", "X-ray"]) == {
        "T1-MRI": "axial abdomen T1 MRI",
        "X-ray": "axial abdomen X-ray",
    }
    assert list(view_names(["a", "b"], ["T1", "T2"])) == ["a-T1", "a-T2", "b-T1", "b-T2"]
    with pytest.raises(OptionError, match="two or more views would be named 'T1-MRI'"):
        view_names(["a"], ["T1 MRI", "T1_MRI"])
