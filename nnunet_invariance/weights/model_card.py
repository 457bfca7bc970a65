"""Model card: a folder with weights, their preprocessing, their metrics and a page, ready for publication."""

import html
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_invariance.common.csv_files import read_csv_rows
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.common.json_files import write_text
from nnunet_invariance.errors import printable
from nnunet_invariance.weights.checkpoint import save_checkpoint
from nnunet_invariance.weights.output import refuse_existing
from nnunet_invariance.weights.transfer import Branch, load_network

MODEL, SUMS, PAGE = "model.safetensors", "SHA256SUMS", "README.md"
CONFIG = ("method", "architecture", "channel_names", "pretrained", "options", "step", "total_steps", "finished")
#: Pictures beside a checkpoint that a card shows, with what they show.
PICTURES = {
    "samples.png": "what the network saw and restored in the last epoch of its pre-training",
    "progress.png": "curves of the pre-training",
}
PREPROCESSING = ("spacing", "patch_size", "normalization_schemes", "data_identifier", "configuration", "plans")


def export_card(
    checkpoint_path: str | os.PathLike,
    folder: str | os.PathLike,
    branch: Branch | None = None,
) -> Path:
    """Write a folder with the weights, JSON files about them, pictures of the run, checksums and a README page.

    The files are ``model.safetensors``, ``config.json``, ``preprocessing.json``, ``metrics.json``, ``SHA256SUMS``,
    those of :data:`PICTURES` that lie beside the checkpoint, and ``README.md`` with the tags that the Hugging Face Hub
    reads. The licence is left to the user, because it depends on the data. The model contains one network in our
    format, without heads, optimizer and random state. The metrics are those of the last epoch in the ``metrics.csv``
    beside the checkpoint; without this file they are empty.

    Args:
        branch: default: that of :func:`.default_branch`.

    Raises:
        WeightsIncompatibleError: no such branch. OutputError: the folder exists or cannot be written.
        WeightsNotFoundError: no such file. CheckpointCorruptError: it is damaged.

    >>> export_card("no_such_file.safetensors", "card")
    Traceback (most recent call last):
    nnunet_invariance.errors.WeightsNotFoundError: There is no checkpoint no_such_file.safetensors. ...
    """
    folder = Path(folder)
    refuse_existing(folder)
    checkpoint, branch = load_network(checkpoint_path, branch)
    metadata = checkpoint.metadata
    # The folder is written under another name and renamed, so that it is complete or does not exist.
    making = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    save_checkpoint(making / MODEL, checkpoint.tensors, metadata)
    texts = {
        "config.json": _json({key: metadata[key] for key in CONFIG} | {"branch": branch}),
        "preprocessing.json": _json({key: metadata[key] for key in PREPROCESSING}),
        "metrics.json": _json(_metrics(checkpoint.path.parent / "metrics.csv")),
    }
    pictures = [name for name in PICTURES if (checkpoint.path.parent / name).is_file()]
    for name in pictures:
        shutil.copyfile(checkpoint.path.parent / name, making / name)
    texts[PAGE] = _page(metadata, branch, pictures)
    for name, text in texts.items():
        write_text(making / name, text)
    sums = "".join(f"{sha256_of_file(making / name)}  {name}\n" for name in sorted([MODEL, *texts, *pictures]))
    write_text(making / SUMS, sums)
    making.rename(folder)
    return folder


def _metrics(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    rows = read_csv_rows(path, [])
    return rows[-1] if rows else {}


def _page(metadata: Mapping[str, Any], branch: str, pictures: Sequence[str]) -> str:
    kind = metadata["architecture"]["network_class_name"].rsplit(".", 1)[-1]
    method = metadata["method"]
    rows = {
        "pre-training": f"{method}, step {metadata['step']} of {metadata['total_steps']}",
        "data": f"{metadata['dataset_name']}, {metadata['plans_name']}, {metadata['configuration']}",
        "channels": ", ".join(metadata["channel_names"]),
        "normalisation": ", ".join(metadata["normalization_schemes"]),
        "spacing (mm), patch (voxels)": f"{metadata['spacing']}, {metadata['patch_size']}",
        "imported from a file with SHA-256": metadata["parent_sha256"] or "none: trained from random weights",
        "cite": metadata["citation"],
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    shown = "\n".join(f"![{PICTURES[name].capitalize()}]({name})\n" for name in pictures)
    tags = json.dumps(["nnU-Net", "3-D segmentation", "pre-training", printable(method)])
    return f"""---
library_name: nnunet-invariance
tags: {tags}
---
# {_cell(method)}, {_cell(kind)}

Pre-trained {_cell(" and ".join(metadata["pretrained"]))} ({branch}) for nnU-Net v2, a checkpoint of nnunet_invariance.

| | |
|---|---|
{table}
| licence | not stated; before you publish the folder, add `license: NAME` above, as the data allow |

{shown}
    sha256sum -c {SUMS}
    nnunet-invariance weights plan DATASET {MODEL}

The second command writes plans that start from this file, and prints the training command. Not a medical device.
"""


def _cell(value: str) -> str:
    """Text of the metadata for a Markdown table: without HTML, line breaks, column separators or links."""
    plain = html.escape(printable(" ".join(value.split())))
    return "".join(f"\\{c}" if c in "|[]`*_" else c for c in plain)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"
