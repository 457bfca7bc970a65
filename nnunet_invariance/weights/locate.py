"""Search for the weights that a trainer starts from: four locations in a fixed order, and the first hit wins."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.paths import nnUNet_results

from nnunet_invariance.errors import EnvironmentNotSetError, WeightsNotFoundError
from nnunet_invariance.registry import ANY_METHOD
from nnunet_invariance.weights.checkpoint import SUFFIX, read_metadata

ENVIRONMENT_VARIABLE = "NNUNET_INVARIANCE_CHECKPOINT"
FINAL = f"checkpoint_final{SUFFIX}"
LATEST = f"checkpoint_latest{SUFFIX}"
SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class FoundWeights:
    """A checkpoint and where it was found.

    Attributes:
        path: the file.
        location: in words, for the log.
        shipped: whether the file belongs to the package. A shipped file may fill the finest stages of a deeper network.

    >>> FoundWeights(Path("a.safetensors"), "environment variable").shipped
    False
    """

    path: Path
    location: str
    shipped: bool = False


def pretraining_folder(method: str, dataset_name: str, plans_name: str, configuration: str) -> Path:
    """The folder of the pre-training of this method for this data set, plans and configuration.

    Raises:
        EnvironmentNotSetError: ``nnUNet_results`` is not set.
    """
    return results_folder() / dataset_name / "pretraining" / f"{method}__{plans_name}__{configuration}"


def results_are_set() -> bool:
    """Whether the environment variable ``nnUNet_results`` is set."""
    return bool(nnUNet_results.get())


def results_folder() -> Path:
    """The folder that ``nnUNet_results`` names.

    Raises:
        EnvironmentNotSetError: it is not set.
    """
    if not results_are_set():
        msg = "The environment variable nnUNet_results is not set. Set it to the folder that nnU-Net uses."
        raise EnvironmentNotSetError(msg)
    return Path(nnUNet_results.require())


def find_weights(
    method: str,
    dataset_name: str,
    plans_name: str,
    configuration: str,
    checkpoint: str | None = None,
    can_load: Callable[[Path], bool] | None = None,
) -> FoundWeights:
    """Find the checkpoint that a trainer of ``method`` starts from.

    The locations, in this order: the environment variable ``NNUNET_INVARIANCE_CHECKPOINT``; ``checkpoint`` of the plans
    block; the finished pre-training of this method, data set, plans and configuration; the files that ship with the
    package. A location that names a missing file, or contains an unfinished run, stops the search. For
    :data:`ANY_METHOD` the search covers the first two locations only.

    Args:
        can_load: whether a shipped file can fill the network; default: every shipped file of the method is accepted.

    Raises:
        WeightsNotFoundError: no location has weights, one names a missing file, or a run is not finished.
        EnvironmentNotSetError: ``nnUNet_results`` is not set.
    """
    if named := named_weights(checkpoint):
        return named
    if method == ANY_METHOD:
        raise _nothing_named(dataset_name, configuration)
    folder = pretraining_folder(method, dataset_name, plans_name, configuration)
    command = f"nnunet-invariance pretrain {method} {dataset_name} {configuration} -p {plans_name}"
    if (folder / FINAL).is_file():
        return FoundWeights(folder / FINAL, "finished pre-training")
    if (folder / LATEST).is_file():
        raise _unfinished(folder / LATEST, command)
    if shipped := find_shipped(method, can_load):
        return shipped
    msg = (
        f"No weights found for {method}, dataset {dataset_name}, plans {plans_name}, configuration {configuration}. "
        "Locations searched:\n"
        f"  1. environment variable {ENVIRONMENT_VARIABLE}: not set\n"
        '  2. plans block "nnunet_invariance", field "checkpoint": not given\n'
        f"  3. pre-training {folder / FINAL}: {'no such file' if folder.is_dir() else 'no such folder'}\n"
        f"  4. shipped with the package: {_why_none_shipped(method)}\n"
        f"Pre-train with `{command}`, or name a checkpoint in location 1 or 2."
    )
    raise WeightsNotFoundError(msg)


def find_shipped(method: str, can_load: Callable[[Path], bool] | None = None) -> FoundWeights | None:
    """The first shipped file of this method that ``can_load`` accepts, or None."""
    accepted = (path for path in _shipped_for(method) if can_load is None or can_load(path))
    return next((FoundWeights(path, "shipped with the package", shipped=True) for path in accepted), None)


def shipped_files() -> list[Path]:
    """All checkpoints that ship with the package."""
    return sorted(SHIPPED.glob(f"*{SUFFIX}"))


def _shipped_for(method: str) -> list[Path]:
    return [path for path in shipped_files() if read_metadata(path)["method"] == method]


def _why_none_shipped(method: str) -> str:
    """Which networks the shipped files of this method are for; the caller's network is none of them."""
    reasons = []
    for path in _shipped_for(method):
        architecture = read_metadata(path)["architecture"]
        name, arguments = architecture["network_class_name"].rsplit(".", 1)[-1], architecture["arch_kwargs"]
        features = arguments.get("features_per_stage", "its own number of")
        reasons.append(f"{path.name} is for a {name} with {features} features per stage, unlike these plans")
    return "; ".join(reasons) or f"no file for {method}"


def named_weights(checkpoint: str | None) -> FoundWeights | None:
    """The checkpoint that the user names in one of the first two locations, or None.

    Raises:
        WeightsNotFoundError: a location names a missing file.
    """
    named = (
        (f"environment variable {ENVIRONMENT_VARIABLE}", os.environ.get(ENVIRONMENT_VARIABLE)),
        ("plans block, field 'checkpoint'", checkpoint),
    )
    return next((_existing(location, value) for location, value in named if value), None)


def _existing(location: str, value: str) -> FoundWeights:
    path = Path(value).expanduser()
    if not os.path.isfile(path):
        found = "a folder, not a file" if os.path.isdir(path) else "no such file"
        raise WeightsNotFoundError(
            f"The {location} names {value!r}: {found}. Correct or remove it; no other location is searched while it is "
            "set."
        )
    return FoundWeights(path, location)


def _nothing_named(dataset_name: str, configuration: str) -> WeightsNotFoundError:
    return WeightsNotFoundError(
        "No checkpoint is named, and this trainer starts only from a checkpoint that you name. Locations searched:\n"
        f"  1. environment variable {ENVIRONMENT_VARIABLE}: not set\n"
        '  2. plans block "nnunet_invariance", field "checkpoint": not given\n'
        f"Write plans that name a checkpoint: `nnunet-invariance weights plan {dataset_name} FILE -c {configuration}`."
    )


def _unfinished(latest: Path, command: str) -> WeightsNotFoundError:
    metadata = read_metadata(latest)
    return WeightsNotFoundError(
        f"The pre-training in {latest.parent} is not finished (step {metadata['step']} of {metadata['total_steps']}). "
        f"Continue it with `{command} --c`, or use it as it is: set {ENVIRONMENT_VARIABLE}={latest}."
    )
