"""The demo: data from which two classes can be learnt, a folder that is only its own, and the whole of it."""

import argparse
import importlib
import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.demo.data import LABELS, MODALITIES, make_case, make_modalities, write_dataset, write_modalities
from nnunet_invariance.demo.folder import OWN_FOLDERS, empty, environment
from nnunet_invariance.demo.run import DEMOS, run_demo
from nnunet_invariance.demo.steps import Demo, pretrain, pretraining_folder
from nnunet_invariance.errors import OutputError
from nnunet_invariance.evaluation.report.style_pictures import draw_interventions

PRETRAINING = {"PRETRAINING_EPOCHS": 1, "PRETRAINING_ITERATIONS": 2}
TRAINING = {"EPOCHS": 1, "ITERATIONS": 2}
TRANSLATION = {"TRANSLATION_EPOCHS": 1, "TRANSLATION_ITERATIONS": 2}


@pytest.mark.integration
def test_cases_are_the_same_for_a_seed_and_hold_both_classes():
    for seed in range(20):
        image, labels = make_case(np.random.default_rng(seed))
        again = make_case(np.random.default_rng(seed))
        assert np.array_equal(image, again[0])
        assert np.array_equal(labels, again[1])
        assert image.shape == labels.shape
        assert all(38 <= n < 45 for n in image.shape)
        assert set(np.unique(labels)) == set(LABELS.values())
        assert 0.005 < (labels == 2).mean() < (labels == 1).mean() < 0.2


def test_the_core_lies_in_the_organ():
    for seed in range(20):
        _, labels = make_case(np.random.default_rng(seed))
        neighbours = np.ones(labels.shape, dtype=bool)
        for axis in range(3):
            for step in (-1, 1):
                neighbours &= np.roll(labels, step, axis) > 0
        assert neighbours[labels == 2].mean() > 0.97


@pytest.mark.integration
def test_contrast_comes_in_any_order_and_is_above_the_noise():
    """The core is darker in some cases and brighter in others, and mostly by more than three sd of the noise (6)."""
    orders, gaps = set(), []
    for seed in range(60):
        image, labels = make_case(np.random.default_rng(seed))
        means = [np.median(image[labels == label]) for label in (1, 2)]
        orders.add(means[0] < means[1])
        gaps.append(abs(means[0] - means[1]))
    assert orders == {True, False}
    assert np.median(gaps) > 3 * 6


def test_given_levels_are_the_contrast():
    for seed in range(5):
        image, labels = make_case(np.random.default_rng(seed), (20, 70, 110, 150, 200))
        assert np.array_equal(labels, make_case(np.random.default_rng(seed))[1])
        for label, level in ((1, 150), (2, 200)):
            assert abs(np.median(image[labels == label]) - level) < 0.15 * level


