"""The cross-modality protocol: label maps matched by name, patients kept apart, arms with plans of their own."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.cli.main import main
from nnunet_invariance.errors import ComparisonError, DamagedFileError, DatasetNotFoundError
from nnunet_invariance.evaluation.protocols.arms import Selection, choose_arms
from nnunet_invariance.evaluation.protocols.cases import seen_cases
from nnunet_invariance.evaluation.protocols.cross_modality import run_cross_modality
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.protocols.splits import draw_parts
from nnunet_invariance.evaluation.runner.comparison import Comparison, prepare
from nnunet_invariance.evaluation.runner.jobs import Arm, CaseSet, Job, score_job
from nnunet_invariance.evaluation.runner.stored import stored_jobs
from nnunet_invariance.evaluation.scoring.label_maps import match_labels, read_names, renumber
from nnunet_invariance.evaluation.scoring.scores import read_scores
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from tests.helpers import small_checkpoints
from tests.helpers.tiny_dataset import cut_down, synthetic_case
from tests.helpers.tiny_trainers import make_trainer

TARGET = "Dataset778_Inverted"
SOURCE_LABELS = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3}
ARMS = Selection((Arm("styled", "ICMSegTrainer_1epoch", plans="CrossGin"), Arm("plain", "BaselineTrainer_1epoch")))


# --- label maps


def slow_renumber(segmentation: np.ndarray, values: dict[int, int]) -> np.ndarray:
    new = np.zeros(segmentation.shape, int)
    for index in np.ndindex(segmentation.shape):
        new[index] = values[segmentation[index]]
    return new


def test_classes_are_matched_by_name_and_the_others_are_named():
    target = {"background": 0, "spleen": 1, "liver": 5, "aorta": 7}
    matched = match_labels(SOURCE_LABELS, target, {})
    assert matched.values == {0: 0, 1: 3, 5: 1, 7: 0}
    assert matched.classes == ("liver", "spleen")
    assert (matched.only_source, matched.only_target) == (("kidney",), ("aorta",))
    assert matched.changes
    segmentation = np.random.default_rng(0).choice([0, 1, 5, 7], (3, 4, 5)).astype(np.uint8)
    assert np.array_equal(renumber(segmentation, matched.values), slow_renumber(segmentation, matched.values))


def test_a_names_file_may_give_names_values_and_several_of_them():
    target = {"background": 0, "Leber": 9, "left": 2, "right": 3}
    matched = match_labels(SOURCE_LABELS, target, {"liver": "Leber", "kidney": ["left", 3], "spleen": 14})
    assert matched.values == {0: 0, 9: 1, 2: 2, 3: 2, 14: 3}
    assert (matched.classes, matched.only_target) == (("liver", "kidney", "spleen"), ())


def test_equal_maps_change_nothing():
    assert not match_labels(SOURCE_LABELS, SOURCE_LABELS, {}).changes
    regions = {"background": 0, "whole": [1, 2], "core": [2]}
    assert not match_labels(regions, dict(regions), {}).changes
    assert match_labels(regions, dict(regions), {}).classes == ("whole", "core")


@pytest.mark.parametrize(
    ("target", "names", "message"),
    [
        (
            {"background": 0, "aorta": 1},
            {},
            r"No class is in both label maps: .*liver.* and background, aorta\. Match",
        ),
        ({"background": 0, "liver": 1}, {"lung": 3}, r"has entries for lung; .* has background, liver, kidney, spleen"),
        (
            {"background": 0, "liver": 1},
            {"kidney": "Niere"},
            r"has Niere for kidney; the target has background, liver",
        ),
        ({"background": 0, "liver": 1}, {"kidney": 1}, r"Value 1 of the target belongs to liver and kidney"),
        ({"background": 0, "liver": 1, "ignore": 2}, {}, r"target has an ignore label"),
        ({"background": 0, "liver": [1, 2]}, {}, r"regions must be the same in both"),
    ],
)
def test_maps_that_do_not_fit_are_refused(target, names, message):
    with pytest.raises(ComparisonError, match=message):
        match_labels(SOURCE_LABELS, target, names)


@pytest.mark.parametrize("content", ["no json", "[]", '{"D": 3}', '{"D": {"liver": 1.5}}', '{"D": {"liver": []}}'])
def test_a_names_file_of_another_form_is_refused(tmp_path, content):
    (tmp_path / "names.json").write_text(content)
    with pytest.raises((ComparisonError, DamagedFileError), match=r"names\.json.* Expected "):
        read_names(tmp_path / "names.json")
    with pytest.raises(DamagedFileError, match=r"none\.json cannot be read.* Expected "):
        read_names(tmp_path / "none.json")


# --- cross-validation over patients


def test_every_patient_is_tested_once_a_draw_and_never_trained_on_meanwhile():
    pool = [f"case_{i}" for i in range(7)]
    subsets = draw_parts(pool, 3, draws=2, n_val=1, seed=0)
    assert len({s.name for s in subsets}) == 6
    assert {s.condition for s in subsets} == {"cross-validation"}
    for draw in range(2):
        mine = [s for s in subsets if s.draw == draw]
        assert sorted(name for s in mine for name in s.test) == pool
        for s in mine:
            assert sorted((*s.train, *s.val, *s.test)) == pool
            assert (len(s.val), len(s.train)) == (1, s.shots)
    assert draw_parts(pool, 3, 2, 1, seed=0) == subsets != draw_parts(pool, 3, 2, 1, seed=1)


@pytest.mark.parametrize(("parts", "n_val"), [(1, 1), (8, 1), (7, 6), (3, 0)])
def test_a_cross_validation_that_cannot_be_is_refused(parts, n_val):
    with pytest.raises(ComparisonError, match="of 7 cases"):
        draw_parts([f"case_{i}" for i in range(7)], parts, 1, n_val, 0)


# --- the protocol


@pytest.fixture
def target(tiny) -> Path:
    """Three cases in inverted contrast with the same anatomy, numbered otherwise; two share names with the source."""
    raw = tiny.raw / TARGET
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for i, name in enumerate(("case_000", "case_001", "other")):
        image, labels = synthetic_case((36, 36, 36), seed=200 + i)
        sitk.WriteImage(300 - image, raw / "imagesTr" / f"{name}_0000.nii.gz")
        values = np.array([0, 4, 9], np.uint8)[sitk.GetArrayFromImage(labels)]
        sitk.WriteImage(sitk.GetImageFromArray(values), raw / "labelsTr" / f"{name}.nii.gz")
    write_description(raw, {"background": 0, "body": 4, "vessel": 9})
    yield raw
    shutil.rmtree(raw)


def write_description(raw: Path, labels: dict[str, int], channels: tuple[str, ...] = ("CT",), ending=".nii.gz") -> None:
    names = {str(i): name for i, name in enumerate(channels)}
    description = {"channel_names": names, "labels": labels, "numTraining": 3, "file_ending": ending}
    (raw / "dataset.json").write_text(json.dumps(description))


@pytest.fixture
def planned(tiny):
    """Short plans, and a copy with another style."""
    for name, options in (("CrossPlans", {}), ("CrossGin", {"style": "gin", "aux_weight": 0.0, "num_positions": 16})):
        lengths = {"iterations_per_epoch": 1, "val_iterations_per_epoch": 1, "seed": 0}
        plans = cut_down(tiny.plans, name, **lengths, **options)
        (tiny.preprocessed / tiny.name / f"{name}.json").write_text(json.dumps(plans))
    yield open_planned_dataset(tiny.name, tiny.configuration, "CrossPlans")
    for name in ("CrossPlans", "CrossGin"):
        (tiny.preprocessed / tiny.name / f"{name}.json").unlink()


def run(planned, out: Path, **changes) -> Path:
    own = {name: changes.pop(name) for name in ("names", "n_source", "parts") if name in changes}
    selection, targets = changes.pop("selection", ARMS), changes.pop("targets", ["778"])
    settings = ProtocolOptions(**{"n_val": 1, "device": "cpu", "mirroring": False, "out": out, **changes})
    return run_cross_modality(planned, selection, settings, targets, **own)


@pytest.fixture
def prepared(monkeypatch) -> list[Job]:
    """The jobs that the protocol hands on; no command is run."""
    jobs: list[Job] = []

    def only_prepare(comparison: Comparison, out: Path, **_) -> Path:
        jobs.extend(prepare(comparison, out))
        return out

    monkeypatch.setattr("nnunet_invariance.evaluation.protocols.protocol.run_comparison", only_prepare)
    return jobs


def test_labels_are_renumbered_and_only_common_classes_are_scored(planned, target, prepared, tmp_path, caplog):
    caplog.set_level("INFO", logger="nnunet_invariance")
    out = run(planned, tmp_path / "out", names={TARGET: {"core": "vessel"}}, n_source=1, shots=[2])
    source, other = prepared[0].setting.tests
    assert (source.name, other.name) == (planned.name, TARGET)
    assert prepared[0].condition(other) == f"2 shots, {TARGET}"
    assert not {c.name for c in source.cases} & {*prepared[0].subset.train, *prepared[0].subset.val}
    original, new = (
        sitk.GetArrayFromImage(sitk.ReadImage(p)) for p in (target / "labelsTr/other.nii.gz", other.cases[2].label)
    )
    assert np.array_equal(new, (original == 4) + 2 * (original == 9))
    assert "have the same name in the source" in caplog.text
    again = stored_jobs(out)
    assert [(j.name, j.plans, j.model) for j in again] == [(j.name, j.plans, j.model) for j in prepared]
    assert again[0].setting.tests == prepared[0].setting.tests
    assert "-p CrossGin" in " ".join(prepared[0].train_command())
    assert "-p CrossPlans" in " ".join(prepared[1].predict_command(other, out / "x"))
    assert (out / "nnUNet_preprocessed" / planned.name / "CrossGin.json").is_file()
    for case in other.cases:
        prediction = prepared[0].predictions(other) / f"{case.name}.nii.gz"
        prediction.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(case.label, prediction)
    assert {s.label for s in score_job(alone(prepared[0], other))} == {"body", "core"}


def alone(job: Job, test: CaseSet) -> Job:
    """The same job on one test set."""
    return replace(job, setting=replace(job.setting, tests=[test]))


def test_unmatched_labels_are_named_and_not_scored(planned, target, prepared, tmp_path, caplog):
    caplog.set_level("INFO", logger="nnunet_invariance")
    run(planned, tmp_path / "out")
    assert f"{TARGET}: not scored, because only {planned.name} has them: core" in caplog.text
    assert f"{TARGET}: not scored, because only {TARGET} has them: vessel" in caplog.text
    (test,) = prepared[0].setting.tests
    assert test.classes == ["body"]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(test.cases[0].label))
    assert set(np.unique(labels)) == {0, 1}


def test_parts_keep_patients_apart_and_test_both_modalities(planned, target, prepared, tmp_path):
    run(planned, tmp_path / "out", parts=3)
    assert len(prepared) == 6
    for job in prepared:
        assert not {*job.subset.train, *job.subset.val} & set(job.subset.test)
    tested = [c.name for job in prepared[::2] for c in filter(job.subset.tests, job.setting.tests[1].cases)]
    assert sorted(tested) == ["case_000", "case_001"]


def test_a_continued_comparison_keeps_its_targets_and_names(planned, target, prepared, tmp_path):
    run(planned, tmp_path / "out")
    run(planned, tmp_path / "out", draws=2)
    with pytest.raises(ComparisonError, match=r"another comparison: tests differ"):
        run(planned, tmp_path / "out", names={TARGET: {"core": 9}})
    second = target.with_name("Dataset776_Second")
    shutil.copytree(target, second)
    try:
        with pytest.raises(ComparisonError, match=r"another comparison: test_names differ"):
            run(planned, tmp_path / "out", targets=["778", "776"])
    finally:
        shutil.rmtree(second)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": ["Dataset777_Tiny"]}, r"not Dataset777_Tiny itself"),
        ({"targets": ["778", TARGET]}, r"each once"),
        ({"names": {"Dataset700_X": {}}}, r"has entries for Dataset700_X, the targets are Dataset778_Inverted"),
        ({"names": {TARGET: {"core": 3, "body": 3}}}, rf"{TARGET}: Value 3"),
        ({"names": {TARGET: {"body": 1}}, "labels": {"background": 0, "vessel": 9}}, "contains 1 unknown label, 4; "),
        ({"channels": ("T1", "T2")}, rf"{TARGET} has 2 channels \(T1, T2\), Dataset777_Tiny has 1 \(MRI\)"),
        ({"ending": ".mha"}, r"end with \.mha, those of Dataset777_Tiny with \.nii\.gz.*convert"),
        ({"shots": [6]}, r"6 shots and 1 validation cases need 7"),
        ({"n_source": 9}, r"9 test cases were asked for"),
    ],
)
def test_what_cannot_be_compared_is_refused_and_leaves_nothing(planned, target, tmp_path, changes, message):
    labels = changes.pop("labels", {"background": 0, "body": 4, "vessel": 9})
    description = {key: changes.pop(key) for key in ("channels", "ending") if key in changes}
    write_description(target, labels, **description)
    with pytest.raises(ComparisonError, match=message):
        run(planned, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_patients_need_common_names_and_targets_must_be_there(planned, target, tmp_path):
    for file in [*target.glob("*/case_00*")]:
        file.unlink()
    with pytest.raises(ComparisonError, match=r"No case of Dataset778_Inverted has the name of .* leave out --parts"):
        run(planned, tmp_path / "out", parts=3)
    with pytest.raises(DatasetNotFoundError, match="'799' was not found"):
        run(planned, tmp_path / "out", targets=["799"])


def test_equal_names_in_the_sources_own_folder_are_other_images(tmp_path):
    cases = [{"name": "case_000", "source": "plans_3d"}, {"name": "case_001", "source": "scans_1234"}]
    (tmp_path / "manifest.json").write_text(json.dumps({"sha256": "0" * 64, "cases": cases}))
    checkpoint = small_checkpoints.write(tmp_path / "checkpoint_final.safetensors")
    assert seen_cases([checkpoint]) == {"case_000", "case_001"}
    assert seen_cases([checkpoint], besides="plans_3d") == {"case_001"}


# --- arms


def test_an_arm_may_have_the_options_of_another_plans_copy(tiny, planned):
    chosen = choose_arms(["ICMSegTrainer_2epochs@CrossGin"], ["nnUNetTrainer", "nnUNetTrainerDA5"], planned)
    assert [(arm.name, arm.trainer, arm.plans) for arm in chosen.arms] == [
        ("ICMSegTrainer_2epochs@CrossGin", "ICMSegTrainer_2epochs", "CrossGin"),
        ("BaselineTrainer_2epochs", "BaselineTrainer_2epochs", None),
        ("BaselineTrainerDA5_2epochs", "BaselineTrainerDA5_2epochs", None),
    ]
    assert [c.reference for c in chosen.contrasts] == ["BaselineTrainer_2epochs", "BaselineTrainerDA5_2epochs"]
    assert chosen.arms[0].epochs == 2
    twins = choose_arms(["AliceTrainer@CrossGin"], [], planned).arms
    assert [arm.name for arm in twins] == ["AliceTrainer@CrossGin", "AliceTrainer_scratch@CrossGin"]
    with pytest.raises(ComparisonError, match=r"iterations_per_epoch is 250 in nnUNetPlans and 1 in CrossPlans"):
        choose_arms(["ICMSegTrainer@nnUNetPlans"], [], planned)


def test_stock_variants_keep_their_augmentation_or_are_refused(tiny, planned):
    stock = open_planned_dataset(tiny.name, tiny.configuration)
    assert choose_arms(["ICMSegTrainer"], ["nnUNetTrainerDA5"], stock).arms[1].name == "nnUNetTrainerDA5"
    with pytest.raises(ComparisonError, match=r"nnUNetTrainerNoDA supports nnU-Net's own numbers.*nnUNetTrainerDA5"):
        choose_arms(["ICMSegTrainer"], ["nnUNetTrainerNoDA"], planned)


def test_the_stronger_augmentation_is_stocks_own():
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5

    trainer = find_trainer("BaselineTrainerDA5_3epochs")
    assert issubclass(trainer, nnUNetTrainerDA5)
    assert issubclass(trainer, find_trainer("BaselineTrainer"))
    assert trainer.length_in_epochs == 3
    assert find_trainer("BaselineTrainerDA5_scratch") is None


def test_the_stronger_augmentation_repeats_with_a_seed(tiny):
    trainer = make_trainer(tiny, "BaselineTrainerDA5_1epoch", seed=0)
    rotation, dummy, _, mirroring = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    patch = trainer.configuration_manager.patch_size
    transforms = trainer.get_training_transforms(patch, rotation, None, mirroring, dummy, [False], False, [1, 2])
    assert "BlankRectangleTransform" in repr(types_in(transforms))
    assert [blur.benchmark for blur in types_in(transforms).get(GaussianBlurTransform, [])] == [False]


def types_in(transform) -> dict[type, list]:
    """Every transform inside a pipeline, by its type."""
    found = {type(transform): [transform]}
    for value in vars(transform).values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, BasicTransform):
                for kind, parts in types_in(part).items():
                    found[kind] = found.get(kind, []) + parts
    return found


# --- the whole


@pytest.mark.slow
@pytest.mark.commands
def test_the_command_from_end_to_end(planned, target, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    for name in ("nnUNet_npp", "nnUNet_nps"):
        monkeypatch.setenv(name, "0")
    names = tmp_path / "names.json"
    names.write_text(json.dumps({TARGET: {"core": 9}}))
    words = ["evaluate", "cross-modality", "777", "3d_fullres", "-p", "CrossPlans", "--targets", "778"]
    words += ["--trainers", "ICMSegTrainer_1epoch@CrossGin", "--baselines", "nnUNetTrainerDA5", "--names", str(names)]
    words += ["--shots", "2", "--n-source", "1", "--n-val", "1", "-device", "cpu", "--disable_tta"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    scores = read_scores(tmp_path / "out" / "scores.csv")
    assert {s.arm for s in scores} == {"ICMSegTrainer_1epoch@CrossGin", "BaselineTrainerDA5_1epoch"}
    assert {(s.condition, s.label) for s in scores} == {
        (f"2 shots, {name}", label) for name in (planned.name, TARGET) for label in ("body", "core")
    }
    assert len(scores) == 2 * (1 + 3) * 2
    assert "cross-modality" in (tmp_path / "out" / "report.html").read_text()
    assert os.environ["nnUNet_raw"] not in (tmp_path / "out" / "comparison.json").read_text()
