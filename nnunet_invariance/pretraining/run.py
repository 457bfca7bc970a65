"""From the words of the command line to a finished checkpoint."""

import dataclasses
import difflib
import importlib.metadata
import json
import logging
import random
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_invariance.errors import OptionError, OutputError, WeightsIncompatibleError, WeightsNotFoundError
from nnunet_invariance.networks.planned import Architecture, cumulative_strides, token_stage
from nnunet_invariance.pretraining.alice import Alice
from nnunet_invariance.pretraining.cases import Manifest, make_manifest
from nnunet_invariance.pretraining.distributed import Ranks, ranks
from nnunet_invariance.pretraining.images import find_scans, preprocess_images
from nnunet_invariance.pretraining.loop import FINAL, LATEST, Loop, LoopOptions
from nnunet_invariance.pretraining.mae import MAE
from nnunet_invariance.pretraining.method import Method, Setup
from nnunet_invariance.pretraining.planned_dataset import PlannedDataset, open_planned_dataset, require_supported
from nnunet_invariance.weights.atomic import atomic_write
from nnunet_invariance.weights.checkpoint import load_checkpoint
from nnunet_invariance.weights.locate import pretraining_folder

logger = logging.getLogger(__name__)

METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (Alice, MAE)}
PACKAGES = ("nnunet_invariance", "torch", "nnunetv2", "dynamic_network_architectures", "numpy", "safetensors")
UNIT_RANGE = {"RescaleTo01Normalization", "RGBTo01Normalization", "SoftTissueWindowNormalization"}


def parse_settings(settings: Sequence[str], *kinds: type) -> dict[type, dict[str, Any]]:
    """Sort ``field=value`` words over the fields of several dataclasses and convert them to the field's type.

    ``preset=name`` sets the fields of one of a dataclass's ``presets`` that no other word sets.

    Raises:
        OptionError: names the word, what is wrong with it, and the nearest field.
    """
    owners = {f.name: (kind, f) for kind in kinds for f in dataclasses.fields(kind)}
    result: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
    presets = {name: (kind, values) for kind in kinds for name, values in getattr(kind, "presets", {}).items()}
    chosen: list[str] = []
    for word in settings:
        name, equals, text = word.partition("=")
        if name == "preset" and presets:
            chosen.append(text)
            continue
        if not equals or name not in owners:
            near = difflib.get_close_matches(name, owners, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"--set {word}: expected field=value with a field of {', '.join(sorted(owners))}.{hint}")
        kind, field = owners[name]
        try:
            result[kind][name] = type(field.default)(text)
        except ValueError as error:
            msg = f"--set {word}: {text!r} is not a valid {type(field.default).__name__}."
            raise OptionError(msg) from error
    for text in chosen:
        if text not in presets:
            raise OptionError(f"--set preset={text}: expected one of {', '.join(presets)}. Correct the word.")
        kind, values = presets[text]
        result[kind] = {**values, **result[kind]}
    return result


def run_pretraining(
    method: str,
    dataset: str,
    configuration: str,
    plans_name: str = "nnUNetPlans",
    images: Sequence[Path] = (),
    device: str = "cuda",
    resume: bool = False,
    settings: Sequence[str] = (),
) -> Path:
    """Pre-train ``method`` on a dataset's preprocessed cases and on folders of unlabelled scans.

    Returns the finished checkpoint below ``nnUNet_results/<dataset>/pretraining/``.

    Raises:
        InvarianceError: one of its kinds, for anything that is wrong with the input.
        Stopped: the run was asked to stop and is saved.
    """
    kind = METHODS[method]
    options = parse_settings(settings, LoopOptions, kind.options_class)
    loop_options, method_options = (dataclass(**options[dataclass]) for dataclass in options)
    _check_device(device)
    planned = open_planned_dataset(dataset, configuration, plans_name)
    require_supported(planned, method, kind.dimensions)
    for scans in images:
        find_scans(scans, planned)
    folder = pretraining_folder(method, planned.name, plans_name, configuration)
    with ranks(device) as group:
        if group.first:
            _prepare_folder(folder, resume)
        group.barrier()
        with _log_file(folder, group):
            logger.info("pre-training %s on %s, %s, %s", method, planned.name, plans_name, configuration)
            manifest = _collect(planned, images, group, kind)
            loop = _make_loop(planned, manifest, loop_options, kind, method_options, group, folder)
            if resume:
                if (folder / FINAL).is_file():
                    logger.info("this pre-training is finished: %s", folder / FINAL)
                    return folder / FINAL
                _restore(loop, folder, manifest)
            return loop.run()


def _check_device(device: str) -> None:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device]:
        found = ", ".join(name for name, here in available.items() if here)
        raise OptionError(f"-device {device}: not available on this machine; found: {found}.")
    if device == "cuda":
        torch.backends.cudnn.benchmark = True


