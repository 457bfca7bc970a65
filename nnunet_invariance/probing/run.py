"""Probe checkpoints on a data set that is given by name, and write the report."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ComparisonError, WeightsNotFoundError
from nnunet_invariance.evaluation.protocols.cases import preprocessed_cases, seen_cases
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.probing.colours import draw_features
from nnunet_invariance.probing.protocol import (
    FIRST_RANDOM,
    Branch,
    ProbeOptions,
    ProbeResult,
    load_probed_network,
    probe,
    random_network,
)
from nnunet_invariance.probing.report import write_report
from nnunet_invariance.probing.samples import load_patch
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.locate import FINAL, pretraining_folder, results_folder
from nnunet_invariance.weights.transfer import SECTION_OF

logger = logging.getLogger(__name__)


def run_probe(
    dataset: str,
    configuration: str,
    plans: str = "nnUNetPlans",
    weights: Sequence[Path] = (),
    methods: Sequence[str] = (),
    branch: Literal["teacher", "student", "both"] = "both",
    options: ProbeOptions | None = None,
    device: str = "cpu",
    out: Path | None = None,
    command: str = "",
) -> tuple[ProbeResult, Path]:
    """Probe checkpoints on a preprocessed data set with labels, and write the report.

    Args:
        weights: checkpoint files.
        methods: pre-training methods; each names the finished pre-training of this data set, plans and configuration.
        branch: which network of a checkpoint with a teacher is probed.
        out: folder of the report. Default: ``nnUNet_results/DATASET/probing/PLANS__CONFIGURATION``.
        command: the command line, for the report.

    Returns:
        The result and the folder of the report.

    Raises:
        ComparisonError: there are too few preprocessed cases with labels.
        WeightsNotFoundError: a file or a finished pre-training does not exist.
        InvarianceError: another subclass, if the data set or a checkpoint cannot be used.
    """
    planned = open_planned_dataset(dataset, configuration, plans)
    files = name_files(weights)
    for method in methods:
        path = _finished(planned, method, plans)
        files[path.parent.name if method in files else method] = path
    networks = {}
    for name, path in files.items():
        for label, chosen in _branches(name, path, branch):
            networks[label] = load_probed_network(planned, path, chosen)
    labelled = labelled_cases(planned)
    seen, warnings = _seen_cases(list(files.values()), labelled)
    result = probe(planned, networks, labelled, options, device, seen)
    folder = out or results_folder() / planned.name / "probing" / f"{plans}__{configuration}"
    title = f"Linear probe: {planned.name}, {configuration}, {plans}"
    write_report(result, folder, title, _features(planned, networks, result.test[0], device), warnings, command)
    return result, folder


def name_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by the shortest end of their paths that differs between them, without suffix and ``checkpoint_final``.

    >>> name_files([Path("a/mae/checkpoint_final.safetensors"), Path("b/mae/checkpoint_final.safetensors")])
    {'a/mae': PosixPath('a/mae/checkpoint_final.safetensors'), 'b/mae': PosixPath('b/mae/checkpoint_final.safetensors')}
    """
    paths = list(dict.fromkeys(paths))
    parts = [(path.parent if path.stem == Path(FINAL).stem else path.with_suffix("")).parts for path in paths]
    for length in range(1, 1 + max(map(len, parts), default=0)):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    return {str(path): path for path in paths}


def _features(planned: PlannedDataset, networks: dict[str, nn.Module], case: str, device: str) -> bytes:
    """The features of a test case as colours, of the probed networks and of one with random weights."""
    ignore = planned.plans.get_label_manager(planned.dataset_json).ignore_label
    patch = load_patch(str(planned.folder), case, planned.patch_size, ignore)
    shown = {**networks, "random weights": random_network(planned, FIRST_RANDOM)}
    return draw_features(patch, shown, planned.dataset_json["labels"], device)


def labelled_cases(planned: PlannedDataset) -> list[str]:
    """Names of the preprocessed cases that have labels.

    Raises:
        ComparisonError: there are fewer than 4.
    """
    ending = planned.dataset_json["file_ending"]
    labelled = sorted(preprocessed_cases(planned.folder, planned.base / "gt_segmentations", ending))
    if len(labelled) < 4:
        found = counted(len(labelled), "preprocessed case")
        msg = f"{planned.folder} contains {found} with labels; a probe needs at least 4. "
        command = f"nnUNetv2_plan_and_preprocess -d {planned.name} -c {planned.configuration_name}"
        raise ComparisonError(f"{msg}Run `{command}`.")
    return labelled


def _seen_cases(files: Sequence[Path], labelled: Sequence[str]) -> tuple[set[str], list[str]]:
    """The cases that a pre-training has seen, which are no test cases; without two others, none and a warning."""
    seen = seen_cases([path for path in files if (path.parent / "manifest.json").is_file()])
    if len(set(labelled) - seen) >= 2:
        return seen, []
    warning = "The pre-trainings have seen the images (not the labels) of the test cases."
    logger.warning(warning)
    return set(), [warning]


def _branches(name: str, path: Path, branch: str) -> list[tuple[str, Branch | None]]:
    """List the networks of a checkpoint that are probed: a label and a branch each."""
    teacher = bool(load_checkpoint(path, [SECTION_OF["teacher"]]).tensors)
    if branch == "both" and teacher:
        return [(f"{name} (student)", "student"), (f"{name} (teacher)", "teacher")]
    if branch == "both":
        return [(name, None)]
    return [(f"{name} ({branch})", "teacher" if branch == "teacher" else "student")]


def _finished(planned: PlannedDataset, method: str, plans: str) -> Path:
    """Path of the checkpoint of a finished pre-training.

    Raises:
        WeightsNotFoundError: the pre-training has not finished.
    """
    path = pretraining_folder(method, planned.name, plans, planned.configuration_name) / FINAL
    if not path.is_file():
        command = f"nnunet-invariance pretrain {method} {planned.name} {planned.configuration_name} -p {plans}"
        raise WeightsNotFoundError(
            f"There is no finished pre-training {path}. Run `{command}`, or name checkpoint files with --weights."
        )
    return path
