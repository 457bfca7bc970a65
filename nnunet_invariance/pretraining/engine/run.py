"""From the words of the command line to a finished checkpoint."""

import dataclasses
import difflib
import importlib.metadata
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.distributed import DistributedContext, ranks
from nnunet_invariance.errors import OptionError, OutputError, WeightsIncompatibleError, WeightsNotFoundError
from nnunet_invariance.networks.planned import cumulative_strides, token_stage
from nnunet_invariance.nnunet.cases import Manifest, make_manifest
from nnunet_invariance.nnunet.grids import check_training_grids
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset, require_supported
from nnunet_invariance.nnunet.unlabelled_images import find_scans, preprocess_images
from nnunet_invariance.pretraining.data.match_preview import preview_matches
from nnunet_invariance.pretraining.engine.loop import FINAL, LATEST, Loop, LoopOptions
from nnunet_invariance.pretraining.engine.method import Method
from nnunet_invariance.pretraining.engine.target import Target, planned_target, preset_target
from nnunet_invariance.registry import get_method
from nnunet_invariance.weights.checkpoint import load_checkpoint

logger = logging.getLogger(__name__)

PACKAGES = ("nnunet_invariance", "torch", "nnunetv2", "dynamic_network_architectures", "numpy", "safetensors")
SWITCHES = {"0": False, "1": True, "false": False, "true": True}


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
            convert = SWITCHES.__getitem__ if isinstance(field.default, bool) else type(field.default)
            result[kind][name] = convert(text)
        except (ValueError, KeyError) as error:
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
    preview: bool = False,
) -> Path:
    """Pre-train ``method`` on a dataset's preprocessed cases and on folders of unlabelled scans.

    Returns the finished checkpoint below ``nnUNet_results/<dataset>/pretraining/``; with ``preview`` (of "sam") leaves
    a picture of matches beside it.

    Raises:
        InvarianceError: one of its kinds, for anything that is wrong with the input.
        Stopped: the run was asked to stop and is saved.
    """
    kind = get_method(method).load()
    _options(kind, settings)  # what is wrong with them comes before what is wrong with the dataset
    if preview and method != "sam":
        raise OptionError(f"--preview shows matches of the anatomical embedding; {method} makes none. Leave it away.")
    _check_device(device)
    planned = open_planned_dataset(dataset, configuration, plans_name)
    require_supported(planned, method, kind.dimensions, kind.minimum_channels, kind.networks)
    if kind.minimum_channels > 1:
        check_training_grids(planned)
    if images and not kind.reads_cases:
        raise OptionError(f"--images: {method} makes its own images and reads none. Leave --images away.")
    for scans in images:
        find_scans(scans, planned)
    options = _options(kind, _with_preset(kind, planned, settings))
    target = planned_target(kind, planned, plans_name)
    return _run(kind, target, options, device, resume, lambda group: _collect(planned, images, group, kind), preview)


def run_preset(
    method: str, network: str, out: Path, device: str = "cuda", resume: bool = False, settings: Sequence[str] = ()
) -> Path:
    """Pre-train a network that needs no dataset, in the folder ``out``; otherwise as :func:`run_pretraining`."""
    kind = get_method(method).load()
    options = _options(kind, settings)
    _check_device(device)
    target = preset_target(kind, network, Path(out))
    return _run(kind, target, options, device, resume, lambda group: Manifest((), ()))


def _options(kind: type[Method], settings: Sequence[str]) -> tuple[LoopOptions, Any]:
    given = parse_settings(settings, LoopOptions, kind.options_class)
    loop = LoopOptions(**{**kind.loop_defaults, **given[LoopOptions]})
    return loop, kind.options_class(**given[kind.options_class])


def _with_preset(kind: type[Method], planned: PlannedDataset, settings: Sequence[str]) -> list[str]:
    """``settings``, and the preset that the method has for the planned network where they name none."""
    network = planned.configuration.network_arch_class_name.rsplit(".", 1)[-1]
    preset = getattr(kind.options_class, "presets_of_networks", {}).get(network)
    if preset is None or any(word.startswith("preset=") for word in settings):
        return list(settings)
    logger.info("the plans name %s: preset=%s, beside what --set says", network, preset)
    return [*settings, f"preset={preset}"]


def _run(
    kind: type[Method],
    target: Target,
    options: tuple[LoopOptions, Any],
    device: str,
    resume: bool,
    collect: Callable[[DistributedContext], Manifest],
    preview: bool = False,
) -> Path:
    """The run itself, once it is known what is pre-trained; ``collect`` finds the cases."""
    folder = target.folder
    if resume and not any((folder / f).is_file() for f in (LATEST, FINAL)):
        msg = f"--c: there is nothing to continue, {folder} holds no {LATEST}. Start without --c."
        raise WeightsNotFoundError(msg)
    finished = resume and (folder / FINAL).is_file()
    with ranks(device) as group, _log_for(group) as log:
        logger.info("pre-training %s on %s", kind.name, target.title)
        manifest = collect(group)
        method = _make_method(target, manifest, options, kind, group)
        if not finished:
            method.prepare(manifest, folder, group, resume)
        # Nothing was touched so far: an input that is refused leaves an earlier run where it is.
        if group.first:
            if not resume:
                _make_folder(folder, manifest)
            log(folder / "log.txt")
        group.barrier()
        if finished:
            logger.info("this pre-training is finished: %s", folder / FINAL)
        else:
            metadata = _metadata(target, manifest, method, options[0], group.device.type)
            loop = Loop(method, options[0], group, folder, metadata)
            if resume:
                _restore(loop, folder)
            loop.run()
        if preview and group.first:
            logger.info("matches drawn: %s", preview_matches(folder, manifest.cases, device))
        return folder / FINAL


