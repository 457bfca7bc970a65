"""Any file of another tool as a checkpoint of ours: recognised, checked, and written with what it says of itself."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nnunet_invariance.errors import CheckpointCorruptError, WeightsIncompatibleError, WeightsNotFoundError
from nnunet_invariance.weights.checkpoint import SUFFIX, save_checkpoint
from nnunet_invariance.weights.export import check_new
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.importers import (
    alice,
    anatomix_vit,
    encoder,
    monai_swin,
    nnssl,
    nnunet,
    puir_swin,
    sam,
    voco,
)
from nnunet_invariance.weights.importers.anatomix import ReleasedUNet
from nnunet_invariance.weights.importers.network import ForeignNetwork, own_heads, own_tensors


class Importer(Protocol):
    """What a module of this room, or an object in its place, says of the files of a importer."""

    DESCRIPTION: str
    KEYS: tuple[str, ...]

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """Whether a file has the keys of this importer."""

    def read(
        self, path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str
    ) -> ForeignNetwork:
        """The network of the file."""


#: In the order in which they are tried: nnssl's files have the keys of nnU-Net's too, VoCo's those of MONAI's.
IMPORTERS: dict[str, Importer] = {
    "alice": alice,
    "nnssl": nnssl,
    "nnunet": nnunet,
    "anatomix": ReleasedUNet("anatomix"),
    "anatomix-dev": ReleasedUNet("anatomix-dev"),
    "anatomix-dev-vit": anatomix_vit,
    "sam": sam,
    "puir-swin": puir_swin,
    "voco": voco,
    "monai-swin": monai_swin,
    "encoder": encoder,
}
PACKAGES = ("nnunet_invariance", "nnunetv2", "torch")
SHOWN = 6
#: What reading a dictionary raises that is not made as its importer makes it.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, StopIteration, RuntimeError)


def recognise(path: Path, content: Mapping[str, Any]) -> str:
    """The name of the importer of a file.

    Raises:
        WeightsIncompatibleError: no importer knows these keys; names the first of them and the nearest importer.
    """
    for name, importer in IMPORTERS.items():
        if importer.recognises(content):
            return name
    keys = [str(key) for key in content]
    shares = {
        name: sum(any(k.startswith(own) for k in keys) / len(s.KEYS) for own in s.KEYS) for name, s in IMPORTERS.items()
    }
    nearest = max(shares, key=shares.__getitem__)
    lacking = ", ".join(own for own in IMPORTERS[nearest].KEYS if not any(k.startswith(own) for k in keys))
    hint = f"Nearest: {nearest}, {IMPORTERS[nearest].DESCRIPTION}, but it lacks {lacking}."
    msg = f"{path} is of no source that is known here. Its first keys: {', '.join(keys[:SHOWN]) or 'none'}. "
    known = "; ".join(f"{name}: {importer.DESCRIPTION}" for name, importer in IMPORTERS.items())
    raise WeightsIncompatibleError(f"{msg}{hint if shares[nearest] else 'None is near.'} Known: {known}.")


def read_network(
    path: Path,
    content: Mapping[str, Any],
    importer: str | None = None,
    plans: Mapping[str, Any] | None = None,
    configuration: str = "3d_fullres",
) -> tuple[str, ForeignNetwork]:
    """The importer of an opened file, and the network it holds.

    Raises:
        CheckpointCorruptError
        WeightsIncompatibleError: of no known importer, of another than ``source``, or a network we cannot use.
    """
    found = recognise(path, content)
    if importer not in (None, found):
        msg = f"{path} is {IMPORTERS[found].DESCRIPTION}, not of source {importer!r}. Import it as {found!r}."
        raise WeightsIncompatibleError(msg)
    try:
        return found, IMPORTERS[found].read(path, content, plans, configuration)
    except MALFORMED as error:
        msg = f"{path} cannot be imported: its plans cannot be read ({type(error).__name__}: {error}). "
        raise CheckpointCorruptError(msg + "Take the file as its authors released it.") from error


def import_foreign(
    path: str | os.PathLike,
    out_path: str | os.PathLike | None = None,
    importer: str | None = None,
    plans: Mapping[str, Any] | None = None,
    configuration: str = "3d_fullres",
) -> Path:
    """Write the network of another tool's file as a checkpoint of ours (section ``network``, the student).

    Args:
        out_path: default is the file's name with the suffix of our checkpoints, or ``.imported.safetensors``.
        importer: a key of :data:`IMPORTERS`; default is what the file is recognised as.
        plans: the content of a plans file, for files without plans of their own.

    Raises:
        OutputError: ``out_path`` exists or cannot be written; and everything of
            :func:`~nnunet_invariance.weights.foreign.open_foreign` and :func:`read_network`.
    """
    path = Path(path)
    suffix = f".imported{SUFFIX}" if path.suffix == SUFFIX else SUFFIX
    out = path.with_suffix(suffix) if out_path is None else Path(out_path)
    check_new(out)
    name, network = read_network(path, open_foreign(path), importer, plans, configuration)
    tensors, pretrained, left_out = own_tensors(path, network)
    metadata = {
        **network.facts,
        "method": network.method or name,
        "finished": True,
        "step": network.epochs or 0,
        "total_steps": network.epochs or 0,
        "architecture": network.architecture.to_dict(),
        "pretrained": pretrained,
        "options": {"imported": path.name, "unit_of_steps": "epoch", **network.notes, "left_out": left_out},
        "manifest_sha256": None,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "citation": network.citation,
        "parent_sha256": file_sha256(path),
    }
    heads = own_heads(path, network)
    sections = (("network", tensors), ("heads", heads))
    save_checkpoint(out, {f"{section}.{key}": t for section, named in sections for key, t in named.items()}, metadata)
    return out


def read_plans(path: Path) -> dict[str, Any]:
    """The content of a plans file.

    Raises:
        WeightsNotFoundError: there is no such file. CheckpointCorruptError: it is not JSON.
    """
    if not path.is_file():
        raise WeightsNotFoundError(f"There is no plans file {path}. Check the spelling of the path.")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        msg = f"{path} is not a plans file: it is not JSON ({error}). Give the plans that nnU-Net wrote."
        raise CheckpointCorruptError(msg) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()
