"""The cross-modality protocol: train on one data set, test on others of another modality."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ComparisonError, DatasetNotFoundError
from nnunet_invariance.evaluation.protocols.arms import Selection, open_comparison
from nnunet_invariance.evaluation.protocols.cases import labelled_cases, preprocessed_cases
from nnunet_invariance.evaluation.protocols.protocol import Plan, ProtocolOptions, check_before, run_protocol
from nnunet_invariance.evaluation.protocols.splits import Subset, draw_parts, draw_subsets, draw_test_cases
from nnunet_invariance.evaluation.runner.jobs import CaseSet
from nnunet_invariance.evaluation.scoring.label_maps import Named, match_labels
from nnunet_invariance.evaluation.scoring.scores import require_known_labels
from nnunet_invariance.nnunet.planned_dataset import (
    PlannedDataset,
    channel_names_of,
    dataset_name_of,
    read_dataset_json,
)
from nnunet_invariance.plans.zscore import ct_remedy

logger = logging.getLogger(__name__)

PROTOCOL = "cross-modality"


def cross_modality(
    dataset: str,
    configuration: str,
    targets: Sequence[str],
    trainers: Sequence[str],
    baselines: Sequence[str] = (),
    *,
    plans: str = "nnUNetPlans",
    options: ProtocolOptions | None = None,
    names: Mapping[str, Mapping[str, Named]] | None = None,
    n_source: int = 0,
    parts: int | None = None,
) -> Path:
    """Train on a source data set, test on all labelled cases of target data sets, and write a report.

    nnU-Net preprocesses the images of the targets according to the plans of the source. Only the classes that both
    data sets have are scored; the log names the others.

    Args:
        dataset: the source, by name or id; planned and preprocessed.
        targets: names or ids of raw data sets.
        names: classes that a target names differently, by target; see
            :func:`~nnunet_invariance.evaluation.scoring.label_maps.match_labels`.
        n_source: number of source cases that are held out and tested as well.
        parts: source and targets contain the same patients under the same names: cross-validation over patients in
            this number of parts. ``shots`` and ``n_source`` are then ignored, and all source cases are tested too.
        configuration, trainers, baselines, plans, options: as for
            :func:`~nnunet_invariance.evaluation.protocols.few_shot.few_shot`.

    Returns:
        The comparison's folder; every target is a condition of its tables.

    Raises:
        ComparisonError: channels, file endings or labels do not match, there are too few cases, weights are missing,
            the folder contains another comparison, or a command failed.
        DatasetNotFoundError: a target does not exist.

    >>> cross_modality("Dataset901_CT", "3d_fullres", ["Dataset903_MR"], ["ICMSegTrainer"])  # doctest: +SKIP
    """
    planned, selection = open_comparison(dataset, configuration, plans, trainers, baselines)
    return run_cross_modality(
        planned, selection, options or ProtocolOptions(), targets, names=names, n_source=n_source, parts=parts
    )


def run_cross_modality(
    planned: PlannedDataset,
    selection: Selection,
    options: ProtocolOptions,
    targets: Sequence[str],
    *,
    names: Mapping[str, Mapping[str, Named]] | None = None,
    n_source: int = 0,
    parts: int | None = None,
) -> Path:
    """As :func:`cross_modality`, for an open source data set and chosen arms.

    Raises:
        ComparisonError, DatasetNotFoundError: as for :func:`cross_modality`.
    """
    check_before(planned, selection, options, PROTOCOL)
    tests = _target_sets(planned, targets, names or {})
    pool = preprocessed_cases(planned.folder, planned.base / "gt_segmentations", planned.dataset_json["file_ending"])
    source_tests, subsets = _choose_cases(pool, tests, options, n_source, parts)
    if source_tests:
        cases = labelled_cases(Path(os.environ["nnUNet_raw"]) / planned.name, planned.dataset_json)
        tests.insert(0, CaseSet(planned.name, [cases[case] for case in source_tests]))
    schemes = planned.configuration.normalization_schemes
    if remedy := ct_remedy(schemes, planned.name, planned.plans.plans_name, planned.configuration_name):
        logger.warning("%s", remedy)
    others = sorted({case.name for test in tests if test.name != planned.name for case in test.cases})
    return run_protocol(planned, selection, options, Plan(PROTOCOL, subsets, lambda: tests, source_tests, others))


def _choose_cases(
    pool: set[str], tests: Sequence[CaseSet], options: ProtocolOptions, n_source: int, parts: int | None
) -> tuple[Sequence[str], list[Subset]]:
    """The cases of the source that are tested as well, and the training cases; arguments as in `cross_modality`."""
    shots, draws, n_val, seed = options.shots, options.draws, options.n_val, options.seed
    if parts is not None:
        _require_patients(pool, tests)
        return sorted(pool), draw_parts(pool, parts, draws, n_val, seed)
    source_tests = draw_test_cases(pool, n_source, seed) if n_source else ()
    _warn_of_shared_names(pool, tests)
    return source_tests, draw_subsets(pool - set(source_tests), shots, draws, n_val, seed)


def _target_sets(
    planned: PlannedDataset, targets: Sequence[str], names: Mapping[str, Mapping[str, Named]]
) -> list[CaseSet]:
    """One test set per target, each checked."""
    found = [_target_name(target) for target in targets]
    if not found or len(set(found)) < len(found) or planned.name in found:
        msg = f"Targets {', '.join(found) or 'none'}: expected at least one, each once, and not {planned.name} itself."
        raise ComparisonError(f"{msg} Held-out cases of the source are tested with --n-source.")
    if unknown := set(names) - set(found):
        msg = f"The names file has entries for {', '.join(sorted(unknown))}, the targets are {', '.join(found)}. "
        raise ComparisonError(f"{msg}Correct the former or name them as targets.")
    return [_target_set(planned, target, names.get(target, {})) for target in found]


def _target_name(target: str) -> str:
    """Name of a raw data set."""
    name = dataset_name_of(target)
    file = Path(os.environ["nnUNet_raw"]) / name / "dataset.json"
    if not file.is_file():
        raise DatasetNotFoundError(f"{file} does not exist. A target needs one besides images and labels.")
    return name


def _target_set(planned: PlannedDataset, target: str, names: Mapping[str, Named]) -> CaseSet:
    """All labelled cases of a target; its channels, endings and labels must match the source."""
    raw = Path(os.environ["nnUNet_raw"]) / target
    described = read_dataset_json(raw / "dataset.json")
    channels = [channel_names_of(dataset) for dataset in (planned.dataset_json, described)]
    if len(channels[0]) != len(channels[1]):
        msg = f"{target} has {counted(len(channels[1]), 'channel')} ({', '.join(channels[1])}), {planned.name} has "
        msg += f"{len(channels[0])} ({', '.join(channels[0])}). "
        raise ComparisonError(f"{msg}Create a target with as many channels, one for each input of the network.")
    endings = [dataset["file_ending"] for dataset in (planned.dataset_json, described)]
    if endings[0] != endings[1]:
        msg = f"Files of {target} end with {endings[1]}, those of {planned.name} with {endings[0]}. "
        raise ComparisonError(f"{msg}nnUNetv2_predict reads the latter only: convert the target.")
    try:
        matched = match_labels(planned.dataset_json["labels"], described["labels"], names)
    except ComparisonError as error:
        raise ComparisonError(f"{target}: {error}") from error
    for kind, classes in ((planned.name, matched.only_source), (target, matched.only_target)):
        if classes:
            logger.info("%s: not scored, because only %s has them: %s", target, kind, ", ".join(classes))
    cases = [case for _, case in sorted(labelled_cases(raw, described).items())]
    if not cases:
        raise ComparisonError(f"{raw} contains no image with a label. A target needs both, in imagesTr and labelsTr.")
    reader, known = planned.plans.image_reader_writer_class(), {"labels": {str(v): v for v in matched.values}}
    for case in cases:
        require_known_labels(case.label, reader.read_seg(str(case.label))[0], known)
    return CaseSet(target, cases, matched.classes, matched.values if matched.changes else None)


def _require_patients(pool: set[str], tests: Sequence[CaseSet]) -> None:
    for test in tests:
        if not pool & {case.name for case in test.cases}:
            known = ", ".join(sorted(pool)[:3])
            msg = f"No case of {test.name} has the name of a preprocessed source case ({known} ...), so that no "
            raise ComparisonError(f"{msg}patient is in both. Rename them, or leave out --parts.")


def _warn_of_shared_names(pool: set[str], tests: Sequence[CaseSet]) -> None:
    for test in tests:
        if shared := pool & {case.name for case in test.cases}:
            logger.warning(
                "%s the same name in the source and in %s (%s). If they are the same patients, networks "
                "are tested on patients they were trained on: give --parts for a cross-validation over patients.",
                counted(len(shared), "case has", "cases have"),
                test.name,
                ", ".join(sorted(shared)[:3]),
            )
