"""Run a pre-training: find data and network, train, and return the finished checkpoint."""

import dataclasses
import functools
import importlib.metadata
import logging
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_invariance.common.distributed import DistributedContext, distributed_context
from nnunet_invariance.common.tensorboard import CurveWriter, require_tensorboard
from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import OptionError, WeightsNotFoundError
from nnunet_invariance.networks.planned import cumulative_strides, token_stage
from nnunet_invariance.nnunet.cases import Manifest, make_manifest
from nnunet_invariance.nnunet.grids import readable_training_images
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset, open_planned_dataset, require_supported
from nnunet_invariance.nnunet.unlabelled_images import find_scans, preprocess_images
from nnunet_invariance.plans.preflight import check_device, check_output, check_plan, parameters_of, warn_of_memory
from nnunet_invariance.pretraining.engine.contract import check_method
from nnunet_invariance.pretraining.engine.folder import hold_folder, package_log, start_folder
from nnunet_invariance.pretraining.engine.loop import Loop
from nnunet_invariance.pretraining.engine.method import Method, load_method
from nnunet_invariance.pretraining.engine.monitor import Monitor
from nnunet_invariance.pretraining.engine.options import LoopOptions, MethodOptions
from nnunet_invariance.pretraining.engine.record import RECORD, RunSettings, write_record
from nnunet_invariance.pretraining.engine.resume import COMPARED, check_continuable
from nnunet_invariance.pretraining.engine.settings import make_loop_options, make_method_options
from nnunet_invariance.pretraining.engine.target import Target, planned_target, preset_target
from nnunet_invariance.registry import MethodEntry, get_method
from nnunet_invariance.weights.checkpoint import load_checkpoint, read_metadata
from nnunet_invariance.weights.locate import FINAL, LATEST

logger = logging.getLogger(__name__)

#: Checkpoints on the disk: the latest, the previous and the one that is written, each with network, teacher and two
#: moments of the optimiser in float32.
BYTES_PER_PARAMETER = 3 * 4 * 4
PACKAGES = ("nnunet_invariance", "torch", "nnunetv2", "dynamic_network_architectures", "numpy", "safetensors")


@dataclass(frozen=True)
class Run:
    """What one run trains, with which options, and where.

    Attributes:
        collect: finds the cases; the first rank works, the others read what it left.
        settings: those that the record of the run contains beside the options.
        command: the command line that started it; empty if it was started in Python.
        monitor: a further measurement.
        planned: the data set, for the monitor.
    """

    kind: type[Method]
    target: Target
    options: MethodOptions
    loop: LoopOptions
    device: str
    collect: Callable[[DistributedContext], Manifest]
    settings: RunSettings
    command: str = ""
    monitor: Monitor | None = None
    planned: PlannedDataset | None = None


