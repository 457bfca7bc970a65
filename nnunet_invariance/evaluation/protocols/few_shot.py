"""The few-shot protocol: k labelled cases to train on, the same held-out cases to test on."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunet_invariance.evaluation.protocols.arms import Selection
from nnunet_invariance.evaluation.protocols.cases import (
    LabelledCase,
    labelled_cases,
    preprocessed_cases,
    require_labelled,
    seen_cases,
    test_folder_cases,
)
from nnunet_invariance.evaluation.protocols.pretrainings import find_checkpoints
from nnunet_invariance.evaluation.protocols.protocol import ProtocolSettings, run_protocol
from nnunet_invariance.evaluation.protocols.splits import draw_subsets, draw_test_cases, require_disjoint
from nnunet_invariance.evaluation.runner.jobs import Arm, CaseSet
from nnunet_invariance.evaluation.scoring.scores import require_known_labels
from nnunet_invariance.nnunet.grids import check_same_grid
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.nnunet.unlabelled_images import READ_BY_SIMPLEITK


def as_they_are(cases: Sequence[LabelledCase], out: Path) -> list[CaseSet]:
    """The test cases under one condition, which has no name."""
    return [CaseSet("", cases)]


def few_shot(
    planned: PlannedDataset,
    selection: Selection,
    settings: ProtocolSettings,
    *,
    test: Sequence[str] | Path | None = None,
    n_test: int = 20,
    protocol: str = "few-shot",
    conditions: Callable[[Sequence[LabelledCase], Path], Sequence[CaseSet]] = as_they_are,
) -> Path:
    """Train every arm on every drawn subset, predict the test cases and score them; returns the output folder.

    A second call with the same arguments, or more arms, draws or shots, goes on where the first one ended.

    Args:
        test: names of cases, or a folder with imagesTs and labelsTs; None draws ``n_test`` by seed from the labelled
            raw cases that no finished pre-training of these arms has seen; if these are too few and pre-trainings
            are made, from those that no named checkpoint has seen.
        protocol: name of the comparison and its folder.
        conditions: test sets of the test cases; may write images below the folder that it is given.

    Raises:
        ComparisonError: the cases do not suffice or overlap, weights are missing, the folder holds another comparison,
            a command failed.
        ImagesFolderError: channels of a test case lie on different grids.
    """
    out, seed = settings.folder(protocol, planned), settings.seed
    cases = _test_cases(planned, test, n_test, seed, _seen(planned, selection.arms, settings))
    names = [case.name for case in cases]
    ending = planned.dataset_json["file_ending"]
    pool = preprocessed_cases(planned.folder, planned.base / "gt_segmentations", ending) - set(names)
    subsets = draw_subsets(pool, settings.shots, settings.draws, settings.n_val, seed)
    require_disjoint(names, subsets)
    return run_protocol(protocol, planned, selection, settings, subsets, lambda: conditions(cases, out), names)


def _seen(planned: PlannedDataset, arms: Sequence[Arm], settings: ProtocolSettings) -> list[set[str]]:
    """What test cases are not drawn from; the last, where several are given, if the others leave too few cases."""
    if settings.transductive:
        return [set()]
    places = [[Path(os.environ["nnUNet_results"]) / planned.name / "pretraining"]]
    if settings.pretraining is not None:
        places.append([])  # pre-trainings in places are made again without the test cases, named checkpoints are not
    return [seen_cases(find_checkpoints(arms, planned, among).values()) for among in places]


def _test_cases(
    planned: PlannedDataset, test: Sequence[str] | Path | None, n_test: int, seed: int, seen: Sequence[set[str]]
) -> list[LabelledCase]:
    """The test cases, each on one grid and with a label that holds known values only; ``seen``: as of ``_seen``."""
    if isinstance(test, Path):
        cases = test_folder_cases(test, planned.dataset_json)
        names = sorted(cases)
    else:
        cases = labelled_cases(Path(os.environ["nnUNet_raw"]) / planned.name, planned.dataset_json)
        left_out = next((s for s in seen if len(cases.keys() - s) >= n_test), seen[-1])
        names = list(dict.fromkeys(test)) if test else draw_test_cases(cases, n_test, seed, left_out)
    require_labelled(names, cases)
    reader = planned.plans.image_reader_writer_class()
    for name in names:
        if type(reader).__name__ in READ_BY_SIMPLEITK and len(cases[name].images) > 1:
            check_same_grid(cases[name].images)  # nnU-Net would find that out after all trainings, and name no file
        require_known_labels(cases[name].label, reader.read_seg(str(cases[name].label))[0], planned.dataset_json)
    return [cases[name] for name in names]
