"""Copies of plans files under new names; the user's plans are never edited in place."""

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import OptionError, OutputError
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.nnunet.preprocessing_fingerprint import PREPROCESSING
from nnunet_invariance.plans.block import check_block
from nnunet_invariance.plans.options import BLOCK

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FittedPlans:
    """A plans copy that names a checkpoint.

    Attributes:
        path: the plans file.
        decisions: one line per decision, for the user.
        trainer: name of the trainer to train with.

    >>> FittedPlans(Path("plans.json"), ()).trainer
    'TransferTrainer'
    """

    path: Path
    decisions: tuple[str, ...]
    trainer: str = "TransferTrainer"


def write_plans_copy(
    dataset_name: str,
    base_plans_name: str,
    new_plans_name: str,
    configuration: str,
    block: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    pretrain_info: Mapping[str, Any] | None = None,
) -> Path:
    """Write a copy of a plans file into the same folder and return its path; a second identical copy changes nothing.

    Args:
        dataset_name: name or id.
        configuration: the configuration that ``block`` and ``changes`` are for.
        block: options, merged into the configuration's ``nnunet_invariance`` block.
        changes: keys of the configuration to replace. If they change the preprocessing, the copy gets its own
            ``data_identifier`` and :func:`preprocessing_command` is logged.
        pretrain_info: the block that nnU-Net's own fine-tuning reads; it replaces that of the base plans.

    Raises:
        OptionError: a plans name contains ``__`` or is no file name, or an option is wrong.
        OutputError: a file of that name has other content, or the file cannot be written.
        NotPreprocessedError, UnknownConfigurationError, DatasetNotFoundError, EnvironmentNotSetError
    """
    _check_name(new_plans_name)
    dataset = open_planned_dataset(dataset_name, configuration, base_plans_name)
    before = dataset.configuration.configuration
    plans = copy.deepcopy(dataset.plans.plans)
    plans["plans_name"] = new_plans_name
    if pretrain_info:
        plans["pretrain_info"] = dict(pretrain_info)
    entry = plans["configurations"][configuration]
    entry.update(changes or {})
    if any(entry.get(key, before[key]) != before[key] for key in PREPROCESSING if key in before):
        entry["data_identifier"] = f"{new_plans_name}_{configuration}"
    if block:
        entry[BLOCK] = {**before.get(BLOCK, {}), **block}
    check_block(PlansManager(plans).get_configuration(configuration).configuration)

    path = dataset.base / f"{new_plans_name}.json"
    if path.is_file() and read_json(path) != json.loads(json.dumps(plans)):
        raise OutputError(f"{path} exists with other content and is not overwritten. Choose another plans name.")
    if not path.is_file():
        write_json(path, plans, indent=4)
    command = preprocessing_command(dataset.name, new_plans_name, configuration)
    if command:
        logger.info("%s has no preprocessed cases yet; preprocess them with: %s", path.stem, command)
    return path


def preprocessing_command(dataset_name: str, plans_name: str, configuration: str) -> str | None:
    """Return the command that preprocesses a configuration, or None if its folder has cases already."""
    dataset = open_planned_dataset(dataset_name, configuration, plans_name)
    if dataset.folder.is_dir() and any(dataset.folder.iterdir()):
        return None
    identifier = int(dataset.name.split("_")[0].removeprefix("Dataset"))
    return f"nnUNetv2_preprocess -d {identifier} -plans_name {plans_name} -c {configuration}"


def _check_name(name: str) -> None:
    """Refuse names that nnU-Net cannot use for plans files, or for result folders, whose names it splits at ``__``."""
    if not name or "__" in name or "/" in name or name.endswith(".json"):
        msg = f"Plans name {name!r} cannot be used: expected a plain name without '__', '/' or '.json'."
        raise OptionError(msg + " Choose another, for example nnUNetPlans_alice.")