def pretrain(
    method: str,
    dataset: str,
    configuration: str = "3d_fullres",
    plans: str = "nnUNetPlans",
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    device: str = "cuda",
    options: MethodOptions | Mapping[str, Any] | None = None,
    loop: LoopOptions | Mapping[str, Any] | None = None,
    resume: bool = False,
    monitor: Monitor | None = None,
    tensorboard: bool = False,
    command: str = "",
) -> Path:
    """Pre-train a planned network on the cases of a data set and on unlabelled scans; returns the finished checkpoint.

    Args:
        method: name of the method, as on the command line.
        dataset: name or id of the data set; ``configuration`` and ``plans`` as for nnU-Net's commands.
        images: folders of unlabelled scans, which are preprocessed under the same plans.
        device: "cuda", "cpu" or "mps".
        options: the method's options, or a mapping that changes single defaults for the planned network.
        loop: length, seed, learning rate and the other options of the loop.
        resume: continue the last run.
        monitor: a measurement that accompanies the run, such as ``ProbeCurve`` of the package ``probing``.
        tensorboard: also write the curves for TensorBoard, into the folder of the run.
        command: the command line of the run, for its log and ``run.json``.

    Raises:
        InvarianceError: one of its kinds, for every error in the input.
        PretrainingStopped: SIGTERM or SIGINT was received and the state is saved.
    """
    entry = get_method(method)
    kind = load_method(entry)
    loop_options = make_loop_options(kind, loop)
    make_method_options(kind, options)  # errors in the options come before errors in the data set
    _prepare(device, tensorboard)
    planned = open_planned_dataset(dataset, configuration, plans)
    require_supported(planned, method, entry.dimensions, entry.least_channels, entry.networks)
    network = planned.configuration.network_arch_class_name.rsplit(".", 1)[-1]
    method_options = make_method_options(kind, options, network)
    target = planned_target(kind, entry, planned)
    kind.check_files(method_options, target.folder, resume)
    folders = [Path(folder) for folder in images]
    _check_input(kind, entry, planned, folders, target.folder, device)
    collect = functools.partial(_collect, planned, folders, kind, entry)
    settings = RunSettings(None, tuple(folders), device, monitor.every if monitor else 0, tensorboard)
    run = Run(kind, target, method_options, loop_options, device, collect, settings, command, monitor, planned)
    return _execute(run, resume)


def pretrain_without_dataset(
    method: str,
    network: str,
    out: str | os.PathLike[str],
    *,
    device: str = "cuda",
    options: MethodOptions | Mapping[str, Any] | None = None,
    loop: LoopOptions | Mapping[str, Any] | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    command: str = "",
) -> Path:
    """Pre-train one of the networks that a method offers without a data set, in the folder ``out``.

    The other arguments, the return value and the errors are those of :func:`pretrain`.
    """
    kind = load_method(get_method(method))
    method_options, loop_options = make_method_options(kind, options), make_loop_options(kind, loop)
    _prepare(device, tensorboard)
    target = preset_target(kind, network, Path(out))
    kind.check_files(method_options, target.folder, resume)
    check_output(target.folder)
    settings = RunSettings(network, (), device, 0, tensorboard)
    run = Run(kind, target, method_options, loop_options, device, lambda group: Manifest((), ()), settings, command)
    return _execute(run, resume)


def _execute(run: Run, resume: bool) -> Path:
    folder, asked = run.target.folder, resume
    resume = resume and any((folder / file).is_file() for file in (LATEST, FINAL))
    if asked and not resume:
        if not (folder / RECORD).is_file():
            msg = f"--c: there is nothing to continue, {folder} contains no {LATEST}. Start without --c."
            raise WeightsNotFoundError(msg)
        logger.warning("the run in %s ended before it saved a state; it starts from the beginning", folder)
    finished = resume and (folder / FINAL).is_file()
    with ExitStack() as stack:
        group = stack.enter_context(distributed_context(run.device))
        write_log_to = stack.enter_context(package_log(group))
        if run.command:
            logger.info("command: %s", run.command)
        logger.info("pre-training %s on %s", run.kind.name, run.target.title)
        manifest = run.collect(group)
        method = _make_method(run, manifest, group)
        if not finished:
            method.prepare(manifest, folder, group, resume)
            if run.monitor is not None and run.planned is not None and group.is_main:
                run.monitor.start(run.planned, method, group.device.type)
        metadata = _metadata(run, manifest, method, group.device.type)
        if finished:
            keys = ("architecture", "options", "total_steps")
            check_continuable(folder / FINAL, read_metadata(folder / FINAL), metadata, keys, method.output_options)
        # Nothing was written so far: if an input is refused, an earlier run stays where it is.
        if group.is_main:
            stack.enter_context(hold_folder(folder))
            if not resume:
                start_folder(folder, manifest)
            write_record(folder, method, run.loop, run.settings, run.command, asked)
            write_log_to(folder / "log.txt")
        group.barrier()
        if finished:
            logger.info("this pre-training is finished: %s", folder / FINAL)
        else:
            wanted = run.settings.tensorboard and group.is_main
            curves = stack.enter_context(closing(CurveWriter(folder))) if wanted else None
            loop = Loop(method, run.loop, group, folder, metadata, run.monitor, curves)
            if resume:
                _restore(loop)
            loop.run()
        if group.is_main:
            method.after_run(folder, manifest, run.device)
    return folder / FINAL


