"""Time of nnU-Net's augmentation by batchgeneratorsv2 and by the form for a device, per batch of patches.

    python -m benchmarks.micro.augmentation -device cpu --out benchmarks/results/augmentation.json

Both take turns on the same enlarged patches. The time of a batch depends on which transforms happen, so each random
transform is timed alone, as one that always happens, and the expected time of a batch follows from nnU-Net's
probabilities. The clock is the processor time of this process for everything that runs on the CPU, and wall time with
synchronisation for a GPU. "two views" makes both intensity views, the clean view and the valid mask.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from tqdm import trange

from benchmarks.common import environment, publish
from nnunet_invariance.augmentation.on_device import DeviceAugmentation, device_form
from nnunet_invariance.augmentation.views import MultiView

LABELS = (0, 1, 2, 3)
RADIANS = {"3d": np.pi / 6, "in-plane": np.pi, "2d": np.pi}  # nnU-Net's rotations


def pipeline_of(
    kind: str, patch: tuple[int, ...], views: int, adapt: Callable[[Any], object] = lambda transforms: None
) -> tuple[BasicTransform, list[int]]:
    """nnU-Net's training transforms for a kind of plans, after ``adapt``, and the size of the enlarged patch."""
    limits = (-RADIANS[kind], RADIANS[kind])
    scales = [[0.5**level] * len(patch) for level in range(4)]
    axes = tuple(range(len(patch)))
    transforms = nnUNetTrainer.get_training_transforms(patch, limits, scales, axes, kind == "in-plane")
    adapt(transforms)
    enlarged = [int(size) for size in get_patch_size(patch, limits, limits, limits, (0.85, 1.25))]
    if kind == "in-plane":
        enlarged[0] = patch[0]
    return (MultiView(transforms, channels=1) if views == 2 else transforms), enlarged


def patches(samples: int, size: list[int]) -> tuple[Tensor, Tensor]:
    """Noise, and smooth labels."""
    coarse = F.interpolate(
        torch.rand(samples, 1, *[4] * len(size)), size, mode="trilinear" if len(size) == 3 else "bilinear"
    )
    labels = ((coarse - coarse.amin()) / (coarse.amax() - coarse.amin()) * 3).round().to(torch.int16)
    return torch.randn(samples, 1, *size), labels


def stock(transforms: BasicTransform, image: Tensor, labels: Tensor) -> None:
    """A batch by batchgeneratorsv2, as a worker of the data loader makes it."""
    for index in range(len(image)):
        transforms(image=image[index].clone(), segmentation=labels[index].clone())


def seconds(call: Callable[[], object], batches: int, cuda: bool) -> float:
    """Mean seconds of a call."""
    if cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if cuda else time.process_time
    start = clock()
    for _ in range(batches):
        call()
    if cuda:
        torch.cuda.synchronize()
    return (clock() - start) / batches


class Event(NamedTuple):
    """Calls of both forms in which one random transform always happens and the others never do, and its weight."""

    weight: float
    calls: dict[str, Callable[[], object]]


def let_happen(transforms: Any, which: int | None) -> list[float]:
    """Make one random transform certain and the others impossible, or all impossible; returns their probabilities."""
    random = [part for part in transforms.transforms if isinstance(part, SpatialTransform | RandomTransform)]
    probabilities = []
    for index, part in enumerate(random):
        certain = float(index == which)
        if isinstance(part, RandomTransform):
            probabilities.append(part.apply_probability)
            part.apply_probability = certain
        else:
            probabilities.append(1 - (1 - part.p_rotation) * (1 - part.p_scaling))
            part.p_rotation = part.p_scaling = certain
    return probabilities


def events(kind: str, patch: tuple[int, ...], views: int, arguments: argparse.Namespace) -> list[Event]:
    """No transform, and each one; with these weights the sum of their times is the expected time of a batch."""
    found: list[Event] = []
    probabilities: list[float] = []
    which: int | None = None
    while which is None or which < len(probabilities):

        def adapt(transforms: Any, which: int | None = which) -> None:
            probabilities[:] = let_happen(transforms, which)

        transforms, enlarged = pipeline_of(kind, patch, views, adapt)
        form: DeviceAugmentation = device_form(transforms, LABELS)
        image, labels = patches(arguments.batch, enlarged)
        moved, generator = [part.to(arguments.device) for part in (image, labels)], torch.Generator().manual_seed(0)
        calls = {
            "batchgeneratorsv2": partial(stock, transforms, image, labels),
            "device": partial(form, *moved, generator),
        }
        found.append(Event(1 - sum(probabilities) if which is None else probabilities[which], calls))
        which = 0 if which is None else which + 1
    return found


def measure(kind: str, patch: tuple[int, ...], views: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Expected seconds per batch of both, and their ratio, over the rounds; the first round is a warm-up."""
    parts = events(kind, patch, views, arguments)
    taken: dict[str, list[float]] = {name: [] for name in parts[0].calls}
    for _ in trange(arguments.rounds + 1, desc=f"{kind} {patch} views {views}"):
        expected = dict.fromkeys(taken, 0.0)
        for part in parts:
            for name, call in part.calls.items():
                on_gpu = name == "device" and arguments.device == "cuda"
                expected[name] += part.weight * seconds(call, arguments.batches, on_gpu)
        for name, value in expected.items():
            taken[name].append(value)
    kept = {name: values[1:] for name, values in taken.items()}
    ratios = [ours / theirs for ours, theirs in zip(kept["device"], kept["batchgeneratorsv2"], strict=True)]
    return {
        "patch": patch,
        **{f"{name}_seconds": statistics.median(values) for name, values in kept.items()},
        "ratio": {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]},
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-device", default="cpu", choices=("cuda", "cpu"))
    parser.add_argument("--size", type=int, default=96, help="side of the 3-D patch; other patches have as many voxels")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=4, help="per round and transform")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    described = environment(arguments.device, arguments.threads)
    torch.set_num_threads(arguments.threads)
    np.random.seed(0)
    torch.manual_seed(0)
    side, slices = arguments.size, max(arguments.size // 8, 2)
    plane = round((side**3 / slices) ** 0.5)
    kinds = {"3d": (side,) * 3, "in-plane": (slices, plane, plane), "2d": (round(side**1.5),) * 2}
    result = {
        f"{kind}, {'two views' if views == 2 else 'one view'}": measure(kind, patch, views, arguments)
        for kind, patch in kinds.items()
        for views in (1, 2)
    }
    inputs = {name: getattr(arguments, name) for name in ("size", "batch", "batches", "rounds")}
    publish("augmentation", described, {"input": inputs, **result}, arguments.out)


if __name__ == "__main__":
    main()
