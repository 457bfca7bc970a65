"""The option ``mirroring``: the axes that training and prediction mirror."""

import json

import numpy as np
import pytest

from nnunet_invariance.errors import OptionError
from nnunet_invariance.nnunet.mirroring import LabelledImage
from nnunet_invariance.trainers import mirroring
from tests.helpers.tiny_trainers import log_of, make_trainer


def axes_of(trainer) -> tuple[int, ...] | None:
    """What training mirrors, which must be what prediction mirrors."""
    *_, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.inference_allowed_mirroring_axes == axes
    return axes


@pytest.mark.parametrize("name", ["BaselineTrainer", "MAETrainer_scratch", "PUIRTrainer_scratch"])
@pytest.mark.parametrize(("option", "expected"), [("all", (0, 1, 2)), ([0, 2], (0, 2)), ([], None)])
def test_the_option_chooses_the_axes(tiny, modalities, results, name, option, expected):
    data = modalities if name.startswith("PUIR") else tiny
    assert axes_of(make_trainer(data, name, mirroring=option)) == expected


@pytest.mark.parametrize("option", ["none", 1, [3], [0, 0], [True], True])
def test_other_values_are_refused(tiny, results, option):
    with pytest.raises(OptionError, match=r"'mirroring'.*'all', 'auto'"):
        make_trainer(tiny, "BaselineTrainer", mirroring=option)


def test_auto_reads_the_training_cases_of_the_fold_alone(tiny, results, monkeypatch):
    trainer = make_trainer(tiny, "BaselineTrainer", mirroring="auto")
    train, val = trainer.do_split()
    read = []
    original = mirroring._read
    monkeypatch.setattr(mirroring, "_read", lambda folder, cases: read.extend(cases) or original(folder, cases))
    axes_of(trainer)
    assert read == sorted(train)
    assert not set(read) & set(val)


def test_auto_leaves_out_the_axis_between_classes_that_look_alike(tiny, results, monkeypatch):
    labels = np.zeros((12, 12, 20), int)
    labels[4:8, 4:8, 2:6], labels[4:8, 4:8, 14:18] = 1, 2
    image = np.random.default_rng(0).normal(size=(1, *labels.shape))
    monkeypatch.setattr(mirroring, "_read", lambda folder, cases: [LabelledImage(image, labels)])
    trainer = make_trainer(tiny, "BaselineTrainer", mirroring="auto")
    names = [
        n for n, v in json.loads((tiny.preprocessed / tiny.name / "dataset.json").read_text())["labels"].items() if v
    ]
    assert axes_of(trainer) == (0, 1)
    assert f"axis 2 is not mirrored, because {names[0]} and {names[1]} look alike" in log_of(trainer)
