"""Where a trainer finds its weights: four places, the first hit wins, nothing is guessed."""

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
    """A checkpoint and the place that named it, in words for the log."""

    path: Path
    place: str


def pretraining_folder(method: str, dataset_name: str, plans_name: str, configuration: str) -> Path:
    """Where a pre-training of this method for this dataset, plans and configuration leaves its files.

    Raises:
        EnvironmentNotSetError: ``nnUNet_results`` is not set.
    """
    return results_folder() / dataset_name / "pretraining" / f"{method}__{plans_name}__{configuration}"


def results_folder() -> Path:
    """The folder of ``nnUNet_results``.

    Raises:
        EnvironmentNotSetError
    """
    if not nnUNet_results.get():
        msg = "The environment variable nnUNet_results is not set. Set it to the folder that nnU-Net uses."
        raise EnvironmentNotSetError(msg)
    return Path(nnUNet_results.require())


def find_weights(
    method: str,
    dataset_name: str,
    plans_name: str,
    configuration: str,
    checkpoint: str | None = None,
    fits: Callable[[Path], bool] | None = None,
) -> FoundWeights:
    """The checkpoint that a trainer of ``method`` starts from.

    Looks at the environment variable ``NNUNET_INVARIANCE_CHECKPOINT``, then at ``checkpoint`` of the plans block, then
    at the finished pre-training of this method, dataset, plans and configuration, then at the package itself. A place
    that names a missing file, or holds an unfinished run, stops the search. For :data:`ANY_METHOD` only the first two
    are looked at.

    Args:
        fits: whether a file of the package can fill the network that is trained; by default it need not.

    Raises:
        WeightsNotFoundError: all four are empty, or one names a file that is not there or a run that is not finished.
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
    if shipped := find_shipped(method, fits):
        return shipped
    msg = (
        f"No weights found for {method}, dataset {dataset_name}, plans {plans_name}, configuration {configuration}. "
        "Looked at:\n"
        f"  1. environment variable {ENVIRONMENT_VARIABLE}: not set\n"
        '  2. plans block "nnunet_invariance", field "checkpoint": not given\n'
        f"  3. pre-training {folder / FINAL}: {'no such file' if folder.is_dir() else 'no such folder'}\n"
        f"  4. shipped with the package: {_shipped_for(method)}\n"
        f"Pre-train with `{command}`, or name a checkpoint in place 1 or 2."
    )
    raise WeightsNotFoundError(msg)


def find_shipped(method: str, fits: Callable[[Path], bool] | None = None) -> FoundWeights | None:
    """The fourth place only: weights of this method in the package itself, or None where none fits."""
    found = (path for path in _shipped_files(method) if fits is None or fits(path))
    return next((FoundWeights(path, "shipped with the package") for path in found), None)


def _shipped_files(method: str) -> list[Path]:
    return [path for path in sorted(SHIPPED.glob(f"*{SUFFIX}")) if read_metadata(path)["method"] == method]


def _shipped_for(method: str) -> str:
    """What the files of this method are for, in words; they did not fit."""
    words = []
    for path in _shipped_files(method):
        architecture = read_metadata(path)["architecture"]
        name, arguments = architecture["network_class_name"].rsplit(".", 1)[-1], architecture["arch_kwargs"]
        features = arguments.get("features_per_stage", "its own number")
        words.append(f"{path.name} is for a {name} of {features} features a stage, which these plans are not")
    return "; ".join(words) or f"none for {method}"


def named_weights(checkpoint: str | None) -> FoundWeights | None:
    """The first two places only: a checkpoint that the user has named, or None.

    Raises:
        WeightsNotFoundError: one names a file that is not there.
    """
    named = (
        (f"environment variable {ENVIRONMENT_VARIABLE}", os.environ.get(ENVIRONMENT_VARIABLE)),
        ("plans block, field 'checkpoint'", checkpoint),
    )
    return next((_named(place, value) for place, value in named if value), None)


def _named(place: str, value: str) -> FoundWeights:
    path = Path(value).expanduser()
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        msg = f"The {place} names {value!r}: {what}. Correct or remove it; no other place is tried while it is given."
        raise WeightsNotFoundError(msg)
    return FoundWeights(path, place)


def _nothing_named(dataset_name: str, configuration: str) -> WeightsNotFoundError:
    return WeightsNotFoundError(
        "No weights are named, and a trainer that takes weights of any method searches for none. Looked at:\n"
        f"  1. environment variable {ENVIRONMENT_VARIABLE}: not set\n"
        '  2. plans block "nnunet_invariance", field "checkpoint": not given\n'
        f"Write plans that name a checkpoint: `nnunet-invariance weights plan {dataset_name} FILE -c {configuration}`."
    )


def _unfinished(latest: Path, command: str) -> WeightsNotFoundError:
    metadata = read_metadata(latest)
    return WeightsNotFoundError(
        f"The pre-training in {latest.parent} is not finished (step {metadata['step']} of {metadata['total_steps']}). "
        f"Continue it with `{command} --c`, or use it as it is by setting {ENVIRONMENT_VARIABLE}={latest}."
    )
