"""Registration: known ways are found, SimpleITK applies the fields, bad input is refused before anything is written."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import nn

from benchmarks.studies import registration as benchmark
from benchmarks.studies.registration_pairs import Organs, simulate
from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import MissingPackageError, OptionError, VolumeError, WeightsIncompatibleError
from nnunet_invariance.networks.planned import Architecture, unique_tensors
from nnunet_invariance.pretraining.methods.anatomix_networks import NETWORK_PRESETS
from nnunet_invariance.registration import convex_adam as ca
from nnunet_invariance.registration.affine import align_affine
from nnunet_invariance.registration.checkerboard import checkerboard
from nnunet_invariance.registration.fields import compose, jacobian, jacobian_statistics, to_field, warp
from nnunet_invariance.registration.network import load_feature_network, normalise_features, slide
from nnunet_invariance.registration.options import RegistrationOptions
from nnunet_invariance.registration.pipeline import Pair
from nnunet_invariance.registration.volumes import fill_outside, read_mask, read_volume, resample_to_grid, working_grid
from nnunet_invariance.weights.checkpoint import save_checkpoint
from nnunet_invariance.weights.comparison import SEGMENTATION
from tests.helpers import small_checkpoints

TURN = (0.0, -1.0, 0.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0)  # a direction that is no mirror and not the identity
TILT = sitk.VersorRigid3DTransform((1.0, 2.0, 0.5), 0.4)


def blobs(size=(32, 32, 32), seed=0, wave=2.5):
    """A smooth random image without period."""
    x = gaussian_filter(np.random.default_rng(seed).standard_normal(size), wave, mode="reflect")
    return (x / x.std()).astype(np.float32)


def image(x, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=None):
    result = sitk.GetImageFromArray(x)
    result.SetSpacing(spacing)
    result.SetOrigin(origin)
    if direction is not None:
        result.SetDirection(direction)
    return result


def saved(path, x, **geometry):
    sitk.WriteImage(image(x, **geometry), str(path))
    return path


def smooth_field(size=(32, 32, 32), seed=1, largest=2.5):
    noise = np.stack([blobs(size, seed + axis, 6.0) for axis in range(3)])
    return noise * largest / np.linalg.norm(noise, axis=0).max()


# --- ConvexAdam -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_along_each_axis_is_found_with_its_sign(axis):
    x = blobs((32, 34, 38))  # no two axes alike, none but the first a multiple of four
    fixed, moving = (torch.from_numpy(a)[None, None] for a in (x, np.roll(x, 2, axis)))
    u = ca.convex_adam(ca.mind_ssc(fixed), ca.mind_ssc(moving), ca.ConvexAdamOptions(grid=4, iterations=40))
    assert u.shape == (3, *x.shape)
    middle = u[:, 8:-8, 8:-8, 8:-8].mean((1, 2, 3))
    expected = torch.zeros(3)
    expected[axis] = 2
    assert (middle - expected).abs().max() < 0.25


def test_equal_images_stay_where_they_are():
    features = ca.mind_ssc(torch.from_numpy(blobs())[None, None])
    u = ca.convex_adam(features, features, ca.ConvexAdamOptions())
    assert u.abs().max() < 0.15  # not 0: Adam's first steps are whole ones, of rounding errors too


def test_costs_are_those_of_the_slow_loop():
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.standard_normal((1, 6, 4, 5, 6))).float() for _ in range(2))
    options = ca.ConvexAdamOptions(grid=1, search=1)
    cost = ca._costs(one, other, options, (4, 5, 6))
    padded = np.pad(other[0].numpy(), [(0, 0), (1, 1), (1, 1), (1, 1)])
    shifts = [(z, y, x) for z in range(3) for y in range(3) for x in range(3)]
    # The library numbers displacements with the last axis slowest in no place a caller sees: affine_grid says which.
    tried = torch.nn.functional.affine_grid(torch.eye(3, 4)[None], (1, 1, 3, 3, 3), align_corners=True).reshape(-1, 3)
    slow = {}
    for z, y, x in shifts:
        d = (one[0].numpy() - padded[:, z : z + 4, y : y + 5, x : x + 6]) ** 2
        smooth = torch.from_numpy(d.sum(0))[None, None]
        for _ in range(2):
            smooth = torch.nn.functional.avg_pool3d(smooth, 3, stride=1, padding=1)
        slow[(z - 1, y - 1, x - 1)] = smooth[0, 0]
    for k, displacement in enumerate(tried.round().int().tolist()):
        torch.testing.assert_close(cost[k], slow[tuple(displacement)], rtol=1e-4, atol=1e-4)


def test_the_regulariser_smooths():
    x = blobs()
    moved = map_coordinates(x, np.indices(x.shape) + smooth_field(), order=1, mode="nearest")
    features = [ca.mind_ssc(torch.from_numpy(a.astype(np.float32))[None, None]) for a in (moved, x)]
    rough = [
        float(ca.convex_adam(*features, ca.ConvexAdamOptions(smoothness=w, iterations=30)).diff(dim=1).square().mean())
        for w in (0.0, 10.0)
    ]
    assert rough[1] < rough[0] / 2


def test_settings_out_of_range_are_refused():
    with pytest.raises(OptionError, match="grid is 0; expected a whole number of at least 1"):
        ca.ConvexAdamOptions(grid=0)
    with pytest.raises(OptionError, match="smoothness is -1"):
        ca.ConvexAdamOptions(smoothness=-1)
    for changes in ({"features": "mnid"}, {"ct": "fixde"}, {"spacing": 0}, {"spacing": float("nan")}):
        with pytest.raises(OptionError, match=f"The registration option {next(iter(changes))} is"):
            RegistrationOptions(**changes)


def test_a_missing_library_is_named(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'convexAdam'", name="convexAdam")

    monkeypatch.setattr(ca.importlib, "import_module", absent)
    with pytest.raises(MissingPackageError, match="pip install"):
        ca.library()


# --- Fields -----------------------------------------------------------------------------------------------------------


def test_a_field_moves_points_as_the_voxels_say():
    grid = image(np.zeros((8, 9, 10), np.uint8), (1.5, 2.0, 0.5), (3, -4, 5), TURN)
    u = np.zeros((3, 8, 9, 10))
    u[0], u[1], u[2] = 1, -2, 0.5  # voxels along z, y, x
    field = to_field(u, grid)
    at = (4, 4, 3)  # x, y, z
    moved = np.add(grid.TransformIndexToPhysicalPoint(at), field[at])
    expected = grid.TransformContinuousIndexToPhysicalPoint((4.5, 2.0, 4.0))
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_the_whole_way_is_the_affine_map_after_the_deformation():
    grid = image(np.zeros((16, 16, 16), np.uint8), direction=TURN)
    field = to_field(smooth_field((16, 16, 16)), grid)
    whole = compose(field, TILT, grid)
    for index in ((3, 4, 5), (0, 0, 0), (15, 2, 15)):
        point = np.array(grid.TransformIndexToPhysicalPoint(index))
        expected = TILT.TransformPoint((point + field[index]).tolist())
        np.testing.assert_allclose(point + whole[index], expected, atol=1e-6)


@pytest.mark.parametrize("direction", [None, TURN, TILT.GetMatrix()])
def test_the_jacobian_of_a_linear_map_is_its_determinant(direction):
    grid = image(np.zeros((12, 12, 12), np.uint8), (1.0, 1.5, 2.0), (1, 2, 3), direction)
    matrix = np.array([[1.1, 0.2, 0.0], [-0.1, 0.9, 0.3], [0.0, 0.1, 1.2]])
    affine = sitk.AffineTransform(matrix.ravel().tolist(), (1.0, 2.0, 3.0))
    determinant = jacobian(compose(to_field(np.zeros((3, 12, 12, 12)), grid), affine, grid))
    np.testing.assert_allclose(determinant[2:-2, 2:-2, 2:-2], np.linalg.det(matrix), rtol=1e-4)


def test_folded_voxels_are_counted():
    u = np.zeros((3, 16, 16, 16))
    u[2] = -1.5 * np.arange(16)  # x -> -0.5 x: everything is turned over
    grid = image(np.zeros((16, 16, 16), np.uint8))
    statistics = jacobian_statistics(jacobian(to_field(u, grid))[2:-2, 2:-2, 2:-2])
    assert statistics["folded_share"] == 1
    assert statistics["median"] == pytest.approx(-0.5)


# --- Volumes ----------------------------------------------------------------------------------------------------------


def test_the_working_grid_has_isotropic_voxels_and_the_same_centre():
    fixed = image(np.zeros((20, 60, 50), np.float32), (0.5, 0.8, 4.0), (7, -3, 2), TURN)
    grid = working_grid(fixed)
    assert len(set(np.round(grid.GetSpacing(), 6))) == 1
    assert np.prod(grid.GetSize()) == pytest.approx(20 * 60 * 50, rel=0.05)
    centres = [i.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in i.GetSize()]) for i in (fixed, grid)]
    np.testing.assert_allclose(*centres, atol=1e-6)
    extents = [np.multiply(i.GetSize(), i.GetSpacing()) for i in (fixed, grid)]
    assert np.abs(extents[0] - extents[1]).max() <= grid.GetSpacing()[0] / 2 + 1e-6
    with pytest.raises(VolumeError, match="Choose a finer --spacing"):
        working_grid(fixed, 5.0)


def test_beyond_the_image_the_nearest_voxel_goes_on():
    x = np.arange(27.0).reshape(3, 3, 3)
    inside = np.zeros((3, 3, 3), bool)
    inside[1, 1, 1] = True
    assert (fill_outside(x, inside) == 13).all()
    small = image(blobs((16, 16, 16)))
    large = image(np.zeros((16, 16, 24), np.float32))
    values, kept = resample_to_grid(small, None, large, sitk.Transform(3, sitk.sitkIdentity))
    assert not kept[..., 16:].any()
    np.testing.assert_allclose(values[..., 16:], values[..., 15:16].repeat(8, -1))
    with pytest.raises(VolumeError, match="No part of the moving image"):
        resample_to_grid(small, None, large, sitk.TranslationTransform(3, (100.0, 0.0, 0.0)))


def test_affine_maps_are_found_across_contrasts():
    fixed = blobs((48, 48, 48), wave=4)
    shift = sitk.TranslationTransform(3, (2.0, -1.5, 1.0))
    moving = sitk.Resample(image(np.exp(-fixed)), shift.GetInverse())
    found = align_affine(image(fixed), moving)
    point = (24.0, 23.0, 22.0)
    assert np.linalg.norm(np.subtract(found.TransformPoint(point), shift.TransformPoint(point))) < 0.5


def test_an_implausible_affine_map_is_dropped_with_a_warning(monkeypatch, caplog):
    def run_away(start, *arguments):
        start.SetTranslation((20.0, 0.0, 0.0))
        return start

    monkeypatch.setattr("nnunet_invariance.registration.affine._optimise", run_away)
    found = align_affine(image(blobs()), image(blobs()))
    assert found.TransformPoint((3.0, 4.0, 5.0)) == pytest.approx((3, 4, 5))
    assert "loses 62% of the overlap" in caplog.text


# --- Features of a network --------------------------------------------------------------------------------------------


def test_windows_do_not_change_what_a_local_network_says():
    layer = nn.Conv3d(1, 3, 1)
    x = torch.from_numpy(blobs((20, 33, 17)))[None, None]
    with torch.no_grad():
        found = slide(lambda window: [layer(window)], x, (16, 16, 32))
        torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5)


def test_features_ignore_scale_and_offset_of_the_intensities(tmp_path):
    network = load_feature_network(small_checkpoints.write(tmp_path / "w.safetensors"), torch.device("cpu"))
    x = torch.from_numpy(blobs((32, 32, 40)))[None, None]
    features = network(x)
    assert features.shape == (1, 4, 32, 32, 40)
    assert not network.network.training
    torch.testing.assert_close(features.square().sum(1), torch.ones(1, 32, 32, 40), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(network(3 * x + 50), features, rtol=1e-2, atol=1e-2)
    again = normalise_features(7 * features + 2)
    torch.testing.assert_close(again, normalise_features(features), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrained": ["encoder"]}, "a decoder that was not pre-trained"),
        ({"normalization_schemes": ["NoNormalization"]}, "the normalisation NoNormalization"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path, changes, words):
    path = small_checkpoints.write(tmp_path / "w.safetensors", **changes)
    with pytest.raises(WeightsIncompatibleError, match=words):
        load_feature_network(path, torch.device("cpu"))
    two = small_checkpoints.write(tmp_path / "two.safetensors", small_checkpoints.architecture(channels=2))
    with pytest.raises(WeightsIncompatibleError, match="for 2 channels"):
        load_feature_network(two, torch.device("cpu"))


# --- The verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two contrasts of one scene, moved by a known field; the moving one on a finer, turned grid of its own."""
    folder = tmp_path_factory.mktemp("pair")
    scene, u = blobs((48, 48, 48), wave=3), smooth_field((48, 48, 48), largest=3)
    fixed = map_coordinates(scene, np.indices(scene.shape) + u, order=1, mode="nearest")
    saved(folder / "fixed.nii.gz", fixed.astype(np.float32))
    moving = np.exp(-scene)
    reference = sitk.Image([60, 60, 60], sitk.sitkFloat32)
    reference.SetSpacing([0.8] * 3)
    reference.SetDirection(TURN)
    corner = np.subtract((23.5, 23.5, 23.5), np.reshape(TURN, (3, 3)) @ np.full(3, 29.5 * 0.8))
    reference.SetOrigin(corner.tolist())
    sitk.WriteImage(sitk.Resample(image(moving), reference), str(folder / "moving.nii.gz"))
    saved(folder / "mask.nii.gz", (np.abs(np.indices(scene.shape) - 24).max(0) < 20).astype(np.uint8))
    return folder, u


