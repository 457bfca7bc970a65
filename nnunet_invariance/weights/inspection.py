"""Inspection of checkpoint files, and the list of pre-trainings and shipped files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_invariance.common.wording import counted
from nnunet_invariance.errors import CheckpointCorruptError, printable
from nnunet_invariance.weights import locate
from nnunet_invariance.weights.checkpoint import SECTIONS, SUFFIX, holds_metadata, load_checkpoint, read_metadata
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.importers.importing import read_network, recognise
from nnunet_invariance.weights.importers.network import own_tensors
from nnunet_invariance.weights.importers.registry import get_importer


@dataclass(frozen=True)
class CheckpointInfo:
    """Content of a checkpoint file, in our format or that of another tool.

    A field is None if the file does not say it. ``to_text`` prints the fields that are not None.

    Attributes:
        file: its path.
        format: ``nnunet_invariance``, or the name and description of the importer that reads the file.
        method: the pre-training method; ``import:NAME`` for an imported checkpoint.
        progress: steps, and whether the pre-training is finished.
        spacing_mm: of the images, in mm. patch_voxels: size of the training patch in voxels.
        values: number of values per section.
        sha256: checksum of the tensors in our format, verified.
        remark: why the file cannot be used, or the command that imports it.

    >>> print(CheckpointInfo("a.pth", "nnssl: a checkpoint of nnssl", architecture="PlainConvUNet").to_text())
    file          a.pth
    format        nnssl: a checkpoint of nnssl
    architecture  PlainConvUNet
    """

    file: str
    format: str
    method: str | None = None
    progress: str | None = None
    created: str | None = None
    dataset: str | None = None
    plans: str | None = None
    configuration: str | None = None
    architecture: str | None = None
    features_per_stage: list[int] | None = None
    strides: list[list[int]] | None = None
    channels: list[str] | None = None
    normalization: list[str] | None = None
    spacing_mm: list[float] | None = None
    patch_voxels: list[int] | None = None
    pretrained: list[str] | None = None
    values: dict[str, int] = field(default_factory=dict)
    options: dict[str, Any] | None = None
    manifest_sha256: str | None = None
    versions: dict[str, str] | None = None
    citation: str | None = None
    parent_sha256: str | None = None
    sha256: str | None = None
    remark: str | None = None

    def to_text(self) -> str:
        """One line per field; control characters in the file's own text are escaped."""
        values = {item.name.replace("_", " "): getattr(self, item.name) for item in fields(self)}
        known = {name: value for name, value in values.items() if value not in (None, {})}
        width = max(map(len, known))
        return "\n".join(f"{name:<{width}}  {printable(_text(value))}" for name, value in known.items())


def inspect(path: str | os.PathLike) -> CheckpointInfo:
    """Read what a checkpoint file contains; nothing in the file is run, and our checksums are verified.

    Raises:
        WeightsNotFoundError: there is no such file. CheckpointCorruptError: it is damaged.
        UnsafeCheckpointError: opening it would need code or too much memory.
        WeightsIncompatibleError: a file of another tool that no importer reads.
    """
    path = Path(path)
    if _is_foreign(path):
        return _inspect_foreign(path)
    checkpoint = load_checkpoint(path)
    metadata = checkpoint.metadata
    values = {section: sum(t.numel() for t in checkpoint.section(section).values()) for section in SECTIONS}
    return CheckpointInfo(
        file=str(path),
        format="nnunet_invariance",
        method=metadata["method"],
        progress=_progress(metadata),
        created=metadata["created"],
        **_network_fields(metadata["architecture"], metadata),
        pretrained=metadata["pretrained"],
        values={section: number for section, number in values.items() if number},
        options=metadata["options"],
        manifest_sha256=metadata["manifest_sha256"],
        versions=metadata["versions"],
        citation=metadata["citation"],
        parent_sha256=metadata["parent_sha256"],
        sha256=f"{metadata['sha256']} (verified)",
    )


def _is_foreign(path: Path) -> bool:
    if not os.path.isfile(path):
        return False
    return path.suffix != SUFFIX or not holds_metadata(path)


def _inspect_foreign(path: Path) -> CheckpointInfo:
    """Fields of a file of another tool, as far as they are known without plans beside it."""
    content = open_foreign(path)
    name = recognise(path, content)
    importer = get_importer(name)
    description = f"{name}: {importer.DESCRIPTION}"
    unusable: str | None = getattr(importer, "UNUSABLE", None)
    if name == "encoder" or unusable:
        values = sum(value.numel() for value in content.values() if isinstance(value, Tensor))
        remark = f"cannot be used: {unusable}" if unusable else None
        return CheckpointInfo(str(path), description, values={"file": values}, remark=remark)
    _, network = read_network(path, content, name)
    tensors, pretrained, _ = own_tensors(path, network)
    return CheckpointInfo(
        file=str(path),
        format=description,
        progress=None if network.epochs is None else counted(network.epochs, "epoch"),
        **_network_fields(network.architecture.to_dict(), network.facts),
        pretrained=pretrained,
        values={"network": sum(tensor.numel() for tensor in tensors.values())},
        citation=network.citation,
        remark=f"import it: nnunet-invariance weights import {name} {path}",
    )


def _network_fields(architecture: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Fields about the network and its images, which both formats have."""
    return {
        "dataset": facts["dataset_name"],
        "plans": facts["plans_name"],
        "configuration": facts["configuration"],
        "architecture": architecture["network_class_name"].rsplit(".", 1)[-1],
        "features_per_stage": architecture["arch_kwargs"].get("features_per_stage"),
        "strides": architecture["arch_kwargs"].get("strides"),
        "channels": facts["channel_names"],
        "normalization": facts["normalization_schemes"],
        "spacing_mm": facts["spacing"],
        "patch_voxels": facts["patch_size"],
    }


@dataclass(frozen=True)
class ListedWeights:
    """One line of ``weights list``.

    Attributes:
        dataset: folder of the data set, or ``shipped`` for a file of the package.
        run: folder of the pre-training, or the name of the shipped file without its suffix.
        state: progress, or ``damaged``.
        file: the checkpoint.
        card: the model card of a shipped file.
    """

    dataset: str
    run: str
    state: str
    file: Path
    card: Path | None = None


def list_weights() -> list[ListedWeights]:
    """The shipped files and the pre-trainings below ``nnUNet_results``; reads headers only.

    Without the environment variable ``nnUNet_results`` the list has the shipped files only.
    """
    listed = [
        ListedWeights("shipped", file.stem, _state(file), file, file.with_suffix(".md"))
        for file in locate.shipped_files()
    ]
    if not locate.results_are_set():
        return listed
    for folder in sorted(locate.results_folder().glob("*/pretraining/*")):
        files = (folder / name for name in (locate.FINAL, locate.LATEST))
        if file := next((file for file in files if file.is_file()), None):
            listed.append(ListedWeights(folder.parents[1].name, folder.name, _state(file), file))
    return listed


def _state(file: Path) -> str:
    try:
        return _progress(read_metadata(file))
    except CheckpointCorruptError:
        return "damaged (`nnunet-invariance weights inspect` says how)"


def _progress(metadata: Mapping[str, Any]) -> str:
    state = "finished" if metadata["finished"] else "not finished"
    return f"{state}, step {metadata['step']} of {metadata['total_steps']}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return str(value)
