"""Weights to ship with the package: nnU-Net's four-stage U-Net, pre-trained on synthetic pairs only.

    python -m benchmarks.studies.anatomix_weights --work DIR [--templates DIR/labelmaps_head] [--real DIR/DATASET]

The pre-training (`pretrain anatomix --network plain4`) ends when the held-out contrastive loss has not decreased for a
tenth of the epochs; the same command continues an interrupted run. Then the study measures the label retrieval of the
finest features on unseen synthetic pairs, and with --real on pairs of labelled images, and compares it with networks
that have random weights. It writes the weights only if they exceed the mean of the random networks by more than the
spread of those, on every kind of pair. The weights are in half precision and come with a checksum, the training log and
a model card. Labels of --real are used for the measurement only. --templates must not be the labels of a data set that
the weights are evaluated on.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from benchmarks.studies.weights_picture import draw_features
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.errors import InvarianceError, TemplateError
from nnunet_invariance.networks.feature_levels import feature_maps
from nnunet_invariance.pretraining.data.crops import crop, crop_origin
from nnunet_invariance.pretraining.data.synthetic_pairs import FIRST_HELD_OUT_NUMBER
from nnunet_invariance.pretraining.engine.options import LoopOptions
from nnunet_invariance.pretraining.engine.run import pretrain_without_dataset
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.engine.target import preset_target
from nnunet_invariance.pretraining.measures.label_retrieval import label_retrieval
from nnunet_invariance.pretraining.methods.anatomix import Anatomix, AnatomixPretrainingOptions
from nnunet_invariance.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from nnunet_invariance.weights.comparison import SEGMENTATION
from nnunet_invariance.weights.locate import LATEST, SHIPPED

UNSEEN = FIRST_HELD_OUT_NUMBER + 1000  # index of pairs that early stopping did not use either
VOXELS_A_LABEL = 200
FRONT_MATTER = """---
license: apache-2.0
library_name: nnunet-invariance
tags: [nnU-Net, 3-D segmentation, pre-training, synthetic images, contrastive learning, anatomix]
---
"""
Measure = Callable[[nn.Module], float]


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-train, measure, and write the weights if they are good enough; returns 1 if they are not."""
    arguments = parse(argv)
    run = arguments.work / "run"
    options, loop = options_of(arguments)
    try:
        resume = (run / LATEST).is_file() or (run / "checkpoint_final.safetensors").is_file()
        path = pretrain_without_dataset(
            "anatomix", arguments.network, run, device=arguments.device, options=options, loop=loop, resume=resume
        )
        checkpoint = load_checkpoint(path, ["network", "heads"])
        record = measure(checkpoint, arguments)
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    # without --work and other paths, because this text is published
    names = {"templates": arguments.templates, "real": arguments.real}
    sources = [f"--{name} {Path(value).name}" for name, value in names.items() if value]
    own = [f"--{name} {getattr(arguments, name)}" for name in ("network", "patch", "epochs", "iterations")]
    own += [f"--{name} {getattr(arguments, name)}" for name in ("lr", "networks", "synthetic", "seed")]
    own += [f"--batch-size {arguments.batch_size}", f"--shapes {arguments.shapes}", f"--cuts {arguments.cuts}"]
    record["command"] = " ".join(["python -m benchmarks.studies.anatomix_weights --work DIR", *sources, *own])
    _write(arguments.work / "record.json", json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    if not all(kind["beats"] for kind in record["retrieval"].values()):
        print("The label retrieval does not beat random weights by more than they differ: no weights are written.")
        return 1
    ship(checkpoint, record, run / "metrics.csv", arguments)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of the run")
    add("--templates", type=Path, help="folder of label maps; procedural shapes when not given")
    add("--real", type=Path, help="labelled data set in nnU-Net's raw layout, to be measured on only")
    add("--network", choices=["plain4", "plain6"], default="plain4", help="which of nnU-Net's stock networks")
    add("--patch", type=int, default=32, help="side of the patches, voxels")
    add("--batch-size", type=int, default=1, dest="batch_size", help="pairs per step")
    add("--shapes", choices=["procedural", "formula", "mixed"], default="procedural", help="shapes without templates")
    add("--cuts", type=int, default=0, help="patches of each volume; 0: the default of the method")
    add("--epochs", type=int, default=100, help="at most")
    add("--iterations", type=int, default=50, help="steps an epoch")
    add("--lr", type=float, default=5e-4, help="constant after the warm-up, so that the end is the held-out loss's")
    add("--networks", type=int, default=5, help="random networks that are compared with")
    add("--synthetic", type=int, default=32, help="unseen synthetic pairs")
    add("--seed", type=int, default=0, help="of the run")
    add("-device", choices=["cpu", "cuda"], default="cpu", help="where to train and measure")
    add("--out", type=Path, default=SHIPPED, help="where the weights go")
    return parser.parse_args(argv)


def options_of(arguments: argparse.Namespace) -> tuple[AnatomixPretrainingOptions, LoopOptions]:
    """The options of the method and of the loop."""
    options = AnatomixPretrainingOptions(
        batch_size=arguments.batch_size, patch=arguments.patch, cuts=arguments.cuts, **shapes_of(arguments)
    )
    loop = LoopOptions(
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        lr=arguments.lr,
        lr_end=arguments.lr,
        seed=arguments.seed,
        patience=0.1,
        workers=0,
    )
    return options, loop


def shapes_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that choose the shapes."""
    return {"templates": str(arguments.templates or ""), "shapes": arguments.shapes}


# ---- measuring -----------------------------------------------------------------------------------------------------


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
        "stopped_by_the_rule": checkpoint.metadata["step"] < checkpoint.metadata["total_steps"],
        "steps": checkpoint.metadata["step"],
        "seconds": sum(row["seconds"] for row in history),
        "retrieval": retrieval,
    }


def untrained_method(arguments: argparse.Namespace, patch: int) -> Anatomix:
    """The method with the shapes of the run, for pairs that it was not trained on; patch 0: that of the preset."""
    options = AnatomixPretrainingOptions(patch=patch, held_out=0, **shapes_of(arguments))
    return Anatomix(preset_target(Anatomix, arguments.network, arguments.work).setup, options).eval()


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


# ---- shipping ------------------------------------------------------------------------------------------------------


def ship(checkpoint: Checkpoint, record: dict[str, Any], log: Path, arguments: argparse.Namespace) -> None:
    """Write the weights without the untrained output layers, the log, the card, its picture, and all checksums."""
    folder, stem = arguments.out, f"anatomix_{arguments.network}"
    method = untrained_method(arguments, patch=0)
    restore_module(method.network, checkpoint.section("network"))
    tensors = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith("network.") and not name.startswith(f"network.{SEGMENTATION}")
    }
    metadata = {**checkpoint.metadata, "measured": record}
    metadata["options"] = {**metadata["options"], "templates": Path(metadata["options"]["templates"]).name}
    weights = folder / f"{stem}.safetensors"
    save_checkpoint(weights, tensors, metadata, keep_previous=False)
    shutil.copyfile(log, folder / f"{stem}.csv")
    _write(folder / f"{stem}.md", card(metadata, record, weights))
    draw_features(method, method.network, folder / f"{stem}.png")
    write_checksums(weights)


def write_checksums(weights: Path) -> None:
    """Write the checksums of the weights and of the log, the card and the picture beside them."""
    files = [weights.with_suffix(ending) for ending in (".safetensors", ".csv", ".md", ".png")]
    sums = "".join(f"{sha256_of_file(file)}  {file.name}\n" for file in files)
    _write(weights.with_suffix(".sha256"), sums)


def card(metadata: dict[str, Any], record: dict[str, Any], weights: Path) -> str:
    """The model card; every number in it comes from the run."""
    loss, options = record["held_out_loss"], metadata["options"]
    features = metadata["architecture"]["arch_kwargs"]["features_per_stage"]
    ended = (
        "early stopping" if record["stopped_by_the_rule"] else "the largest number of epochs, while the loss still fell"
    )
    rows = "\n".join(
        f"| {name} | {r['trained']:.3f} | {np.mean(r['random']):.3f} ({min(r['random']):.3f} to {max(r['random']):.3f},"
        f" {len(r['random'])} networks) |"
        for name, r in record["retrieval"].items()
    )
    return f"""{FRONT_MATTER}# {weights.stem}

![Synthetic pairs, and the features of both appearances]({weights.stem}.png)

Encoder and decoder of nnU-Net's 3-D PlainConvUNet with {features} features per stage, two convolutions per stage and
one input channel (other numbers of channels are adapted), pre-trained with `pretrain anatomix` (a re-implementation of
arXiv 2411.02372). Half precision, {weights.stat().st_size / 1e6:.1f} MB.
The training used synthetic images only. In the picture, the three colours are the first principal components of
the finest features of both appearances.

| what | value |
|---|---|
| shapes | {options["templates"] or options["shapes"]} |
| patches | {options["patch"]}^3 voxels cut out of {options["volume"]}^3, {options["batch_size"]} pair(s) per step |
| length | {record["steps"]} steps, seed {options["seed"]} |
| ended by | {ended} (no lower held-out loss in a tenth of the epochs) |
| time of training | {record["seconds"] / 60:.1f} min on {metadata["device"]} |
| held-out loss, first epoch, best, last | {loss["first"]:.3f}, {loss["best"]:.3f}, {loss["last"]:.3f} |
| share of the way from equal features (0) to ideal ones (1) | {loss["learned"]:.3f} |

Label retrieval of voxels by the finest features, mean over labels; the same voxels for all networks:

| pairs | these weights | random weights: mean (least to most) |
|---|---|---|
{rows}

Weights are written only if they exceed the mean of the random networks by more than their range. Licence: that of the
package, Apache-2.0; the shapes have terms of their own. Not a medical device.

    {record["command"]}
    sha256sum -c {weights.stem}.sha256

## Gate

Not run: `python -m benchmarks.studies.weights_gate {weights.name} --card` writes its tables here.
"""


def _write(path: Path, text: str) -> None:
    atomic_write(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    sys.exit(main())