@pytest.mark.integration
def test_register_finds_a_known_way_between_two_contrasts(files, tmp_path, capsys):
    folder, u = files
    out = tmp_path / "out"
    command = ["register", str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz"), str(out), "--features", "mind"]
    assert main([*command, "--no-affine"]) == 0
    assert {f.name for f in out.iterdir()} == {
        "warped.nii.gz",
        "displacement.nii.gz",
        "registration.json",
        "checkerboard.png",
    }
    field = sitk.ReadImage(str(out / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    found = np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)[::-1]
    inner = (slice(None), *[slice(8, -8)] * 3)
    before, after = (np.linalg.norm((v - u)[inner], axis=0).mean() for v in (0 * u, found))
    assert after < 0.6 * before
    # The file alone, applied by SimpleITK alone, gives the warped image.
    fixed, moving = (sitk.ReadImage(str(folder / f"{n}.nii.gz"), sitk.sitkFloat32) for n in ("fixed", "moving"))
    warped = sitk.ReadImage(str(out / "warped.nii.gz"))
    assert warped.GetSize() == fixed.GetSize()
    low = float(sitk.GetArrayViewFromImage(moving).min())
    again = sitk.Resample(moving, fixed, sitk.DisplacementFieldTransform(field), sitk.sitkLinear, low)
    np.testing.assert_allclose(*(sitk.GetArrayFromImage(i) for i in (again, warped)), atol=1e-3)
    record = json.loads((out / "registration.json").read_text())
    assert record["jacobian"]["folded_share"] == 0
    assert record["affine"] is None
    assert "folded: 0.000%" in capsys.readouterr().out


@pytest.mark.integration
def test_register_with_a_network_and_masks(files, tmp_path):
    folder, _ = files
    weights = small_checkpoints.write(tmp_path / "w.safetensors")
    command = ["register", str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz"), str(tmp_path / "out")]
    mask = str(folder / "mask.nii.gz")
    extra = ["--weights", str(weights), "--spacing", "2", "--fixed-mask", mask, "--moving-mask", mask]
    assert main([*command, *extra]) == 0
    record = json.loads((tmp_path / "out/registration.json").read_text())
    assert record["features"] == "both"
    assert record["working_spacing_mm"] == 2
    assert np.shape(record["affine"]) == (4, 4)


@pytest.mark.integration
def test_register_with_stock_weights_in_the_form_they_ship_in(files, tmp_path):
    preset = NETWORK_PRESETS["plain4"]
    planned = Architecture.from_plans(preset.architecture, 1, 1)
    tensors = {f"network.{name}": t.half() for name, t in unique_tensors(planned.build()).items()}
    tensors = {name: t for name, t in tensors.items() if SEGMENTATION not in name}
    facts = {"method": "anatomix", "patch_size": [32] * 3}
    save_checkpoint(tmp_path / "w.safetensors", tensors, small_checkpoints.metadata(planned, **facts))
    pair = [str(files[0] / f"{name}.nii.gz") for name in ("fixed", "moving")]
    command = ["register", *pair, str(tmp_path / "out"), "--features", "anatomix", "--spacing", "2", "--no-affine"]
    assert main([*command, "--weights", str(tmp_path / "w.safetensors")]) == 0
    assert json.loads((tmp_path / "out/registration.json").read_text())["features"] == "anatomix"


def test_register_without_weights_names_the_way_without(files, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NNUNET_INVARIANCE_CHECKPOINT", raising=False)
    monkeypatch.setattr("nnunet_invariance.registration.network.find_shipped", lambda method: None)
    folder, _ = files
    pair = [str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")]
    assert main(["register", *pair, str(tmp_path / "out"), "--features", "anatomix"]) == 2
    assert "--features mind" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def bad_volumes(folder):
    x = blobs()
    x[3, 4, 5] = np.nan
    yield saved(folder / "nan.nii.gz", x), "1 voxels that are NaN or infinite"
    yield saved(folder / "flat.nii.gz", np.full((20, 20, 20), 7, np.float32)), "every voxel is 7"
    yield saved(folder / "slice.nii.gz", blobs((32, 32))), "found 2 dimensions"
    yield saved(folder / "thin.nii.gz", blobs((3, 32, 32))), "found 32 x 32 x 3 voxels"
    yield folder / "missing.nii.gz", "There is no image"
    (folder / "text.nii.gz").write_text("not an image")
    yield folder / "text.nii.gz", "cannot be read as an image"


def test_bad_volumes_are_refused_and_nothing_is_written(files, tmp_path, capsys):
    folder, _ = files
    for path, words in bad_volumes(tmp_path):
        command = ["register", str(folder / "fixed.nii.gz"), str(path), str(tmp_path / "out"), "--features", "mind"]
        assert main(command) == 2, path
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", [["register", "A.nii.gz", "B.nii.gz"], ["probe", "4", "3d_fullres", "-device", "cpu", "--out"]]
)
def test_an_output_folder_that_cannot_be_made_is_named_before_the_input_is_read(tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    assert main([*command, str(tmp_path / "file" / "out")]) == 2
    assert f"cannot be made: {tmp_path / 'file'} is a file" in capsys.readouterr().err


def test_masks_without_a_voxel_are_refused(files, tmp_path):
    folder, _ = files
    fixed = read_volume(folder / "fixed.nii.gz")
    with pytest.raises(VolumeError, match="no voxel is above 0"):
        read_mask(saved(tmp_path / "empty.nii.gz", np.zeros((48, 48, 48), np.uint8)), fixed)
    far = saved(tmp_path / "far.nii.gz", np.ones((20, 20, 20), np.uint8), origin=(500, 0, 0))
    with pytest.raises(VolumeError, match="none of it lies inside"):
        read_mask(far, fixed)


def test_checkerboard_takes_each_image_in_turn():
    board = checkerboard(np.zeros((8, 8)), np.ones((8, 8)), squares=4)
    assert board.mean() == 0.5
    np.testing.assert_array_equal(board[:2, :6], [[0, 0, 1, 1, 0, 0]] * 2)


@pytest.mark.integration
def test_one_simulated_pair_is_recovered_better_than_by_the_affine_map():
    simulated = simulate(48, seed=0)
    start = simulated.start()
    table = benchmark.methods(None, "cpu")
    affine, mind = (simulated.judge(table[name](simulated.pair, start)) for name in ("affine", "mind, smoother"))
    assert mind["error"] < affine["error"]
    assert mind["dice"] > affine["dice"]


def test_organs_of_two_maps_are_scored_by_their_numbers():
    x = blobs((20, 20, 20))
    fixed, moving = (image((values * (x > 0)).astype(np.uint8)) for values in (3, 5))
    pair = Pair(image(x), image(x))
    organs = Organs(pair, fixed, moving, {"organ": (5, 3)})
    still = to_field(np.zeros((3, 20, 20, 20)), fixed)
    assert organs.judge(still) == {"organ": 1, "dice": 1, "folded": 0}
    shifted = to_field(np.full((3, 20, 20, 20), [[[[2.0]]], [[[0.0]]], [[[0.0]]]]), fixed)
    expected = 2 * ((x > 0)[:-2] & (x > 0)[2:]).sum() / ((x > 0).sum() + (x > 0)[2:].sum())
    assert organs.judge(shifted)["organ"] == pytest.approx(expected)


@pytest.mark.integration
def test_a_run_goes_on_after_the_pairs_that_are_written(tmp_path, monkeypatch):
    out, begun, made = tmp_path / "r.json", [], simulate(32, 0)

    def seen(size, seed):
        begun.append(seed)
        return made

    quick = {
        "none": benchmark.methods(None, "cpu")["none"],
        "intensity MI, none": benchmark.methods(None, "cpu")["affine"],
    }
    monkeypatch.setattr(benchmark, "simulate", seen)
    monkeypatch.setattr(benchmark, "methods", lambda network, device: quick)
    for pairs in (2, 3):
        monkeypatch.setattr("sys.argv", ["registration", "--pairs", str(pairs), "--size", "32", "--out", str(out)])
        benchmark.main()
    assert begun == [0, 1, 2]
    content = json.loads(out.read_text())
    assert content["pairs"] == 3
    assert content["not_run"] == []
    assert list(content["paired_difference"]) == ["none minus intensity MI, none"]


def test_labels_are_warped_by_the_nearest_voxel():
    labels = image((blobs() > 0).astype(np.uint8))
    field = to_field(smooth_field(), labels)
    assert set(np.unique(sitk.GetArrayFromImage(warp(labels, field, sitk.sitkNearestNeighbor)))) <= {0, 1}
