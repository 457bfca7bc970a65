"""Which pre-trained weights the arms start from, whether they have seen a test case, and making those that miss."""

import csv
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.cases import PREPROCESSED_ENDINGS, seen_cases
from nnunet_invariance.evaluation.protocols.splits import shared_cases
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.runner.record import kept
from nnunet_invariance.evaluation.runner.stock_commands import run_command
from nnunet_invariance.evaluation.runner.tree import copy_plans, link_preprocessed
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.plans.options import BLOCK, read_options
from nnunet_invariance.registry import ANY_METHOD, method_of_trainer, pretrain_methods
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata
from nnunet_invariance.weights.locate import (
    ENVIRONMENT_VARIABLE,
    FINAL,
    LATEST,
    find_shipped,
    pretraining_folder,
)
from nnunet_invariance.weights.transfer import SECTION_OF, can_load

logger = logging.getLogger(__name__)

#: Folder of a comparison for the pre-trainings that it makes itself.
OWN = "pretraining"


def method_of(arm: Arm) -> str | None:
    """The pre-training that an arm needs; "transfer" for a checkpoint of any method; None where it needs none."""
    return method_of_trainer(arm.trainer)


def bring_checkpoints(
    planned: PlannedDataset,
    arms: Sequence[Arm],
    test: Collection[str],
    out: Path,
    device: str,
    words: Sequence[str] | None,
    *,
    transductive: bool,
    here: bool,
    elsewhere: Collection[str] = (),
) -> tuple[dict[str, Path], set[str]]:
    """The checkpoint of every arm that starts from one, and the test cases that a pre-training has seen.

    Args:
        test: test cases of this data set; ``elsewhere``: of others, whose names may be the same by chance.
        words: settings for missing pre-trainings, which are then made without the test cases; None makes none.
        here: whether the trainings run on this machine.

    Raises:
        ComparisonError: weights are missing, or have seen a test case and ``transductive`` does not allow that.
    """
    places = [own_folder(out, planned), Path(os.environ["nnUNet_results"]) / planned.name / "pretraining"]
    checkpoints = find_checkpoints(arms, planned, places)
    if words is not None:
        if not here:
            raise ComparisonError("--pretrain runs here, not on Slurm: run it without --submit first, then submit.")
        require_methods(words)
        made = _to_make(planned, arms, checkpoints, test)
        others = {arm.name: checkpoints[arm.name] for arm in arms if arm not in made and arm.name in checkpoints}
        if not transductive:  # hours before the others are made
            require_unseen(others, _seen(planned, others, test, elsewhere))
        with lock_folder(out) as lock:
            for method in dict.fromkeys(map(method_of, made)):
                pretrain(method, planned, test, out, device, words, [lock])
        checkpoints |= find_checkpoints(made, planned, places[:1])
    require_all(arms, checkpoints, planned)
    seen = _seen(planned, checkpoints, test, elsewhere)
    if not transductive:
        require_unseen(checkpoints, seen)
    return checkpoints, seen


def _seen(
    planned: PlannedDataset, checkpoints: Mapping[str, Path], test: Collection[str], elsewhere: Collection[str]
) -> set[str]:
    """Test cases that a pre-training has seen."""
    found = checkpoints.values()
    seen = seen_cases(found) & set(test)
    return seen | seen_cases(found, besides=planned.folder.name) & set(elsewhere) if elsewhere else seen


def require_methods(words: Sequence[str]) -> None:
    """Refuse a setting for a pre-training that there is not.

    Raises:
        ComparisonError: names the word.
    """
    known = pretrain_methods()
    for word in words:
        method, colon, _ = word.partition(":")
        if colon and method not in known:
            msg = f"--pretrain {word}: there is no pre-training {method!r}. Expected one of {', '.join(known)}."
            raise ComparisonError(msg)


