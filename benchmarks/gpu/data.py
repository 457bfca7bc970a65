"""Random cases in nnU-Net's preprocessed format, plans with the stock U-Net, and trainers on them."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.gpu.context import Context
from nnunet_invariance._discovery import find_trainer
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.networks.stock import plain_conv_unet

#: Data sets by their number of channels.
DATASETS = {1: "Dataset995_OneChannel", 2: "Dataset996_TwoChannels"}
PLANS, CONFIGURATION = "nnUNetPlans", "3d_fullres"
CASES = 4
CLASSES = 3  # without background


def use_folders(context: Context) -> None:
    """Set nnU-Net's folders below the folder of the run, and write the data sets that are not there yet."""
    for tree in ("raw", "preprocessed", "results"):
        folder = context.work / tree
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{tree}"] = str(folder)
    os.environ["nnUNet_n_proc_DA"] = str(context.size.workers)
    os.environ.setdefault("nnUNet_def_n_proc", "1")
    for channels, name in DATASETS.items():
        base = context.work / "preprocessed" / name
        if not (base / "dataset.json").is_file():
            _write_dataset(base, name, channels, context)


def planned_network(context: Context, channels: int = 1, outputs: int = CLASSES + 1) -> Architecture:
    """The stock U-Net of nnU-Net's plans."""
    return Architecture.from_plans(plain_conv_unet(context.size.features), channels, outputs)


def make_trainer(
    context: Context, name: str, channels: int = 1, patch: int | None = None, **options: Any
) -> nnUNetTrainer:
    """A trainer before ``initialize``; ``patch`` is the side of its patch, and ``options`` are those of the plans."""
    base = context.work / "preprocessed" / DATASETS[channels]
    plans = json.loads((base / f"{PLANS}.json").read_text())
    configuration = plans["configurations"][CONFIGURATION]
    configuration["patch_size"] = [patch or context.size.patch] * 3
    configuration["nnunet_invariance"] = options
    plans["continue_training"] = False
    dataset = json.loads((base / "dataset.json").read_text())
    kind = nnUNetTrainer if name == "nnUNetTrainer" else find_trainer(name)
    assert kind is not None, name
    return kind(plans, CONFIGURATION, "all", dataset, context.device)


def started(trainer: nnUNetTrainer) -> nnUNetTrainer:
    """The trainer just before its first step."""
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    return trainer


def one_batch(trainer: nnUNetTrainer) -> dict[str, Any]:
    """A batch of the trainer's data loader, loaded in this process."""
    workers = os.environ["nnUNet_n_proc_DA"]
    os.environ["nnUNet_n_proc_DA"] = "0"
    try:
        loader, _ = trainer.get_dataloaders()
        return next(loader)
    finally:
        os.environ["nnUNet_n_proc_DA"] = workers


def _write_dataset(base: Path, name: str, channels: int, context: Context) -> None:
    size = context.size
    cases = base / f"{PLANS}_{CONFIGURATION}"
    cases.mkdir(parents=True, exist_ok=True)
    for index in range(CASES):
        # Only short trainings read two channels, so their cases are smaller.
        side = size.volume if channels == 1 else min(size.volume, 2 * size.small)
        _write_case(cases / f"case_{index}", channels, index, side, size.patch)
    planned = planned_network(context, channels).to_dict()
    configuration = {
        "data_identifier": cases.name,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [size.patch] * 3,
        "median_image_size_in_voxels": [float(size.volume)] * 3,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "architecture": {key: planned[key] for key in ("network_class_name", "arch_kwargs", "_kw_requires_import")},
        "batch_dice": False,
    }
    plans = {
        "dataset_name": name,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [size.volume] * 3,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }
    labels = {"background": 0, **{f"class_{value}": value for value in range(1, CLASSES + 1)}}
    dataset = {
        "channel_names": {str(c): f"MRI_{c}" for c in range(channels)},
        "labels": labels,
        "numTraining": CASES,
        "file_ending": ".nii.gz",
    }
    (base / f"{PLANS}.json").write_text(json.dumps(plans))
    (base / "dataset_fingerprint.json").write_text("{}")
    (base / "dataset.json").write_text(json.dumps(dataset))


def _write_case(path: Path, channels: int, seed: int, side: int, patch: int) -> None:
    """Smooth random images, and labels that are levels of the first one."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 6, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (side,) * 3, mode="trilinear")[0]
    levels = (smooth[:1] - smooth[:1].amin()) / (smooth[:1].amax() - smooth[:1].amin())
    labels = (levels * CLASSES).round().to(torch.int16).numpy()
    image = smooth + 0.05 * torch.randn(smooth.shape, generator=generator)
    image = ((image - image.mean()) / image.std()).numpy().astype(np.float32)
    places = {value: np.argwhere(labels == value)[:: max(1, side**3 // 10000)] for value in range(1, CLASSES + 1)}
    blocks, chunks = comp_blosc2_params(image.shape, (patch,) * 3, 4)
    blocks_seg, chunks_seg = comp_blosc2_params(labels.shape, (patch,) * 3, 2)
    nnUNetDatasetBlosc2.save_case(
        image, labels, {"class_locations": places, "spacing": [1.0, 1.0, 1.0]}, str(path),
        chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg, clevel=1,
    )  # fmt: skip