def _check_input(
    kind: type[Method], entry: MethodEntry, planned: PlannedDataset, images: Sequence[Path], out: Path, device: str
) -> None:
    """Options and network of the plans, space for the checkpoints, memory, and the files of the images."""
    if images and not entry.reads_cases:
        raise OptionError(f"--images: {kind.name} makes its own images and reads none. Omit --images.")
    network = check_plan(planned)
    check_output(out, BYTES_PER_PARAMETER * parameters_of(network))
    warn_of_memory(planned, network, device)
    for folder in images:
        find_scans(folder, planned)
    kind.check_dataset(planned)


def _prepare(device: str, tensorboard: bool) -> None:
    check_device(device)
    if tensorboard:
        require_tensorboard("--tensorboard")
    if device == "cuda":
        torch.backends.cudnn.benchmark = True


def _collect(
    planned: PlannedDataset, images: Sequence[Path], kind: type[Method], entry: MethodEntry, group: DistributedContext
) -> Manifest:
    """Preprocess the folders of scans and inspect all volumes."""
    if not entry.reads_cases:
        return Manifest((), ())
    strides = planned.configuration.pool_op_kernel_sizes
    cell = cumulative_strides(strides)[token_stage(strides)]

    def collect() -> Manifest:
        scans = preprocess_images(images, planned)
        folders = [found.folder for found in scans]
        if not folders or planned.folder.is_dir():
            folders = [planned.folder, *folders]
        skipped = [case for found in scans for case in found.skipped]
        channels = len(planned.channel_names)
        raw = {planned.folder: readable_training_images(planned)}
        return make_manifest(folders, channels, cell, kind.least_volumes, kind.allows_missing_channels, skipped, raw)

    if group.is_main:
        manifest = collect()
    group.barrier()
    return manifest if group.is_main else collect()


def _make_method(run: Run, manifest: Manifest, group: DistributedContext) -> Method:
    random.seed(run.loop.seed)
    np.random.seed(run.loop.seed)
    torch.manual_seed(run.loop.seed)
    method = run.kind(dataclasses.replace(run.target.setup, cases=manifest.cases, steps=run.loop.steps), run.options)
    check_method(method)
    if group.is_main:
        parameters = sum(p.numel() for p in method.network.parameters())
        name = method.setup.architecture.network_class_name.rsplit(".", 1)[-1]
        logger.info("network %s, %.2f M parameters", name, parameters / 1e6)
        logger.info("%s, %s", method.describe(), counted(run.loop.steps, "step"))
    return method


def _metadata(run: Run, manifest: Manifest, method: Method, device: str) -> dict[str, Any]:
    return {
        "method": method.name,
        "total_steps": run.loop.steps,
        "architecture": method.architecture.to_dict(),
        **run.target.facts,
        "pretrained": list(method.pretrained),
        "options": {**run.loop.to_dict(), **method.options.to_dict()},
        "manifest_sha256": manifest.sha256,
        "prepared": method.prepared,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device,
        "citation": method.citation,
        "parent_sha256": None,
        "created": f"{datetime.now():%Y-%m-%dT%H:%M:%S}",
    }


def _restore(loop: Loop) -> None:
    """Load the last state; refuse it if data, network or options are no longer the same."""
    checkpoint = load_checkpoint(loop.folder / LATEST)
    check_continuable(checkpoint.path, checkpoint.metadata, loop.metadata, tuple(COMPARED), loop.method.output_options)
    loop.restore(checkpoint)
