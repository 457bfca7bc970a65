"""The arms of a comparison: trainers with their twins, and baselines of the same length."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnunet_invariance._discovery import find_trainer, nearest_trainers
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import ComparisonError
from nnunet_invariance.evaluation.protocols.checkpoints import starts_from_weights
from nnunet_invariance.evaluation.runner.jobs import Arm
from nnunet_invariance.evaluation.statistics.effects import Contrast
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset
from nnunet_invariance.plans.options import BLOCK
from nnunet_invariance.registry import LENGTH_SUFFIX

logger = logging.getLogger(__name__)

STOCK = "nnUNetTrainer"
#: Stock trainers, and the replacement of each if epochs or iterations are not nnU-Net's own.
WITH_OPTIONS = {STOCK: "BaselineTrainer", "nnUNetTrainerDA5": "BaselineTrainerDA5"}
STOCK_ITERATIONS = {"iterations_per_epoch": 250, "val_iterations_per_epoch": 50}
TWINS = "own twin"


@dataclass(frozen=True)
class Selection:
    """The chosen arms, the contrasts (empty: every arm with the last one), and why trainers were left out.

    >>> Selection((Arm("nnUNetTrainer", "nnUNetTrainer"),)).contrasts
    ()
    """

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


def choose_arms(trainers: Sequence[str], baselines: Sequence[str], planned: PlannedDataset) -> Selection:
    """Every trainer with its ``_scratch`` twin, then the baselines, all for the same number of iterations.

    A name without a length takes that of the others. nnU-Net's own trainers know no other length and no options of the
    plans block; where these differ from stock, BaselineTrainer stands in for nnUNetTrainer, and BaselineTrainerDA5
    for nnUNetTrainerDA5. A trainer is compared with its twin and with every baseline; one that would start from random
    weights anyway has no twin. ``NAME@PLANS`` is a trainer with the options of another plans copy.

    Raises:
        ComparisonError: a name is unknown, lengths differ, plans do not fit, or no trainer applies.
    """
    length = _common_length([*trainers, *baselines])
    trainers, baselines = ([_of_length(n, length, planned) for n in names] for names in (trainers, baselines))
    left_out, arms, contrasts = {}, [], []
    for name in dict.fromkeys([*trainers, *baselines]):
        if reason := why_not(name, planned):
            left_out[name] = reason
            continue
        twin = twin_of(name) if name in trainers and starts_from_weights(make_arm(name, planned), planned) else None
        arms += [name, twin] if twin else [name]
        contrasts += [Contrast(name, twin, TWINS)] if twin else []
        if name in trainers:
            contrasts += [Contrast(name, b, b) for b in baselines if b != name and not why_not(b, planned)]
    if not arms:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise ComparisonError(f"No trainer applies to {planned.name}: {reasons}. Name others.")
    chosen = tuple(make_arm(name, planned) for name in dict.fromkeys(arms))
    return Selection(chosen, tuple(dict.fromkeys(contrasts)), left_out)


def open_comparison(
    dataset: str, configuration: str, plans: str, trainers: Sequence[str], baselines: Sequence[str]
) -> tuple[PlannedDataset, Selection]:
    """Open a planned data set and choose the arms of a comparison on it; the log names the arms.

    Args:
        dataset: name or id.
        configuration: of the plans, for example ``3d_fullres``.
        plans: plans identifier.
        trainers, baselines: see :func:`choose_arms`.

    Raises:
        ComparisonError: see :func:`choose_arms`.
        DatasetNotFoundError, NotPreprocessedError, UnknownConfigurationError
    """
    planned = open_planned_dataset(dataset, configuration, plans)
    selection = choose_arms(trainers, baselines, planned)
    logger.info("trainers: %s", ", ".join(arm.name for arm in selection.arms))
    for name, reason in selection.left_out.items():
        logger.info("left out: %s %s", name, reason)
    return planned, selection


def make_arm(name: str, planned: PlannedDataset) -> Arm:
    """The arm with the name ``NAME`` or ``NAME@PLANS``.

    Raises:
        ComparisonError: the plans are for other preprocessed cases, or for another number of iterations.
        NotPreprocessedError, UnknownConfigurationError
    """
    trainer, _, plans = name.partition("@")
    if not plans:
        return Arm(name, trainer)
    other = open_planned_dataset(planned.name, planned.configuration_name, plans)
    if other.folder != planned.folder:
        msg = f"{name}: {plans} is for the preprocessed cases in {other.folder.name}, {planned.plans.plans_name} for "
        raise ComparisonError(f"{msg}those in {planned.folder.name}. Name plans that differ in options alone.")
    blocks = [p.configuration.configuration.get(BLOCK, {}) for p in (planned, other)]
    for key, number in STOCK_ITERATIONS.items():
        found = [block.get(key) or number for block in blocks]
        if found[0] != found[1]:
            msg = f"{name}: {key} is {found[1]} in {plans} and {found[0]} in {planned.plans.plans_name}. "
            raise ComparisonError(f"{msg}A comparison needs equal numbers of iterations: give both the same.")
    return Arm(name, trainer, plans=plans)


def twin_of(name: str) -> str | None:
    """Name of the same trainer without pre-trained weights; None if there is none, or for a twin itself."""
    trainer, at, plans = name.partition("@")
    length = LENGTH_SUFFIX.search(trainer)
    base = trainer[: length.start()] if length else trainer
    twin = f"{base}_scratch{length[0] if length else ''}"
    return None if base.endswith("_scratch") or find_trainer(twin) is None else f"{twin}{at}{plans}"


def _common_length(names: Sequence[str]) -> str:
    """The suffix with the number of epochs; "" if no name has one."""
    lengths = {match[0] for name in names if (match := LENGTH_SUFFIX.search(name.partition("@")[0]))}
    if len(lengths) > 1:
        msg = f"The trainers' lengths differ ({', '.join(sorted(lengths))}): all arms need equal iterations. "
        raise ComparisonError(f"{msg}Give all names the same one.")
    return next(iter(lengths), "")


def _of_length(name: str, length: str, planned: PlannedDataset) -> str:
    """The name with the common length; a stock trainer is replaced if the iterations are not nnU-Net's own."""
    trainer, at, plans = name.partition("@")
    base = LENGTH_SUFFIX.sub("", trainer)
    block = planned.configuration.configuration.get(BLOCK, {})
    stock = all(block.get(key) in (None, number) for key, number in STOCK_ITERATIONS.items())
    if base.startswith(STOCK) and (length or not stock):
        if base not in WITH_OPTIONS:
            known = " and ".join(WITH_OPTIONS)
            msg = f"{base} supports nnU-Net's own numbers of epochs and iterations only; others are compared here. "
            raise ComparisonError(f"{msg}Leave it out; {known} have variants of any length.")
        base = WITH_OPTIONS[base]
    return f"{base}{length}{at}{plans}"


def why_not(name: str, planned: PlannedDataset) -> str | None:
    """Why a trainer cannot be trained on these plans; None if it can.

    Reads the class attributes ``dimensions`` (numbers of spatial dimensions) and ``least_channels``.

    Raises:
        ComparisonError: no trainer of that name.
    """
    name = name.partition("@")[0]
    trainer = find_trainer(name)
    if trainer is None:
        if name.startswith(STOCK):
            return None
        near = ", ".join(nearest_trainers(name)) or "none"
        raise ComparisonError(f"There is no trainer {name!r}; similar names: {near}. Correct it.")
    dimensions, channels = getattr(trainer, "dimensions", ()), len(planned.channel_names)
    if dimensions and len(planned.patch_size) not in dimensions:
        needed = " or ".join(f"{d}-D" for d in dimensions)
        return f"needs a {needed} configuration, {planned.configuration_name} is {len(planned.patch_size)}-D"
    if dimensions and planned.configuration.previous_stage_name is not None:
        return f"supports no cascade, which {planned.configuration_name} is part of"
    if channels < (least := getattr(trainer, "least_channels", 1)):
        return f"needs at least {counted(least, 'channel')}, {planned.name} has {channels}"
    return None
