"""Weights for the arms of a comparison: found, or pre-trained on cases that are not tested."""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.cases import PREPROCESSED_ENDINGS, seen_cases
from nnunet_invariance.evaluation.protocols.checkpoints import (
    find_checkpoints,
    folder_name,
    method_of,
    named_checkpoint,
    require_all,
    require_unseen,
)
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.runner.record import recorded
from nnunet_invariance.evaluation.runner.stock_commands import run_command
from nnunet_invariance.evaluation.runner.tree import copy_plans, link_preprocessed
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.engine.method import load_method
from nnunet_invariance.pretraining.engine.settings import make_loop_options, make_method_options, parse_settings
from nnunet_invariance.registry import ANY_METHOD, get_method, pretrain_methods
from nnunet_invariance.weights.locate import FINAL, LATEST

logger = logging.getLogger(__name__)

#: Folder of a comparison for the pre-trainings that it makes itself.
OWN = "pretraining"


@dataclass(frozen=True)
class WeightRules:
    """Which weights a comparison accepts.

    Attributes:
        test: test cases of the data set that is trained on, which no pre-training may have seen.
        other_tests: test cases of other data sets; they may have the same names as training cases by chance.
        settings: options of missing pre-trainings, which are then made without the test cases; None makes none.
        transductive: allow pre-trainings that have seen a test case.
        local: whether the trainings run on this machine.

    >>> WeightRules(test=["case_1"]).transductive
    False
    """

    test: Collection[str]
    other_tests: Collection[str] = ()
    settings: Sequence[str] | None = None
    transductive: bool = False
    local: bool = True


def provide_checkpoints(
    planned: PlannedDataset, arms: Sequence[Arm], out: Path, device: str, rules: WeightRules
) -> tuple[dict[str, Path], set[str]]:
    """Find or make the checkpoint of every arm that starts from one.

    Returns:
        The checkpoint by arm, and the test cases that a pre-training has seen.

    Raises:
        ComparisonError: weights are missing, or have seen a test case although ``rules`` do not allow that.
    """
    folders = _folders(planned, out)
    checkpoints = find_checkpoints(arms, planned, folders)
    if rules.settings is not None:
        made = _make_missing(planned, arms, checkpoints, out, device, rules)
        checkpoints |= find_checkpoints(made, planned, folders[:1])
    require_all(arms, checkpoints, planned)
    seen = _seen(planned, checkpoints, rules)
    if not rules.transductive:
        require_unseen(checkpoints, seen)
    return checkpoints, seen


def _make_missing(
    planned: PlannedDataset,
    arms: Sequence[Arm],
    checkpoints: Mapping[str, Path],
    out: Path,
    device: str,
    rules: WeightRules,
) -> list[Arm]:
    """Pre-train for the arms that have no usable checkpoint; returns these arms."""
    settings = rules.settings or ()
    if not rules.local:
        raise ComparisonError("--pretrain runs here, not on Slurm: run it without --submit first, then submit.")
    require_methods(settings)
    made = _arms_to_pretrain(planned, arms, checkpoints, rules.test)
    others = {arm.name: checkpoints[arm.name] for arm in arms if arm not in made and arm.name in checkpoints}
    if not rules.transductive:  # before hours of pre-training
        require_unseen(others, _seen(planned, others, rules))
    with lock_folder(out) as lock:
        for method in dict.fromkeys(filter(None, map(method_of, made))):
            pretrain(method, planned, rules.test, out, device, settings, [lock])
    return made


def _seen(planned: PlannedDataset, checkpoints: Mapping[str, Path], rules: WeightRules) -> set[str]:
    """Test cases that a pre-training has seen."""
    found = checkpoints.values()
    seen = seen_cases(found) & set(rules.test)
    if rules.other_tests:
        seen |= seen_cases(found, besides=planned.folder.name) & set(rules.other_tests)
    return seen


