"""Label retrieval of the finest features, against networks with random weights."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from benchmarks.shipped_weights.method import untrained_method
from nnunet_invariance.errors import TemplateError
from nnunet_invariance.networks.feature_levels import feature_maps
from nnunet_invariance.pretraining.data.crops import crop, crop_origin
from nnunet_invariance.pretraining.data.synthetic_pairs import FIRST_HELD_OUT_NUMBER
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.measures.label_retrieval import label_retrieval
from nnunet_invariance.pretraining.methods.anatomix import Anatomix
from nnunet_invariance.weights.checkpoint import Checkpoint

UNSEEN = FIRST_HELD_OUT_NUMBER + 1000  # number of pairs that the held-out loss does not use either
VOXELS_A_LABEL = 200
Measure = Callable[[nn.Module], float]


def measure(checkpoint: Checkpoint, arguments: argparse.Namespace) -> dict[str, Any]:
    """Held-out loss and label retrieval of the trained network and of random networks, on the same voxels."""
    method = untrained_method(arguments, arguments.patch).to(arguments.device)
    kinds: dict[str, Measure] = {"synthetic": lambda network: synthetic_retrieval(method, network, arguments.synthetic)}
    if arguments.real:
        pairs = list(real_pairs(arguments.real, method.patch_size))
        kinds["real"] = lambda network: real_retrieval(network, pairs, arguments.device)
    random = []
    for seed in range(arguments.networks):
        torch.manual_seed(seed)
        network = method.setup.architecture.build().to(arguments.device).eval()
        random.append({name: kind(network) for name, kind in kinds.items()})
    restore_module(method.network, checkpoint.section("network"))
    history = checkpoint.metadata["progress"]["history"]
    losses = [row["held_out_loss"] for row in history]
    retrieval = {}
    for name, kind in kinds.items():
        trained, others = kind(method.network), [values[name] for values in random]
        spread = max(others) - min(others)
        retrieval[name] = {"trained": trained, "random": others, "spread": spread}
        retrieval[name]["beats"] = bool(trained - float(np.mean(others)) > spread)
    return {
        "held_out_loss": {
            "first": losses[0],
            "best": min(losses),
            "last": losses[-1],
            "learned": history[-1]["held_out_learned"],
        },
        "steps": checkpoint.metadata["step"],
        "seconds": sum(row["seconds"] for row in history),
        "retrieval": retrieval,
    }


def finest(network: nn.Module, images: Tensor) -> Tensor:
    """Features (B, C, voxels) of the last decoder stage."""
    return feature_maps(network, images)[-1].flatten(2)


@torch.no_grad()
def synthetic_retrieval(method: Anatomix, network: nn.Module, pairs: int) -> float:
    """Mean label retrieval over unseen pairs; a voxel is never matched with itself in the other appearance."""
    level = method.levels[-1].name
    found = []
    for number in range(pairs):
        views = method.held_out_views(UNSEEN + number)
        index, labels = views[f"{level}.index"][0], views[f"{level}.labels"][0]
        first, second = finest(network, views["image"])[:, :, index].transpose(1, 2)
        found.append(label_retrieval(first, labels, second, labels, same_position=True))
    return float(torch.stack(found).nanmean())


@torch.no_grad()
def real_retrieval(network: nn.Module, pairs: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], device: str) -> float:
    """Mean label retrieval over pairs of two cases: a voxel of one case searches its label in the other."""
    found = []
    for images, labels, first, second in pairs:
        features = finest(network, images.to(device)).cpu()
        queries, keys = features[0, :, first].T, features[1, :, second].T
        found.append(label_retrieval(queries, labels[0, first], keys, labels[1, second]))
    return float(torch.stack(found).nanmean())


def real_pairs(dataset: Path, patch_size: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Pairs of neighbouring cases by name: images (2, 1, *patch), labels (2, voxels), and query voxels of each."""
    files = sorted((dataset / "labelsTr").glob("*.nii.gz"))[:40]
    if len(files) < 2:
        raise TemplateError(f"{dataset}: found {len(files)} label maps in labelsTr; expected 2 or more. Check --real.")
    generator = torch.Generator().manual_seed(0)
    for pair in zip(files[::2], files[1::2], strict=False):
        images, labels, voxels = [], [], []
        for file in pair:
            image, label = read_case(dataset, file, patch_size)
            images.append(image)
            labels.append(label.flatten())
            voxels.append(balanced(label.flatten(), generator))
        yield torch.stack(images), torch.stack(labels), voxels[0], voxels[1]


def read_case(dataset: Path, file: Path, patch_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The z-scored first channel (1, *patch) and the labels (*patch) around the centre of the labelled voxels."""
    name = file.name.removesuffix(".nii.gz")
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "imagesTr" / f"{name}_0000.nii.gz"))).astype(np.float32)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.float32)
    image = (image - image.mean()) / max(float(image.std()), 1e-8)
    low = crop_origin(labels.shape, np.argwhere(labels > 0).mean(0), patch_size)
    (image, _), (labels, inside) = (crop(array[None], low, patch_size) for array in (image, labels))
    labels[~inside] = -1  # padding has no label
    return torch.from_numpy(image), torch.from_numpy(labels[0]).long()


def balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Indices of up to :data:`VOXELS_A_LABEL` voxels of each label."""
    parts = [(labels == label).nonzero()[:, 0] for label in labels.unique().tolist() if label >= 0]
    return torch.cat([part[torch.randperm(len(part), generator=generator)[:VOXELS_A_LABEL]] for part in parts])
