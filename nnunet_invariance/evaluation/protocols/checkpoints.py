"""Which pre-trained weights the arms of a comparison start from, and which cases these have seen."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.common.csv_files import read_csv
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.cases import seen_cases
from nnunet_invariance.evaluation.protocols.splits import shared_cases
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.plans.block import read_options
from nnunet_invariance.plans.options import BLOCK
from nnunet_invariance.registry import ANY_METHOD, method_of_trainer
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata
from nnunet_invariance.weights.locate import (
    ENVIRONMENT_VARIABLE,
    FINAL,
    LATEST,
    find_shipped,
    pretraining_folder,
)
from nnunet_invariance.weights.transfer import SECTION_OF, can_load

_PROBLEM = re.compile(r" ERROR epoch (\d+): (.*)$", re.MULTILINE)


def method_of(arm: Arm) -> str | None:
    """The pre-training method of an arm; "transfer" for a named checkpoint of any method; None without weights."""
    return method_of_trainer(arm.trainer)


def plans_of(arm: Arm, planned: PlannedDataset) -> PlannedDataset:
    """The data set under the arm's own plans, or under the shared ones if it has none."""
    return open_planned_dataset(planned.name, planned.configuration_name, arm.plans) if arm.plans else planned


def starts_from_weights(arm: Arm, planned: PlannedDataset) -> bool:
    """Whether an arm starts from a pre-training or a named checkpoint."""
    return method_of(arm) is not None or named_checkpoint(arm, planned) is not None


def named_checkpoint(arm: Arm, planned: PlannedDataset) -> Path | None:
    """The checkpoint that the environment of the arm or of this process or the plans block names; it may not exist."""
    if getattr(find_trainer(arm.trainer), "scratch", True):
        return None
    block = plans_of(arm, planned).configuration.configuration.get(BLOCK, {})
    named = (arm.environment.get(ENVIRONMENT_VARIABLE), os.environ.get(ENVIRONMENT_VARIABLE), block.get("checkpoint"))
    return next((Path(path).expanduser().resolve() for path in named if path), None)


def find_checkpoints(arms: Sequence[Arm], planned: PlannedDataset, folders: Sequence[Path]) -> dict[str, Path]:
    """The existing checkpoint that each arm would start from, by arm.

    Args:
        folders: parent folders of pre-trainings, in the order in which they are searched.
    """
    found = {arm.name: _find_checkpoint(arm, planned, folders) for arm in arms}
    return {name: path for name, path in found.items() if path}


def _find_checkpoint(arm: Arm, planned: PlannedDataset, parents: Sequence[Path]) -> Path | None:
    """The checkpoint that the arm's trainer would load; an unfinished pre-training ends the search."""
    if named := named_checkpoint(arm, planned):
        return named if named.is_file() else None
    own, method = plans_of(arm, planned), method_of(arm)
    if method is None or method == ANY_METHOD:
        return None
    folders = [parent / folder_name(method, own) for parent in parents]
    if finished := next((folder / FINAL for folder in folders if (folder / FINAL).is_file()), None):
        return finished
    if any((folder / LATEST).is_file() for folder in folders):
        return None
    shipped = find_shipped(method, lambda path: _fits(path, arm, own))
    return shipped.path if shipped else None


def _fits(path: Path, arm: Arm, planned: PlannedDataset) -> bool:
    """Whether a shipped checkpoint can be loaded into the network of the arm's trainer."""
    trainer: Any = find_trainer(arm.trainer)
    configuration = planned.configuration
    heads = planned.plans.get_label_manager(planned.dataset_json).num_segmentation_heads
    channels = len(planned.channel_names)
    network = trainer.build_network_architecture(planned.plans, configuration, channels, heads, False)
    options = read_options(trainer.options_class, configuration.configuration)
    checkpoint = load_checkpoint(path, SECTION_OF.values())
    return can_load(
        network,
        checkpoint,
        transfer=options.transfer,
        branch=options.branch,
        min_coverage=options.min_coverage,
        allow_deeper_network=True,
    )


def folder_name(method: str, planned: PlannedDataset) -> str:
    """Name of the folder of a pre-training for these plans."""
    return f"{method}__{planned.plans.plans_name}__{planned.configuration_name}"


def require_unseen(checkpoints: Mapping[str, Path], test: Collection[str]) -> None:
    """Refuse test cases that a pre-training has seen.

    Raises:
        ComparisonError: names pre-training and cases.
    """
    for path in dict.fromkeys(checkpoints.values()):
        if shared := sorted(seen_cases([path]) & set(test)):
            msg = shared_cases(shared, f"pre-training {title(path)}")
            raise ComparisonError(f"{msg} With --transductive they are allowed, and the report says so.")


def require_all(arms: Sequence[Arm], checkpoints: Mapping[str, Path], planned: PlannedDataset) -> None:
    """Refuse a comparison in which an arm has no weights.

    Raises:
        ComparisonError: lists every arm without weights and the command that makes them.
    """
    lines = []
    for arm in arms:
        named, method = named_checkpoint(arm, planned), method_of(arm)
        if arm.name in checkpoints or not (named or method):
            continue
        words = f"{planned.name} {planned.configuration_name} -p {arm.plans or planned.plans.plans_name}"
        remedy = f"nnunet-invariance pretrain {method} {words}{' --c' if unfinished_pretraining(arm, planned) else ''}"
        remedy = f"name a checkpoint in {ENVIRONMENT_VARIABLE} or the plans" if method == ANY_METHOD else remedy
        lines.append(f"  {arm.name}: {named} does not exist" if named else f"  {arm.name}: {remedy}")
    if lines:
        msg = "Nothing was started, because weights are missing:\n" + "\n".join(lines)
        raise ComparisonError(
            f"{msg}\nMake them, or give --pretrain to have them made on images that are not test cases."
        )


def unfinished_pretraining(arm: Arm, planned: PlannedDataset) -> bool:
    """Whether the user has an unfinished pre-training for the arm."""
    own, method = plans_of(arm, planned), method_of(arm)
    names = (own.name, own.plans.plans_name, own.configuration_name)
    return method is not None and (pretraining_folder(method, *names) / LATEST).is_file()


def title(checkpoint: Path) -> str:
    """Name of a checkpoint: the folder of a finished pre-training, or the file name of any other checkpoint."""
    return checkpoint.parent.name if checkpoint.name == FINAL else checkpoint.name


@dataclass(frozen=True)
class _Epoch:
    """The column of ``metrics.csv`` that is read."""

    seconds: float


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Checksum, steps, seconds and warnings of a pre-training.

    The seconds are None without a ``metrics.csv`` beside the checkpoint. The warnings are those of :func:`warnings_of`.
    """
    metadata = read_metadata(path)
    metrics = path.parent / "metrics.csv"
    seconds = None
    if metrics.is_file():
        seconds = round(sum(row.seconds for row in read_csv(metrics, _Epoch)), 1)
    described = {"sha256": metadata["sha256"], "steps": metadata.get("total_steps"), "seconds": seconds}
    warnings = warnings_of(path.parent) if path.name == FINAL else []
    return {**described, "warnings": warnings} if warnings else described


def warnings_of(pretraining: Path) -> list[str]:
    """The errors in the ``log.txt`` of a pre-training about its last epoch that has any, for example a collapse."""
    log = pretraining / "log.txt"
    found = _PROBLEM.findall(log.read_text(errors="replace")) if log.is_file() else []
    last = found[-1][0] if found else ""
    return list(dict.fromkeys(f"{text} (epoch {epoch})" for epoch, text in found if epoch == last))