def require_methods(settings: Sequence[str]) -> None:
    """Refuse a setting ``METHOD:key=value`` whose method does not exist.

    Raises:
        ComparisonError: names the setting.
    """
    known = pretrain_methods()
    for setting in settings:
        method, colon, _ = setting.partition(":")
        if colon and method not in known:
            msg = f"--pretrain {setting}: there is no pre-training {method!r}. Expected one of {', '.join(known)}."
            raise ComparisonError(msg)


def check_settings(planned: PlannedDataset, arms: Sequence[Arm], out: Path, settings: Sequence[str]) -> None:
    """Check the settings of ``--pretrain`` for the methods of the arms that have no weights, without running them.

    Raises:
        ComparisonError: a setting is for a method that does not exist.
        OptionError: an option is unknown or out of range.
    """
    if not settings:
        return
    require_methods(settings)
    found = find_checkpoints(arms, planned, _folders(planned, out))
    for method in {method_of(arm) for arm in arms if arm.name not in found} - {None, ANY_METHOD}:
        kind = load_method(get_method(str(method)))
        parsed = parse_settings(_settings_of(str(method), settings), kind.options_class)
        make_loop_options(kind, parsed.loop)
        make_method_options(kind, parsed.method)


def _folders(planned: PlannedDataset, out: Path) -> list[Path]:
    """Parent folders of pre-trainings: that of the comparison first."""
    return [own_folder(out, planned), Path(os.environ["nnUNet_results"]) / planned.name / "pretraining"]


def _settings_of(method: str, settings: Sequence[str]) -> list[str]:
    """The settings ``key=value`` and ``METHOD:key=value`` that concern a method, without its name."""
    return [word.removeprefix(f"{method}:") for word in settings if ":" not in word or word.startswith(f"{method}:")]


def _arms_to_pretrain(
    planned: PlannedDataset, arms: Sequence[Arm], checkpoints: Mapping[str, Path], test: Collection[str]
) -> list[Arm]:
    """Arms whose pre-training is missing or has seen a test case.

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


def pretrain(
    method: str,
    planned: PlannedDataset,
    test: Collection[str],
    out: Path,
    device: str,
    options: Sequence[str] = (),
    keep_open: Sequence[int] = (),
) -> Path:
    """Run or continue ``pretrain METHOD`` on the preprocessed cases that are not tested, in a folder of its own.

    ``options`` are settings ``key=value`` for all methods, or ``METHOD:key=value``.

    Raises:
        ComparisonError: the command failed; names its log.
    """
    tree = out / OWN
    base = tree / "nnUNet_preprocessed" / planned.name
    copy_plans(base, planned)
    names = {p.name[: -len(".pkl")] for p in planned.folder.glob("*.pkl")}
    for file in [base / planned.folder.name / f"{case}{ending}" for case in test for ending in PREPROCESSED_ENDINGS]:
        file.unlink(missing_ok=True)  # of an earlier call with other test cases
    link_preprocessed(base, planned, names - set(test))
    folder = own_folder(out, planned) / folder_name(method, planned)
    begun = (folder / LATEST).is_file() and not seen_cases([folder / LATEST]) & set(test)
    command = ["nnunet-invariance", "pretrain", method, planned.name, planned.configuration_name]
    command += ["-p", planned.plans.plans_name, "-device", device]
    settings = _settings_of(method, options)
    command += ["--c"] if begun else []
    command += ["--set", *settings] if settings else []
    environment = {f"nnUNet_{name}": str(tree / f"nnUNet_{name}") for name in ("preprocessed", "results")}
    images = counted(len(names - set(test)), "image")
    logger.info("pre-training %s on %s, no test case among them", method, images)
    log = tree / f"{method}.log"
    with recorded(tree / f"{method}.json", "pretrain", command, device):
        run_command(f"pretrain {method}", command, log, out, environment, keep_open=keep_open)
    return folder / FINAL


def own_folder(out: Path, planned: PlannedDataset) -> Path:
    """Folder of the pre-trainings that the comparison has made."""
    return out / OWN / "nnUNet_results" / planned.name / "pretraining"