def _check_device(device: str) -> None:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device]:
        found = ", ".join(name for name, here in available.items() if here)
        raise OptionError(f"-device {device}: not available on this machine; found: {found}.")
    if device == "cuda":
        torch.backends.cudnn.benchmark = True


def _make_folder(folder: Path, manifest: Manifest) -> None:
    """A new folder that says what the weights will have seen; an earlier run is moved aside."""
    try:
        if any(folder.glob("checkpoint_*")):
            moved = folder.with_name(f"{folder.name}_{datetime.now():%Y%m%d_%H%M%S_%f}")
            folder.rename(moved)
            logger.warning("an earlier pre-training was moved to %s", moved)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"The output folder {folder} cannot be made ({error.strerror}). Check the place and its permissions."
        raise OutputError(msg) from error
    text = json.dumps(manifest.to_dict(), indent=1)
    atomic_write(folder / "manifest.json", lambda file: file.write(text.encode()))


@contextmanager
def _log_for(group: DistributedContext) -> Iterator[Callable[[Path], None]]:
    """Keep the package's log until the given function names its file, on the first rank; the others only warn."""
    package = logging.getLogger("nnunet_invariance")
    if not group.first:
        package.setLevel(logging.WARNING)
    keeper = MemoryHandler(capacity=1)  # hands everything on as soon as it has a target
    package.addHandler(keeper)

    def write_to(file: Path) -> None:
        handler = logging.FileHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        keeper.setTarget(handler)
        keeper.flush()

    try:
        yield write_to
    finally:
        package.removeHandler(keeper)
        file_handler = keeper.target
        keeper.close()
        if file_handler:
            file_handler.close()


def _collect(
    planned: PlannedDataset, images: Sequence[Path], group: DistributedContext, kind: type[Method]
) -> Manifest:
    """Preprocess the folders of scans and look at all volumes; the first rank works, the others read what it left."""
    if not kind.reads_cases:
        return Manifest((), ())
    strides = planned.configuration.pool_op_kernel_sizes
    cell = cumulative_strides(strides)[token_stage(strides)]

    def collect() -> Manifest:
        folders = preprocess_images(images, planned)
        if not folders or planned.folder.is_dir():
            folders = [planned.folder, *folders]
        channels = len(planned.channel_names)
        return make_manifest(folders, channels, cell, kind.minimum_volumes, kind.missing_channels)

    if group.first:
        manifest = collect()
    group.barrier()
    return manifest if group.first else collect()


def _make_method(
    target: Target, manifest: Manifest, options: tuple[LoopOptions, Any], kind: type[Method], group: DistributedContext
) -> Method:
    loop_options, method_options = options
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(loop_options.seed)
    method = kind(dataclasses.replace(target.setup, cases=manifest.cases), method_options)
    if group.first:
        trained = sum(p.numel() for p in method.network.parameters())
        name = method.setup.architecture.network_class_name.rsplit(".", 1)[-1]
        logger.info("network %s, %.2f M parameters", name, trained / 1e6)
        logger.info("%s, %d steps", method.describe(), loop_options.steps)
    return method


def _metadata(target: Target, manifest: Manifest, method: Method, options: LoopOptions, device: str) -> dict[str, Any]:
    return {
        "format": 1,
        "method": method.name,
        "total_steps": options.steps,
        "architecture": method.architecture.to_dict(),
        **target.facts,
        "pretrained": list(method.pretrained),
        "options": {**dataclasses.asdict(options), **dataclasses.asdict(method.options)},
        "manifest_sha256": manifest.sha256,
        "prepared": method.prepared,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device,
        "citation": method.citation,
        "parent_sha256": None,
        "created": f"{datetime.now():%Y-%m-%dT%H:%M:%S}",
    }


def _restore(loop: Loop, folder: Path) -> None:
    """Load the last state; refuse when data, network or settings are no longer the same."""
    checkpoint = load_checkpoint(folder / LATEST)
    before, now = checkpoint.metadata, loop.metadata
    for field, remedy in (
        ("manifest_sha256", "The data changed since the run was started (manifest.json lists what it was)."),
        ("prepared", "The pairs were mined anew since the run was started."),
        ("architecture", "The plans' network changed."),
        ("options", "The settings differ."),
        ("total_steps", "The length differs."),
    ):
        if before.get(field) != now[field]:
            changed = _difference(before.get(field), now[field])
            msg = f"--c: {folder / LATEST} cannot be continued: {field} differs ({changed}). "
            raise WeightsIncompatibleError(f"{msg}{remedy} Restore it, or start anew without --c.")
    loop.restore(checkpoint)


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict):
        return ", ".join(f"{k}: was {before.get(k)}, is {now.get(k)}" for k in now if before.get(k) != now.get(k))
    return f"was {before}, is {now}"