def _to_make(
    planned: PlannedDataset, arms: Sequence[Arm], checkpoints: Mapping[str, Path], test: Collection[str]
) -> list[Arm]:
    """Arms whose pre-trainings are not there or have seen a test case.

    Raises:
        ComparisonError: an arm lacks weights that cannot be made here.
    """
    clean = {arm: path for arm, path in checkpoints.items() if not seen_cases([path]) & set(test)}
    missing = [arm for arm in arms if arm.name not in clean and not named_checkpoint(arm, planned)]
    made = [arm for arm in missing if method_of(arm) not in (None, ANY_METHOD)]
    require_all([arm for arm in arms if arm not in made], checkpoints, planned)
    if own := [arm.name for arm in made if arm.plans]:
        raise ComparisonError(f"{own[0]} has plans of its own; --pretrain makes weights for the shared ones alone.")
    return made


def plans_of(arm: Arm, planned: PlannedDataset) -> PlannedDataset:
    """The data set under the arm's own plans, where it has some."""
    return open_planned_dataset(planned.name, planned.configuration_name, arm.plans) if arm.plans else planned


def takes_weights(arm: Arm, planned: PlannedDataset) -> bool:
    """Whether an arm starts from a pre-training or a named checkpoint."""
    return method_of(arm) is not None or named_checkpoint(arm, planned) is not None


def named_checkpoint(arm: Arm, planned: PlannedDataset) -> Path | None:
    """The checkpoint that the arm's or this process's environment or the plans block names; it need not exist."""
    if getattr(find_trainer(arm.trainer), "scratch", True):
        return None
    block = plans_of(arm, planned).configuration.configuration.get(BLOCK, {})
    places = (arm.environment.get(ENVIRONMENT_VARIABLE), os.environ.get(ENVIRONMENT_VARIABLE), block.get("checkpoint"))
    return next((Path(place).expanduser().resolve() for place in places if place), None)


def find_checkpoints(arms: Sequence[Arm], planned: PlannedDataset, places: Sequence[Path]) -> dict[str, Path]:
    """The existing checkpoint that each arm would start from; ``places`` are folders of pre-trainings, best first."""
    found = {arm.name: _find_checkpoint(arm, planned, places) for arm in arms}
    return {name: path for name, path in found.items() if path}


def _find_checkpoint(arm: Arm, planned: PlannedDataset, places: Sequence[Path]) -> Path | None:
    """The first of the four places that holds one, as for the arm's trainer; an unfinished run ends the search."""
    if named := named_checkpoint(arm, planned):
        return named if named.is_file() else None
    own, method = plans_of(arm, planned), method_of(arm)
    if method in (None, ANY_METHOD):
        return None
    folders = [place / folder_name(method, own) for place in places]
    if finished := next((folder / FINAL for folder in folders if (folder / FINAL).is_file()), None):
        return finished
    if any((folder / LATEST).is_file() for folder in folders):
        return None
    shipped = find_shipped(method, lambda path: _fits(path, arm, own))
    return shipped.path if shipped else None


def _fits(path: Path, arm: Arm, planned: PlannedDataset) -> bool:
    """Whether a file of the package fills the network of the arm's trainer."""
    trainer, configuration = find_trainer(arm.trainer), planned.configuration
    heads = planned.plans.get_label_manager(planned.dataset_json).num_segmentation_heads
    channels = len(planned.channel_names)
    network = trainer.build_network_architecture(planned.plans, configuration, channels, heads, False)
    network = getattr(getattr(network, "encoder", None), "backbone", network)  # what makes frozen features, if any
    options = read_options(trainer.options_class, configuration.configuration)
    checkpoint = load_checkpoint(path, SECTION_OF.values())
    branch = options.branch or ("teacher" if checkpoint.section(SECTION_OF["teacher"]) else "student")
    return can_load(network, checkpoint, transfer=options.transfer, branch=branch, min_coverage=options.min_coverage)


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
    """Refuse to begin while an arm lacks its weights.

    Raises:
        ComparisonError: lists every arm without weights and the command that makes them.
    """
    lines = []
    for arm in arms:
        named, method = named_checkpoint(arm, planned), method_of(arm)
        if arm.name in checkpoints or not (named or method):
            continue
        words = f"{planned.name} {planned.configuration_name} -p {arm.plans or planned.plans.plans_name}"
        remedy = f"nnunet-invariance pretrain {method} {words}{' --c' if _begun(arm, planned) else ''}"
        remedy = f"name a checkpoint in {ENVIRONMENT_VARIABLE} or the plans" if method == ANY_METHOD else remedy
        lines.append(f"  {arm.name}: {named} does not exist" if named else f"  {arm.name}: {remedy}")
    if lines:
        msg = "Nothing was started, because weights are missing:\n" + "\n".join(lines)
        raise ComparisonError(
            f"{msg}\nMake them, or give --pretrain to have them made on images that are not test cases."
        )


