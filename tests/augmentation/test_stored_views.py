"""Stored views in training: drawn as often as asked, in place, refused where another preprocessing made them."""

import copy
import json
import shutil
from fractions import Fraction

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_invariance.augmentation.interventions import INTERVENTIONS
from nnunet_invariance.augmentation.stored_views import (
    DatasetWithViews,
    WithView,
    _repeated,
    read_index,
    views_folder,
)
from nnunet_invariance.diffusion.preprocess import preprocess_view
from nnunet_invariance.diffusion.volumes import RawDataset
from nnunet_invariance.errors import NotPreprocessedError, OptionError, ShapeError, StyleFolderError
from nnunet_invariance.losses.info_nce import PatchInfoNCE
from nnunet_invariance.networks.heads.projection import gather_positions, sample_positions
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.nnunet.preprocessing_fingerprint import preprocessing_fingerprint
from nnunet_invariance.plans.block import read_options
from nnunet_invariance.plans.style_options import ICMSegTrainerOptions
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import log_of, make_trainer, started, with_views

pytestmark = pytest.mark.usefixtures("results")

MARK = 50.0  # what views of the tests are brighter by


@pytest.fixture
def stored(tiny):
    """Two views of every case: the case itself, brighter by 50 and by 100."""
    folder = tiny.preprocessed / tiny.name / "nnUNetPlans_3d_fullres"
    cases = nnUNetDatasetBlosc2(str(folder))
    target = views_folder(folder)
    target.mkdir()
    for case in cases.identifiers:
        image = cases.load_case(case)[0][:]
        for factor, view in enumerate(("T1", "T2"), 1):
            blosc2.asarray(image + factor * MARK, urlpath=str(target / f"{case}__{view}.b2nd"))
    manager = PlansManager(tiny.plans)
    index = {
        "preprocessing": preprocessing_fingerprint(manager, manager.get_configuration("3d_fullres")),
        "views": {case: {"T1": [0, 0], "T2": [0, 0]} for case in cases.identifiers},
    }
    (target / "views.json").write_text(json.dumps(index))
    yield target
    shutil.rmtree(target)


# ---- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.5, 1.0])
def test_each_case_stays_as_likely_and_its_views_are_as_likely_as_asked(probability):
    class Cases:
        identifiers = ("a", "b", "c")

    views = {"a": ["x", "y"], "b": ["x", "y", "z"]}
    dataset = DatasetWithViews(Cases(), None, views, probability)
    drawn, counts = np.unique(dataset.identifiers, return_counts=True)
    chance = dict(zip(drawn.tolist(), (counts / counts.sum()).tolist(), strict=True))
    assert chance["c"] == pytest.approx(1 / 3)
    for case, names in views.items():
        assert chance.get(case, 0) == pytest.approx((1 - probability) / 3)
        for name in names:
            assert chance.get(f"{case}__{name}", 0) == pytest.approx(probability / 3 / len(names))


def test_a_case_without_any_view_anywhere():
    assert set(_repeated(["a", "b"], {}, Fraction(1, 2))) == {"a", "b"}


def test_a_case_with_its_view_is_cropped_as_one_image():
    image, view = np.random.default_rng(0).random((2, 2, 6, 7, 8)).astype(np.float32)
    joined, both = WithView(image, view), np.concatenate((image, view))
    assert joined.shape == both.shape
    for box in ([[0, 4], [1, 5], [2, 8]], [[-3, 4], [1, 9], [2, 12]]):
        assert np.array_equal(crop_and_pad_nd(joined, box, 0), crop_and_pad_nd(both, box, 0))


# ---- training --------------------------------------------------------------------------------------------------------


def test_views_come_into_the_batch_in_place_and_only_as_second_views(tiny, stored):
    trainer, batch = started(tiny, "ICMSegTrainer", views_probability=1.0)
    cases = len(trainer.do_split()[0])
    assert f"{2 * cases} stored views of {cases} training cases, used with probability 1" in log_of(trainer)
    assert all(str(key).endswith(("__T1", "__T2")) for key in batch["keys"])
    moved = with_views(trainer, batch)
    views = moved["views"]
    inside = views.valid_mask > 0
    lifted = torch.tensor([MARK * (1 + str(key).endswith("T2")) for key in batch["keys"]])
    for row in range(2):
        assert views.clean[row][inside[row]].mean().abs() < 5
        assert views.first[row][inside[row]].mean().abs() < 10
        assert views.second[row][inside[row]].mean() > 0.5 * lifted[row]
    styled = trainer.style_view(moved, 2)
    assert torch.equal(styled, views.second)  # no intervention on top
    losses = trainer.train_step(batch)
    assert all(np.isfinite(value) for value in losses.values())


