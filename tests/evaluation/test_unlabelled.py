"""Cases and scans that an arm learns from without labels: which they are, and that none of them is tested."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.arms import Selection, make_arm
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.evaluation.protocols.protocol import Plan, ProtocolOptions, run_protocol
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.protocols.unlabelled import learned_test_cases, unlabelled_of
from nnunet_invariance.evaluation.runner import comparison as runner
from nnunet_invariance.evaluation.runner.jobs import CaseSet
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from tests.helpers.tiny_dataset import cut_down

SUBSET = Subset(1, 0, ("case_000",), ("case_001",))


@pytest.fixture
def arm(tiny, tmp_path):
    """Makes an arm that learns from unlabelled scans, with plans of its own, and the plans without."""

    def make(**unlabelled):
        for name, options in (("LabelledPlans", {"seed": 0}), ("UnlabelledPlans", {"unlabelled": unlabelled})):
            file = tiny.preprocessed / tiny.name / f"{name}.json"
            file.write_text(json.dumps(cut_down(tiny.plans, name, **options)))
        planned = open_planned_dataset(tiny.name, tiny.configuration, "LabelledPlans")
        return planned, make_arm("BaselineTrainer_1epoch@UnlabelledPlans", planned)

    return make


def labelled(tiny, *names: str) -> list[CaseSet]:
    raw = tiny.raw / tiny.name
    cases = [LabelledCase(n, (raw / f"imagesTr/{n}_0000.nii.gz",), raw / f"labelsTr/{n}.nii.gz") for n in names]
    return [CaseSet("", cases)]


def found(planned, arm, tests, test=(), subsets=(SUBSET,)) -> dict[str, set[str]]:
    reader = planned.plans.image_reader_writer_class()
    return learned_test_cases(unlabelled_of([arm], planned, test), tests, subsets, reader)


def test_the_rest_holds_no_test_case(tiny, arm):
    planned, rest = arm(cases="rest")
    used = unlabelled_of([rest, make_arm("BaselineTrainer_1epoch", planned), make_arm("nnUNetTrainer", planned)],
                         planned, ["case_005"])  # fmt: skip
    assert {name: unlabelled.cases for name, unlabelled in used.items()} == {
        rest.name: tuple(f"case_00{i}" for i in range(5))
    }
    assert not found(planned, rest, labelled(tiny, "case_005"), ["case_005"])


def test_a_named_test_case_is_found(tiny, arm):
    planned, named = arm(cases=["case_004", "case_005"])
    assert found(planned, named, labelled(tiny, "case_003", "case_005"), ["case_003", "case_005"]) == {
        named.name: {"case_005"}
    }


def test_the_part_that_a_cross_validation_tests_is_not_its_rest(tiny, arm):
    planned, rest = arm(cases="rest")
    names = [f"case_00{i}" for i in range(6)]
    parts = [replace(SUBSET, part=0, test=("case_002", "case_003")), Subset(1, 0, ("case_002",), ("case_003",), 1, ())]
    assert found(planned, rest, labelled(tiny, *names), names, parts) == {rest.name: {"case_002", "case_003"}}


def test_scans_are_compared_by_name_and_by_voxels(tiny, arm, tmp_path):
    scans, raw = tmp_path / "scans", tiny.raw / tiny.name / "imagesTr"
    scans.mkdir()
    for name, source in (("renamed", "case_005"), ("other", "case_003"), ("case_004", "case_002")):
        image = sitk.ReadImage(raw / f"{source}_0000.nii.gz")
        sitk.WriteImage(image, scans / f"{name}_0000.nii.gz", useCompression=name == "other")
    planned, scanned = arm(images=[str(scans)])
    tests = labelled(tiny, "case_004", "case_005")
    assert found(planned, scanned, tests) == {scanned.name: {"case_004", "renamed"}}


@pytest.mark.parametrize("transductive", [False, True])
def test_a_comparison_refuses_test_cases_and_links_the_others(tiny, arm, tmp_path, monkeypatch, transductive):
    planned, named = arm(cases=["case_004", "case_005"])
    run = []
    monkeypatch.setattr(runner, "run_jobs", lambda jobs, *_: run.extend(jobs))
    options = ProtocolOptions(device="cpu", out=tmp_path / "out", transductive=transductive)
    plan = Plan("few-shot", [SUBSET], lambda: labelled(tiny, "case_005"), ["case_005"])
    monkeypatch.setattr(runner, "SUMMARY", "comparison.json")
    if not transductive:
        with pytest.raises(ComparisonError, match=r"1 test case is in the unlabelled scans of .*: case_005"):
            run_protocol(planned, Selection((named,)), options, plan)
        assert not run
        return
    run_protocol(planned, Selection((named,)), options, plan)
    linked = {p.stem for p in Path(tmp_path, "out/nnUNet_preprocessed", tiny.name, planned.folder.name).glob("*.pkl")}
    assert linked == {"case_000", "case_001", "case_004", "case_005"}
    described = json.loads((tmp_path / "out" / "comparison.json").read_text())["comparison"]
    assert described["transductive"] == {"case_005": True}
    assert described["unlabelled"][named.name]["cases"] == ["case_004", "case_005"]
