"""`evaluate missing-modality`: its subsets, its test sets, its page, and the trainer that drops channels."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.cases import labelled_cases
from nnunet_invariance.evaluation.protocols.missing_modality import EMPTY, choose_subsets, missing_modalities
from nnunet_invariance.evaluation.report.page import write_report
from nnunet_invariance.evaluation.scoring.scores import read_scores
from nnunet_invariance.nnunet.normalization import empty_slots
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from tests.helpers import stored_comparison
from tests.helpers.tiny_dataset import cut_down
from tests.helpers.tiny_trainers import make_trainer

CHANNELS = ("T1", "CT")
FOUR = ("T1", "T1c", "T2", "FLAIR")


def test_all_subsets_largest_first_or_those_that_are_named():
    subsets = choose_subsets(FOUR)
    assert len(subsets) == len(set(subsets)) == 15
    assert subsets[0] == (0, 1, 2, 3)
    assert subsets[-4:] == [(0,), (1,), (2,), (3,)]
    assert choose_subsets(FOUR, ["FLAIR+T1", "T1c", "T1 + FLAIR"]) == [(0, 3), (1,)]
    assert choose_subsets(("T1", "T1+C"), ["T1+C", "T1"]) == [(1,), (0,)]


@pytest.mark.parametrize(
    ("channels", "words", "message"),
    [
        (FOUR, [""], r"The subset '' is empty: .* Name at least one of T1, T1c, T2, FLAIR"),
        (FOUR, ["T1", "+"], r"The subset '\+' is empty"),
        (FOUR, ["T1+PET"], r"The subset 'T1\+PET' names PET, but the channels are T1, T1c, T2, FLAIR"),
        (("T1",), None, r"The channels are T1: .* at least two"),
        (("T1", "T1"), None, r"The channels are T1, T1: .* its own name"),
    ],
)
def test_a_subset_that_cannot_be_is_named(channels, words, message):
    with pytest.raises(ComparisonError, match=message):
        choose_subsets(channels, words)


def test_sets_hold_zeros_for_what_is_missing_and_no_case_that_lacks_the_rest(modalities, tmp_path):
    planned = open_planned_dataset(modalities.name, "3d_fullres")
    cases = labelled_cases(modalities.raw / modalities.name, planned.dataset_json)
    names = ["case_000", "case_001", "case_002", "case_003"]  # 002 has no CT, 003 no T1
    chosen = [cases[name] for name in names]
    conditions = missing_modalities(CHANNELS, choose_subsets(CHANNELS), ".nii.gz")
    sets = {s.name: {case.name: case for case in s.cases} for s in conditions(chosen, tmp_path)}
    assert {name: list(s) for name, s in sets.items()} == {
        "T1+CT": names[:2],
        "T1": names[:3],
        "CT": [*names[:2], names[3]],
    }
    for case in names[:2]:
        assert sets["T1+CT"][case] == cases[case]
        for kept, name in enumerate(CHANNELS):
            images = sets[name][case].images
            assert images[kept] == cases[case].images[kept]
            empty, like = sitk.ReadImage(str(images[1 - kept])), sitk.ReadImage(str(cases[case].images[1 - kept]))
            assert not np.any(sitk.GetArrayFromImage(empty))
            assert (empty.GetSize(), empty.GetOrigin(), empty.GetDirection()) == (
                like.GetSize(), like.GetOrigin(), like.GetDirection(),
            )  # fmt: skip
            assert images[1 - kept].name == f"{case}_{1 - kept:04d}.nii.gz"
    assert not list((tmp_path / EMPTY).glob("partial*"))
    with pytest.raises(ComparisonError, match=r"No test case has all modalities of the subset CT\."):
        missing_modalities(CHANNELS, [(1,)], ".nii.gz")([cases["case_002"]], tmp_path)


@pytest.mark.integration
def test_the_page_has_a_heat_map_where_there_are_several_sets(tmp_path):
    sets = ("T1+CT", "T1", "CT")
    page = write_report(stored_comparison.write_comparison(tmp_path / "several", sets)).read_text()
    assert "Mean Dice of every arm, with a row per condition and a column per class" in page
    assert all(f"3 shots, {name}" in page for name in sets)
    alone = write_report(stored_comparison.write_comparison(tmp_path / "one")).read_text()
    assert "Dice of every class under every condition" not in alone


def test_channel_dropout_fills_what_it_drops_as_an_empty_file_would_be(modalities, monkeypatch):
    trainer = make_trainer(modalities, "ChannelDropoutTrainer", seed=0, modality_dropout=1.0)
    trainer.initialize()
    planned = open_planned_dataset(modalities.name, "3d_fullres")
    empty = empty_slots(planned.plans, planned.configuration)
    assert empty[0] == 0
    assert empty[1] != 0  # CT: zero is one of its values
    preprocessor = planned.configuration.preprocessor_class(verbose=False)
    folder = modalities.raw / modalities.name / "imagesTr"
    lacks_ct = [str(folder / f"case_002_{c:04d}.nii.gz") for c in (0, 1)]
    data, _, _ = preprocessor.run_case(lacks_ct, None, planned.plans, planned.configuration, planned.dataset_json)
    assert data[1] == pytest.approx(empty[1], abs=1e-5)

    seen = []
    monkeypatch.setattr(trainer.network, "forward", lambda x: seen.append(x.clone()))
    monkeypatch.setattr(trainer, "loss", lambda output, target: torch.zeros((), requires_grad=True))
    image = torch.randn(8, 2, 8, 8, 8)
    image[7, 0] = 0
    trainer.train_step({"data": image, "target": image[:, :1], "keys": [f"case_{i}" for i in range(8)]})
    kept = [[torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(seen[0], image, strict=True)]
    assert all(sum(row) == 1 for row in kept[:7])  # one of two each
    assert len({tuple(row) for row in kept}) == 2
    for sample, row in zip(seen[0], kept, strict=True):
        for channel, same in enumerate(row):
            assert same or torch.equal(sample[channel], torch.full((8, 8, 8), empty[channel]))


@pytest.mark.slow
@pytest.mark.commands
def test_three_answers_to_missing_modalities_end_to_end(modalities, tmp_path, monkeypatch, capsys):
    for name, value in {"PYTHONPATH": str(Path(__file__).parents[2]), "nnUNet_npp": "0", "nnUNet_nps": "0"}.items():
        monkeypatch.setenv(name, value)
    plans = cut_down(modalities.plans, "MissingPlans", iterations_per_epoch=1, val_iterations_per_epoch=1, seed=0)
    (modalities.preprocessed / modalities.name / "MissingPlans.json").write_text(json.dumps(plans))
    words = ["evaluate", "missing-modality", "779", "3d_fullres", "-p", "MissingPlans", "-device", "cpu"]
    words += ["--trainers", "PUIRTrainer_scratch_1epoch", "--disable_tta", "--n-val", "1", "--out", str(tmp_path / "o")]
    words += ["--test", "case_000", "case_003"]
    assert main(words) == 0
    scores = read_scores(tmp_path / "o" / "scores.csv")
    arms = {"PUIRTrainer_scratch_1epoch", "BaselineTrainer_1epoch", "ChannelDropoutTrainer_1epoch"}
    assert {s.arm for s in scores} == arms
    cases = {(s.condition, s.case) for s in scores}
    assert cases == {(f"3 shots, {c}", "case_000") for c in ("T1+CT", "T1", "CT")} | {("3 shots, CT", "case_003")}
    assert "Dice of every class under every condition" in (tmp_path / "o" / "report.html").read_text()
    assert main([*words, "--subsets", "T1"]) == 2
    assert "comparison.json belongs to another comparison: test_names" in capsys.readouterr().err
    assert os.environ["nnUNet_npp"] == "0"