def test_plain_samples_of_a_batch_get_an_intervention(tiny, stored):
    trainer, batch = started(tiny, "ICMSegTrainer", views_probability=0.5, style="clusters")
    moved = with_views(trainer, batch)
    case = str(moved["keys"][0]).split("__")[0]
    moved["keys"] = np.array([f"{case}__T1", case])
    styled, second = trainer.style_view(moved, 2), moved["views"].second
    assert torch.equal(styled[0], second[0])
    assert not torch.allclose(styled[1], second[1], atol=0.1)


def test_a_view_lies_where_its_case_lies(tiny, stored):
    trainer, _ = started(tiny, "ICMSegTrainer", views_probability=1.0)
    dataset = trainer.dataloader_train.data_loader.loader._data
    key = str(dataset.identifiers[0])
    image, seg, _, properties = dataset.load_case(key)
    own = dataset.cases.load_case(dataset.of_view[key])[0][:]
    box = (slice(None), slice(3, 9), slice(0, 7), slice(5, 12))
    assert np.array_equal(image[box][:1], own[box])
    assert np.allclose(image[box][1:], own[box] + MARK * (1 + key.endswith("T2")))
    assert seg.shape[1:] == image.shape[1:]
    assert properties["class_locations"]


@pytest.mark.slow
def test_an_epoch_with_views_and_validation_without(tiny, stored):
    trainer = make_trainer(tiny, "ICMSegTrainer_1epoch", seed=1, views_probability=0.5)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_total", -1))
    assert isinstance(trainer.dataloader_val.data_loader.loader._data, nnUNetDatasetBlosc2)
    trainer, _ = started(tiny, "ICMSegTrainer", views_probability=0.0)
    assert trainer.stored == frozenset()


def test_views_that_are_missing_broken_or_of_another_preprocessing(tiny, stored):
    index = json.loads((stored / "views.json").read_text())
    case = next(iter(index["views"]))
    (stored / f"{case}__T1.b2nd").rename(stored / "away")
    with pytest.raises(StyleFolderError, match=f"lacks 1 views: {case}__T1. Run style preprocess"):
        started(tiny, "ICMSegTrainer", views_probability=0.5)
    (stored / "away").rename(stored / f"{case}__T1.b2nd")
    plans = copy.deepcopy(cut_down(tiny.plans, "nnUNetPlans", iterations_per_epoch=1, val_iterations_per_epoch=1))
    entry = plans["configurations"]["3d_fullres"]
    entry["nnunet_invariance"]["views_probability"] = 0.5
    entry["normalization_schemes"] = ["RescaleTo01Normalization"]
    with pytest.raises(StyleFolderError, match=r"were preprocessed in another way.*Move .*_styleviews away"):
        make_trainer(tiny, "ICMSegTrainer", plans).on_train_start()
    (stored / "views.json").unlink()
    with pytest.raises(StyleFolderError, match=r"contains no views\.json, but 'views_probability' is not 0"):
        started(tiny, "ICMSegTrainer", views_probability=0.5)
    with pytest.raises(StyleFolderError, match=r"style preprocess FOLDER"):
        read_index(stored, "")


def test_the_hash_is_of_what_preprocessing_depends_on(tiny):
    def of(**changes):
        plans = copy.deepcopy(tiny.plans)
        plans["configurations"]["3d_fullres"].update(changes)
        manager = PlansManager(plans)
        return preprocessing_fingerprint(manager, manager.get_configuration("3d_fullres"))

    assert of() == of(batch_size=7, patch_size=[8, 8, 8], data_identifier="other")
    for change in (
        {"spacing": [1, 1, 2]},
        {"normalization_schemes": ["NoNormalization"]},
        {"use_mask_for_norm": [True]},
    ):
        assert of() != of(**change)


# ---- preprocessing of views ------------------------------------------------------------------------------------------


def planned_with(tiny, folder, transpose, masked, spacing):
    plans = copy.deepcopy(tiny.plans)
    plans.update(transpose_forward=transpose, transpose_backward=np.argsort(transpose).tolist())
    plans["configurations"]["3d_fullres"].update(use_mask_for_norm=[masked], spacing=spacing)
    manager = PlansManager(plans)
    dataset_json = json.loads((tiny.raw / tiny.name / "dataset.json").read_text())
    return PlannedDataset(
        tiny.name, manager, "3d_fullres", manager.get_configuration("3d_fullres"), dataset_json, folder, folder
    )


