"""What a checkpoint is, and which pre-trainings there are."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_invariance.errors import CheckpointCorruptError
from nnunet_invariance.weights.checkpoint import SECTIONS, SUFFIX, holds_metadata, load_checkpoint, read_metadata
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.importers.importing import IMPORTERS, read_network, recognise
from nnunet_invariance.weights.importers.network import own_tensors
from nnunet_invariance.weights.locate import FINAL, LATEST, results_folder


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """What a checkpoint says of itself, once its checksum is verified; native types. Other tools' files too.

    Raises:
        WeightsNotFoundError, CheckpointCorruptError, UnsafeCheckpointError
        WeightsIncompatibleError: a file of no known importer.
    """
    if _is_foreign(Path(path)):
        return _describe_foreign(Path(path))
    checkpoint = load_checkpoint(path)
    metadata = checkpoint.metadata
    architecture = metadata["architecture"]
    arguments = architecture["arch_kwargs"]
    parameters = {section: sum(t.numel() for t in checkpoint.section(section).values()) for section in SECTIONS}
    return {
        "file": str(checkpoint.path),
        "method": metadata["method"],
        "steps": f"{metadata['step']} of {metadata['total_steps']}, {_state(metadata)}",
        "created": metadata["created"],
        "dataset": metadata["dataset_name"],
        "plans": metadata["plans_name"],
        "configuration": metadata["configuration"],
        "architecture": architecture["network_class_name"].rsplit(".", 1)[-1],
        "features per stage": arguments.get("features_per_stage"),
        "strides": arguments.get("strides"),
        "channels": metadata["channel_names"],
        "normalisation": metadata["normalization_schemes"],
        "spacing (mm)": metadata["spacing"],
        "patch (voxels)": metadata["patch_size"],
        "pretrained": metadata["pretrained"],
        "values per section": {section: number for section, number in parameters.items() if number},
        "options": metadata["options"],
        "data manifest": metadata["manifest_sha256"],
        "versions": metadata["versions"],
        "citation": metadata["citation"],
        "parent": metadata["parent_sha256"],
        "checksum": f"{metadata['sha256']} (verified)",
    }


def _is_foreign(path: Path) -> bool:
    if not path.is_file():
        return False
    return path.suffix != SUFFIX or not holds_metadata(path)


def _describe_foreign(path: Path) -> dict[str, Any]:
    """What another tool's file is, as far as it can be told without plans beside it."""
    content = open_foreign(path)
    importer = recognise(path, content)
    fields = {"file": str(path), "source": f"{importer}: {IMPORTERS[importer].DESCRIPTION}"}
    unusable = getattr(IMPORTERS[importer], "UNUSABLE", None)
    if importer == "encoder" or unusable:
        tensors = [value for value in content.values() if isinstance(value, Tensor)]
        fields |= {"tensors": len(tensors), "values": sum(tensor.numel() for tensor in tensors)}
        return {**fields, "cannot be used": unusable} if unusable else fields
    _, network = read_network(path, content, importer)
    _, pretrained, left_out = own_tensors(path, network)
    facts, arguments = network.facts, network.architecture.arch_kwargs
    return {
        **fields,
        "epochs": network.epochs,
        "dataset": facts["dataset_name"],
        "plans": facts["plans_name"],
        "configuration": facts["configuration"],
        "architecture": network.architecture.network_class_name.rsplit(".", 1)[-1],
        "features per stage": arguments.get("features_per_stage"),
        "strides": arguments.get("strides"),
        "channels": facts["channel_names"],
        "normalisation": facts["normalization_schemes"],
        "spacing (mm)": facts["spacing"],
        "patch (voxels)": facts["patch_size"],
        "pretrained": pretrained,
        "left out at import": len(left_out),
        "citation": network.citation,
        "to use it": f"nnunet-invariance weights import {importer} {path}",
    }


def describe_text(path: str | os.PathLike) -> str:
    """:func:`describe`, a line a field."""
    fields = describe(path)
    width = max(map(len, fields))
    return "\n".join(f"{name:<{width}}  {_line(value)}" for name, value in fields.items())


def list_pretrainings() -> list[dict[str, str]]:
    """The pre-trainings below ``nnUNet_results``, the undated and the dated; headers only, no checksum.

    Each has ``dataset``, ``run`` (the folder's name), ``state`` and ``file``; a damaged file is listed as such.

    Raises:
        EnvironmentNotSetError: ``nnUNet_results`` is not set.
    """
    rows = []
    for folder in sorted(results_folder().glob("*/pretraining/*")):
        file = next((folder / name for name in (FINAL, LATEST) if (folder / name).is_file()), None)
        if file is None:
            continue
        try:
            metadata = read_metadata(file)
            state = f"{_state(metadata)}, step {metadata['step']} of {metadata['total_steps']}"
        except CheckpointCorruptError:
            state = "damaged (`weights inspect` says how)"
        rows.append({"dataset": folder.parents[1].name, "run": folder.name, "state": state, "file": str(file)})
    return rows


def _state(metadata: Mapping[str, Any]) -> str:
    return "finished" if metadata["finished"] else "not finished"


def _line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
