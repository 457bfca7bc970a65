"""The few-shot protocol: train on k labelled cases, test on the same held-out cases."""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from nnunet_invariance.evaluation.protocols.arms import Selection, open_comparison
from nnunet_invariance.evaluation.protocols.cases import (
    LabelledCase,
    labelled_cases,
    preprocessed_cases,
    require_labelled,
    seen_cases,
    test_folder_cases,
)
from nnunet_invariance.evaluation.protocols.checkpoints import find_checkpoints
from nnunet_invariance.evaluation.protocols.protocol import Plan, ProtocolOptions, check_before, run_protocol
from nnunet_invariance.evaluation.protocols.splits import draw_subsets, draw_test_cases, require_disjoint
from nnunet_invariance.evaluation.runner.jobs import Arm, CaseSet
from nnunet_invariance.evaluation.runner.stored import recorded_test_cases
from nnunet_invariance.evaluation.scoring.scores import require_known_labels
from nnunet_invariance.nnunet.grids import check_same_grid
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.nnunet.unlabelled_images import READ_BY_SIMPLEITK


def few_shot(
    dataset: str,
    configuration: str,
    trainers: Sequence[str],
    baselines: Sequence[str] = (),
    *,
    plans: str = "nnUNetPlans",
    options: ProtocolOptions | None = None,
    test: Sequence[str] | Path | None = None,
    n_test: int = 20,
) -> Path:
    """Train trainers on a few labelled cases, test them on the same held-out cases, and write a report.

    Every trainer is compared with its ``_scratch`` twin and with every baseline. The stock commands ``nnUNetv2_train``
    and ``nnUNetv2_predict`` do the work, so that nnU-Net's three environment variables must be set. A second call with
    the same arguments, or with more trainers, draws or shots, continues where the first one ended.

    Args:
        dataset: name or id of the planned and preprocessed data set.
        configuration: of the plans, for example ``3d_fullres``.
        trainers: names of trainers; ``NAME@PLANS`` uses the options of another plans copy.
        baselines: names of trainers that every other one is compared with.
        plans: plans identifier.
        options: numbers of training cases and draws, device and so on; default: `ProtocolOptions()`.
        test: names of test cases, or a folder with imagesTs and labelsTs; None samples ``n_test`` by seed from the
            labelled cases that no pre-training has seen.

    Returns:
        The comparison's folder; it contains ``report.html``, ``scores.csv`` and the other tables.

    Raises:
        ComparisonError: there are too few cases, cases overlap, weights are missing, the folder contains another
            comparison, or a command failed.
        ImagesFolderError: the channels of a test case have different grids.

    >>> few_shot("Dataset004_Hippocampus", "3d_fullres", ["AliceTrainer_60epochs"], ["nnUNetTrainer"])  # doctest: +SKIP
    """
    planned, selection = open_comparison(dataset, configuration, plans, trainers, baselines)
    return run_few_shot(planned, selection, options or ProtocolOptions(), test=test, n_test=n_test)


def one_condition(cases: Sequence[LabelledCase], out: Path) -> list[CaseSet]:
    """The test cases as one test set without a name."""
    return [CaseSet("", cases)]


def run_few_shot(
    planned: PlannedDataset,
    selection: Selection,
    options: ProtocolOptions,
    *,
    test: Sequence[str] | Path | None = None,
    n_test: int = 20,
    protocol: str = "few-shot",
    conditions: Callable[[Sequence[LabelledCase], Path], Sequence[CaseSet]] = one_condition,
) -> Path:
    """As :func:`few_shot`, for an open data set and chosen arms.

    Args:
        protocol: name of the comparison and of its folder.
        conditions: makes the test sets from the test cases; may write images below the folder that it gets.

    Raises:
        ComparisonError, ImagesFolderError: as for :func:`few_shot`.
    """
    check_before(planned, selection, options, protocol)
    out, seed = options.folder(protocol, planned), options.seed
    kept = recorded_test_cases(out)
    cases = _test_cases(planned, test, n_test, seed, _seen(planned, selection.arms, options), kept)
    names = [case.name for case in cases]
    ending = planned.dataset_json["file_ending"]
    pool = preprocessed_cases(planned.folder, planned.base / "gt_segmentations", ending) - set(names)
    subsets = draw_subsets(pool, options.shots, options.draws, options.n_val, seed)
    require_disjoint(names, subsets)
    return run_protocol(planned, selection, options, Plan(protocol, subsets, lambda: conditions(cases, out), names))


def _seen(planned: PlannedDataset, arms: Sequence[Arm], options: ProtocolOptions) -> list[set[str]]:
    """Sets of cases that test cases should not be sampled from; the next set is used if one leaves too few cases."""
    if options.transductive:
        return [set()]
    folders = [[Path(os.environ["nnUNet_results"]) / planned.name / "pretraining"]]
    if options.pretraining is not None:
        folders.append([])  # pre-trainings are repeated without the test cases, named checkpoints cannot be
    return [seen_cases(find_checkpoints(arms, planned, parents).values()) for parents in folders]


def _test_cases(
    planned: PlannedDataset,
    test: Sequence[str] | Path | None,
    n_test: int,
    seed: int,
    seen: Sequence[set[str]],
    kept: Collection[str] = (),
) -> list[LabelledCase]:
    """The test cases, each with one grid and known label values only.

    Args:
        seen: the result of :func:`_seen`.
        kept: test cases of a comparison that continues. They are not sampled again, because a pre-training may have
            seen them since.
    """
    if isinstance(test, Path):
        cases = test_folder_cases(test, planned.dataset_json)
        names: Sequence[str] = sorted(cases)
    else:
        cases = labelled_cases(Path(os.environ["nnUNet_raw"]) / planned.name, planned.dataset_json)
        if test is None and len(kept) == n_test and cases.keys() >= set(kept):
            test = sorted(kept)
        left_out = next((s for s in seen if len(cases.keys() - s) >= n_test), seen[-1])
        names = list(dict.fromkeys(test)) if test else draw_test_cases(cases, n_test, seed, left_out)
    require_labelled(names, cases)
    reader = planned.plans.image_reader_writer_class()
    for name in names:
        if type(reader).__name__ in READ_BY_SIMPLEITK and len(cases[name].images) > 1:
            check_same_grid(cases[name].images)  # nnU-Net would fail after all trainings, without the file's name
        require_known_labels(cases[name].label, reader.read_seg(str(cases[name].label))[0], planned.dataset_json)
    return [cases[name] for name in names]