@pytest.mark.parametrize("masked", [False, True])
def test_a_view_equal_to_its_source_becomes_what_nnunet_made_of_the_source(tiny, tmp_path, masked):
    """Axes turned, a zero margin to be cropped, a mask for the normalisation, another spacing."""
    planned = planned_with(tiny, tmp_path / "cases", [2, 0, 1], masked, [1.3, 1.0, 0.9])
    (tmp_path / "cases").mkdir()
    image = np.random.default_rng(0).normal(100, 20, (20, 24, 28)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[8:12, 8:12, 8:14] = 1
    image[:4], image[:, 20:], image[:, :, :3] = 0, 0, 0
    image[4:7, :5] = 0  # a mask that is no box
    files = [tmp_path / name for name in ("source.nii.gz", "labels.nii.gz", "view.nii.gz")]
    for file, array in zip(files, (image, labels, image), strict=True):
        sitk.WriteImage(sitk.GetImageFromArray(array), file)
    worker = DefaultPreprocessor(verbose=False)
    target = str(tmp_path / "cases/case")
    worker.run_case_save(
        target, [str(files[0])], str(files[1]), planned.plans, planned.configuration, planned.dataset_json
    )
    raw = RawDataset(tiny.name, planned.dataset_json, {"case": (files[0], files[1])}, 3)
    expected = nnUNetDatasetBlosc2(str(tmp_path / "cases"), ["case"]).load_case("case")[0][:]
    assert np.allclose(preprocess_view(files[2], "case", raw, planned), expected, atol=1e-4)
    # a background that is not zero does not move the box
    sitk.WriteImage(sitk.GetImageFromArray(image + 3), files[2])
    moved = preprocess_view(files[2], "case", raw, planned)
    assert moved.shape == expected.shape
    sitk.WriteImage(sitk.GetImageFromArray(image[1:]), files[2])
    with pytest.raises(
        ShapeError, match=r"view\.nii\.gz has shape \(28, 19, 24\) before cropping; expected \(28, 20, 24\)"
    ):
        preprocess_view(files[2], "case", raw, planned)
    with pytest.raises(NotPreprocessedError, match="contains no case other"):
        preprocess_view(files[2], "other", raw, planned)


# ---- forms of the contrast -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", ["all_positions", "within_image", "same_position"])
@pytest.mark.parametrize("label_mask", ["none", "exclude_same_class", "supcon"])
def test_forms_of_the_contrast_reach_the_loss(tiny, contrast, label_mask):
    options = {"aux_weight": 0.1, "contrast": contrast, "label_mask": label_mask, "num_positions": 50, "stages": [1]}
    trainer, batch = started(tiny, "ICMSegTrainer", **options)
    moved = with_views(trainer, batch)
    generator = torch.Generator().manual_seed(0)
    maps = [[torch.randn(2, c, *[n] * 3, generator=generator) for c, n in ((8, 32), (16, 16))] for _ in range(2)]
    state = trainer.generator.get_state()
    found = trainer.aux_losses(*maps, moved)["info_nce"]

    replay = torch.Generator()
    replay.set_state(state)
    if contrast == "same_position":
        replay = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=replay)))
    index, counts = sample_positions(moved["valid_mask"], (16, 16, 16), 50, replay, contrast == "same_position")
    if contrast == "same_position":
        assert torch.equal(index[0], index[1])
    else:
        assert not torch.equal(index[0], index[1])
    labels = None
    if label_mask != "none":
        full = batch["target"][0][:, 0]
        labels = torch.stack(
            [
                torch.stack(
                    [full[b, 2 * (i // 256) + 1, 2 * (i // 16 % 16) + 1, 2 * (i % 16) + 1] for i in index[b].tolist()]
                )
                for b in range(2)
            ]
        )
    head = trainer.aux["projection_1"]
    rows = [head(gather_positions(m[1], index)) for m in maps]
    expected = PatchInfoNCE(0.2, contrast, label_mask)(*rows, counts, labels)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found > 0


def test_shared_positions_are_those_that_any_sample_sees():
    content = torch.zeros(2, 1, 4, 4)
    content[0, :, :2], content[1, :, 1:3] = 1, 1
    index, counts = sample_positions(content, (4, 4), 16, torch.Generator().manual_seed(0), shared=True)
    assert torch.equal(index[0], index[1])
    for row, rows in ((0, {0, 1}), (1, {1, 2})):
        assert counts[row].tolist() == [int(i) // 4 in rows for i in index[row]]
    first = sample_positions(content, (4, 4), 8, torch.Generator().manual_seed(0))
    assert all(int(i) // 4 in {0, 1} for i in first.indices[0][first.valid_mask[0]])


def test_new_options_and_their_wrong_values():
    options = ICMSegTrainerOptions()
    assert (options.contrast, options.label_mask, options.views_probability) == ("all_positions", "none", 0.0)
    for field, value, expected in (
        ("contrast", "patches", "one of 'all_positions', 'within_image', 'same_position'"),
        ("label_mask", "all", "one of 'none', 'exclude_same_class', 'supcon'"),
        ("views_probability", 1.5, r"\[0, 1\]"),
    ):
        with pytest.raises(OptionError, match=f"'{field}'.*expected .*{expected}"):
            read_options(ICMSegTrainerOptions, {"nnunet_invariance": {field: value}})
    assert "views" not in INTERVENTIONS
