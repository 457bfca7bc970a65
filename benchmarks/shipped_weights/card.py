"""The files of shipped weights: half precision, training log, model card, picture and checksums."""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import write_file
from benchmarks.shipped_weights.method import untrained_method
from benchmarks.shipped_weights.picture import draw_features
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.weights.checkpoint import Checkpoint, save_checkpoint
from nnunet_invariance.weights.comparison import SEGMENTATION

FRONT_MATTER = """---
license: apache-2.0
library_name: nnunet-invariance
tags: [nnU-Net, 3-D segmentation, pre-training, synthetic images, contrastive learning, anatomix]
---
"""


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
    write_file(folder / f"{stem}.md", card(metadata, record, weights).encode())
    draw_features(method, method.network, folder / f"{stem}.png")
    write_checksums(weights)


def write_checksums(weights: Path) -> None:
    """Write the checksums of the weights and of the log, the card and the picture beside them."""
    files = [weights.with_suffix(ending) for ending in (".safetensors", ".csv", ".md", ".png")]
    sums = "".join(f"{sha256_of_file(file)}  {file.name}\n" for file in files)
    write_file(weights.with_suffix(".sha256"), sums.encode())


def described(architecture: dict[str, Any]) -> str:
    """A network of nnU-Net in words: its class, its features, and the blocks of its encoder."""
    arguments, blocks = architecture["arch_kwargs"], architecture["arch_kwargs"].get("n_blocks_per_stage")
    stages = f"{blocks} residual blocks" if blocks else f"{arguments['n_conv_per_stage']} convolutions"
    name = architecture["network_class_name"].rpartition(".")[2]
    return f"nnU-Net's 3-D {name} with {arguments['features_per_stage']} features and {stages}"


def card(metadata: dict[str, Any], record: dict[str, Any], weights: Path) -> str:
    """The model card; every number in it comes from the run."""
    loss, options = record["held_out_loss"], metadata["options"]
    rows = "\n".join(
        f"| {name} | {r['trained']:.3f} | {np.mean(r['random']):.3f} ({min(r['random']):.3f} to {max(r['random']):.3f},"
        f" {len(r['random'])} networks) |"
        for name, r in record["retrieval"].items()
    )
    return f"""{FRONT_MATTER}# {weights.stem}

![Synthetic pairs, and the features of both appearances]({weights.stem}.png)

Encoder and decoder of {described(metadata["architecture"])}
per stage and one input channel (other numbers of channels are adapted), pre-trained with
`pretrain anatomix` (a re-implementation of arXiv 2411.02372). Half precision, {weights.stat().st_size / 1e6:.1f} MB.
The training used synthetic images only. In the picture, the three colours are the first principal components of
the finest features of both appearances.

| what | value |
|---|---|
| shapes | {options["templates"] or options["shapes"]} |
| patches | {options["patch"]}^3 voxels cut out of {options["volume"]}^3, {options["batch_size"]} pair(s) per step |
| length | {record["steps"]} steps, seed {options["seed"]} |
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

Not run: `python -m benchmarks.shipped_weights.gate {weights.name} --card` writes its tables here.
"""
