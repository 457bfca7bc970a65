"""Pre-trained weights as a folder to give away: weights, what they expect, what was measured, and a page to read."""

import csv
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.weights.checkpoint import save_checkpoint
from nnunet_invariance.weights.output import refuse_existing
from nnunet_invariance.weights.transfer import load_network

MODEL, SUMS, PAGE = "model.safetensors", "SHA256SUMS", "README.md"
CONFIG = ("method", "architecture", "channel_names", "pretrained", "options", "step", "total_steps", "finished")
PREPROCESSING = ("spacing", "patch_size", "normalization_schemes", "data_identifier", "configuration", "plans")


def export_card(
    checkpoint_path: str | os.PathLike,
    folder: str | os.PathLike,
    branch: Literal["teacher", "student"] | None = None,
) -> Path:
    """Write ``model.safetensors``, ``config.json``, ``preprocessing.json``, ``metrics.json``, ``SHA256SUMS``, a page.

    The model holds the chosen network alone (no heads, optimiser or random state) in our format, under its own section.
    Metrics are those of the last epoch in the ``metrics.csv`` beside the checkpoint; without one, none are claimed.

    Args:
        branch: not given: the teacher where there is one, else the student.

    Raises:
        WeightsIncompatibleError: no such network. OutputError: the folder exists or cannot be written.
        WeightsNotFoundError, CheckpointCorruptError
    """
    folder = Path(folder)
    refuse_existing(folder)
    checkpoint, branch = load_network(checkpoint_path, branch)
    metadata = checkpoint.metadata
    # Made beside its place and renamed: a card is there as a whole, or not at all.
    making = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    save_checkpoint(making / MODEL, checkpoint.tensors, metadata)
    texts = {
        "config.json": _json({key: metadata[key] for key in CONFIG} | {"branch": branch}),
        "preprocessing.json": _json({key: metadata[key] for key in PREPROCESSING}),
        "metrics.json": _json(_metrics(checkpoint.path.parent / "metrics.csv")),
        PAGE: _page(metadata, branch),
    }
    for name, text in texts.items():
        _write(making / name, text)
    sums = "".join(f"{sha256_of_file(making / name)}  {name}\n" for name in sorted([MODEL, *texts]))
    _write(making / SUMS, sums)
    making.rename(folder)
    return folder


def _metrics(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return dict(rows[-1]) if rows else {}


def _page(metadata: Mapping[str, Any], branch: str) -> str:
    kind = metadata["architecture"]["network_class_name"].rsplit(".", 1)[-1]
    parent = metadata["parent_sha256"]
    return f"""# {metadata["method"]}, {kind}

Pre-trained {" and ".join(metadata["pretrained"])} ({branch}) for nnU-Net v2, a checkpoint of nnunet_invariance.

| | |
|---|---|
| pre-training | {metadata["method"]}, step {metadata["step"]} of {metadata["total_steps"]} |
| data | {metadata["dataset_name"]}, {metadata["plans_name"]}, {metadata["configuration"]} |
| channels | {", ".join(metadata["channel_names"])} |
| normalisation | {", ".join(metadata["normalization_schemes"])} |
| spacing (mm), patch (voxels) | {metadata["spacing"]}, {metadata["patch_size"]} |
| made from a file with SHA-256 | {parent or "none: trained from random weights"} |
| cite | {metadata["citation"]} |

    sha256sum -c {SUMS}
    nnunet-invariance weights plan DATASET {MODEL}

The second command writes plans that name this file, and says how to train with them. Not a medical device.
"""


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _write(path: Path, text: str) -> None:
    atomic_write(path, lambda file: file.write(text.encode()))