@pytest.mark.integration
def test_interventions_are_drawn_on_the_slice_and_repeat():
    image, labels = make_case(np.random.default_rng(0))
    first, again, other = (
        draw_interventions(image, labels, seed, draws=2, styles=("gin", "gmm")) for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first.startswith(b"\x89PNG")


@pytest.mark.integration
def test_the_data_set_is_in_the_layout_of_nnunet(tmp_path):
    write_dataset(tmp_path / "raw", 3, 2, unlabelled=(tmp_path / "unlabelled", 1))
    dataset = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert dataset["numTraining"] == 3
    for kind, cases in (("Tr", range(3)), ("Ts", range(3, 5))):
        assert sorted(p.name for p in (tmp_path / f"raw/images{kind}").iterdir()) == [
            f"case_{i:03d}_0000.nii.gz" for i in cases
        ]
        for i in cases:
            image = sitk.ReadImage(tmp_path / f"raw/images{kind}/case_{i:03d}_0000.nii.gz")
            labels = sitk.ReadImage(tmp_path / f"raw/labels{kind}/case_{i:03d}.nii.gz")
            assert image.GetSize() == labels.GetSize()
    assert [p.name for p in (tmp_path / "unlabelled").iterdir()] == ["case_005_0000.nii.gz"]


@pytest.mark.integration
def test_modalities_follow_from_the_same_tissues_and_some_are_missing(tmp_path):
    images, labels = make_modalities(np.random.default_rng(0))
    for image, table in zip(images, MODALITIES.values(), strict=True):
        for label, intensity in ((1, table[3]), (2, table[4])):
            assert np.median(image[labels == label]) == pytest.approx(intensity, rel=0.12)
    write_modalities(tmp_path, 6, 1, seed=0)
    empty_slots = [
        path.name
        for path in sorted((tmp_path / "imagesTr").iterdir())
        if not np.any(sitk.GetArrayFromImage(sitk.ReadImage(path)))
    ]
    assert empty_slots == ["case_002_0000.nii.gz", "case_005_0001.nii.gz"]
    assert [p.name for p in sorted((tmp_path / "imagesTs").iterdir())] == [f"case_006_{c:04d}.nii.gz" for c in range(3)]


def test_an_earlier_demo_is_replaced_and_anything_else_is_left_alone(tmp_path):
    for name in OWN_FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    empty(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "nnUNet_raw").mkdir()
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(OutputError, match=r"contains thesis\.docx, which no demo has made.*--out"):
        empty(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nnUNet_raw", "thesis.docx"]
    with pytest.raises(OutputError, match=r"thesis\.docx is a file"):
        empty(tmp_path / "thesis.docx")


def test_the_environment_comes_back(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", "mine")
    monkeypatch.delenv("nnUNet_nps", raising=False)
    before = dict(os.environ)
    with environment(tmp_path):
        assert os.environ["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
        assert os.environ["nnUNet_nps"] == "0"
    assert dict(os.environ) == before


def test_every_demo_says_how_many_steps_it_has_and_what_it_draws():
    for name in DEMOS.values():
        demo = importlib.import_module(name)
        assert demo.STEPS > 1
        assert callable(demo.run)
        assert callable(demo.draw)


def test_the_commands_for_other_data_are_valid():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb")
    for verb in ("pretrain", "doctor", "complete", "evaluate"):
        importlib.import_module(f"nnunet_invariance.cli.{verb}").add_parser(verbs)
    for name in DEMOS.values():
        steps = importlib.import_module(name).NEXT_STEPS
        own = [step.split()[1:] for step in steps if step.startswith("nnunet-invariance ")]
        assert [words[0] for words in own][-1] == "evaluate"
        for words in own:
            parser.parse_args(words)
        (train,) = (step.split() for step in steps if step.startswith("nnUNetv2_train "))
        assert find_trainer(train[-1]) is not None


def test_a_pretraining_shows_its_losses_and_its_warnings(tmp_path, monkeypatch, caplog):
    demo = Demo(tmp_path, 1)
    folder = pretraining_folder(demo, "alice")

    def run(log, command, on_poll):
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("epoch,loss\n1,2.5\n2,1.25\n")
        (folder / "log.txt").write_text("2026-01-01 10:00:00,000 ERROR epoch 2: collapse: uniform; lower it\n")
        on_poll()

    monkeypatch.setattr(demo, "run", run)
    caplog.set_level("INFO", logger="nnunet_invariance")
    pretrain(demo, "alice", 2, 10)
    assert [(r.levelname, r.message.strip()) for r in caplog.records] == [
        ("INFO", "epoch 1 of 2, loss 2.500"),
        ("INFO", "epoch 2 of 2, loss 1.250"),
        ("ERROR", "collapse: uniform; lower it (epoch 2)"),
    ]


@pytest.mark.slow
@pytest.mark.commands
@pytest.mark.parametrize(
    ("method", "short", "pictures"),
    [
        ("alice", {**PRETRAINING, **TRAINING}, 6),
        ("anatomix", {**PRETRAINING, **TRAINING}, 7),
        ("icmseg", TRAINING, 9),
        (
            "puir",
            {**PRETRAINING, **TRAINING, "TRANSLATION_EPOCHS": 1, "TRANSLATION_ITERATIONS": 2, "SUBSETS": ["T1"]},
            7,
        ),
    ],
)
def test_a_demo_from_end_to_end(tmp_path, monkeypatch, caplog, method, short, pictures):
    module = importlib.import_module(DEMOS[method])
    for name, value in short.items():
        monkeypatch.setattr(module, name, value)
    caplog.set_level("INFO", logger="nnunet_invariance")
    page = run_demo(method, tmp_path / "demo")
    assert page.read_text().count("<img ") == pictures
    last = module.STEPS + 1
    assert [r.message for r in caplog.records if r.message.startswith(f"[{last}/{last}]")]