def _begun(arm: Arm, planned: PlannedDataset) -> bool:
    """Whether the user has an unfinished pre-training for the arm."""
    own, method = plans_of(arm, planned), method_of(arm)
    names = (own.name, own.plans.plans_name, own.configuration_name)
    return method is not None and (pretraining_folder(method, *names) / LATEST).is_file()


def title(checkpoint: Path) -> str:
    """The folder says what a finished pre-training is, the file's own name what any other checkpoint is."""
    return checkpoint.parent.name if checkpoint.name == FINAL else checkpoint.name


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Checksum and cost of a checkpoint; its seconds are null where no ``metrics.csv`` stands beside it."""
    metadata = read_metadata(path)
    metrics = path.parent / "metrics.csv"
    seconds = None
    if metrics.is_file():
        with metrics.open(newline="") as file:
            seconds = round(sum(float(row["seconds"]) for row in csv.DictReader(file)), 1)
    return {"sha256": metadata["sha256"], "steps": metadata.get("total_steps"), "seconds": seconds}


def pretrain(
    method: str,
    planned: PlannedDataset,
    test: Collection[str],
    out: Path,
    device: str,
    words: Sequence[str] = (),
    keep_open: Sequence[int] = (),
) -> Path:
    """Run or continue ``pretrain METHOD`` on the preprocessed cases that are not tested, in a tree of its own.

    ``words`` are settings ``key=value`` for all methods, or ``METHOD:key=value``.

    Raises:
        ComparisonError: the command failed; names its log.
    """
    tree = out / OWN
    base = tree / "nnUNet_preprocessed" / planned.name
    copy_plans(base, planned)
    names = {p.name[: -len(".pkl")] for p in planned.folder.glob("*.pkl")}
    for file in [base / planned.folder.name / f"{case}{ending}" for case in test for ending in PREPROCESSED_ENDINGS]:
        file.unlink(missing_ok=True)  # of an earlier call, which tested others
    link_preprocessed(base, planned, names - set(test))
    folder = own_folder(out, planned) / folder_name(method, planned)
    begun = (folder / LATEST).is_file() and not seen_cases([folder / LATEST]) & set(test)
    command = ["nnunet-invariance", "pretrain", method, planned.name, planned.configuration_name]
    command += ["-p", planned.plans.plans_name, "-device", device]
    settings = [word.removeprefix(f"{method}:") for word in words if ":" not in word or word.startswith(f"{method}:")]
    command += ["--c"] if begun else []
    command += ["--set", *settings] if settings else []
    environment = {f"nnUNet_{name}": str(tree / f"nnUNet_{name}") for name in ("preprocessed", "results")}
    logger.info("pre-training %s on %d images, no test case among them", method, len(names - set(test)))
    log = tree / f"{method}.log"
    with kept(tree / f"{method}.json", "pretrain", command, device):
        run_command(f"pretrain {method}", command, log, out, environment, keep_open=keep_open)
    return folder / FINAL


def own_folder(out: Path, planned: PlannedDataset) -> Path:
    """Where the comparison keeps the pre-trainings that it has made."""
    return out / OWN / "nnUNet_results" / planned.name / "pretraining"