def _prepare_folder(folder: Path, resume: bool) -> None:
    if resume:
        if not any((folder / f).is_file() for f in (LATEST, FINAL)):
            msg = f"--c: there is nothing to continue, {folder} holds no {LATEST}. Start without --c."
            raise WeightsNotFoundError(msg)
        return
    try:
        if any(folder.glob("checkpoint_*")):
            moved = folder.with_name(f"{folder.name}_{datetime.now():%Y%m%d_%H%M%S_%f}")
            folder.rename(moved)
            logger.warning("an earlier pre-training was moved to %s", moved)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"The output folder {folder} cannot be made ({error.strerror}). Check nnUNet_results and its permissions."
        raise OutputError(msg) from error


@contextmanager
def _log_file(folder: Path, group: Ranks):
    """Copy the package's log to ``log.txt`` in the folder, on the first rank; the others only warn."""
    package = logging.getLogger("nnunet_invariance")
    if not group.first:
        package.setLevel(logging.WARNING)
    handler: logging.Handler = logging.FileHandler(folder / "log.txt") if group.first else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


def _collect(planned: PlannedDataset, images: Sequence[Path], group: Ranks, kind: type[Method]) -> Manifest:
    """Preprocess the folders of scans and look at all volumes; the first rank works, the others read what it left."""
    strides = planned.configuration.pool_op_kernel_sizes
    cell = cumulative_strides(strides)[token_stage(strides)]

    def collect() -> Manifest:
        folders = preprocess_images(images, planned)
        if not folders or planned.folder.is_dir():
            folders = [planned.folder, *folders]
        return make_manifest(folders, len(planned.channel_names), cell, kind.minimum_volumes)

    if group.first:
        manifest = collect()
    group.barrier()
    return manifest if group.first else collect()


def _make_loop(
    planned: PlannedDataset,
    manifest: Manifest,
    options: LoopOptions,
    kind: type[Method],
    method_options: Any,
    group: Ranks,
    folder: Path,
) -> Loop:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(options.seed)
    channels = len(planned.channel_names)
    architecture = Architecture.from_plans(planned.configuration.configuration["architecture"], channels, channels)
    schemes = planned.configuration.normalization_schemes
    unit_range = all(s in UNIT_RANGE for s in schemes)
    batch_size = planned.configuration.batch_size
    setup = Setup(architecture, planned.patch_size, planned.spacing, batch_size, unit_range, manifest.cases)
    method = kind(setup, method_options)
    if group.first:
        atomic_write(folder / "manifest.json", lambda f: f.write(json.dumps(manifest.to_dict(), indent=1).encode()))
        trained = sum(p.numel() for p in method.network.parameters())
        logger.info("network %s, %.2f M parameters", architecture.network_class_name.rsplit(".", 1)[-1], trained / 1e6)
        logger.info("tokens of stride %s, %d steps", method.cell, options.steps)
    metadata = _metadata(planned, manifest, method, options, group.device.type)
    return Loop(method, options, group, folder, metadata)


def _metadata(
    planned: PlannedDataset, manifest: Manifest, method: Method, options: LoopOptions, device: str
) -> dict[str, Any]:
    return {
        "format": 1,
        "method": method.name,
        "total_steps": options.steps,
        "architecture": method.setup.architecture.to_dict(),
        "channel_names": planned.channel_names,
        "normalization_schemes": list(planned.configuration.normalization_schemes),
        "spacing": list(planned.spacing),
        "patch_size": list(planned.patch_size),
        "dataset_name": planned.name,
        "plans_name": planned.plans.plans_name,
        "configuration": planned.configuration_name,
        "data_identifier": planned.configuration.data_identifier,
        "plans": planned.configuration.configuration,
        "pretrained": list(method.pretrained),
        "options": {**dataclasses.asdict(options), **dataclasses.asdict(method.options)},
        "manifest_sha256": manifest.sha256,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device,
        "citation": method.citation,
        "parent_sha256": None,
        "created": f"{datetime.now():%Y-%m-%dT%H:%M:%S}",
    }


def _restore(loop: Loop, folder: Path, manifest: Manifest) -> None:
    """Load the last state; refuse when data, network or settings are no longer the same."""
    checkpoint = load_checkpoint(folder / LATEST)
    before, now = checkpoint.metadata, loop.metadata
    for field, remedy in (
        ("manifest_sha256", "The data changed since the run was started (manifest.json lists what it was)."),
        ("architecture", "The plans' network changed."),
        ("options", "The settings differ."),
        ("total_steps", "The length differs."),
    ):
        if before[field] != now[field]:
            changed = _difference(before[field], now[field])
            msg = f"--c: {folder / LATEST} cannot be continued: {field} differs ({changed}). "
            raise WeightsIncompatibleError(f"{msg}{remedy} Restore it, or start anew without --c.")
    loop.restore(checkpoint)


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        return ", ".join(f"{k}: was {before.get(k)}, is {now.get(k)}" for k in now if before.get(k) != now.get(k))
    return f"was {before}, is {now}"
