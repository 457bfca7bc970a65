"""Import of a file of another tool: recognise the file, check its network, write a checkpoint in our format."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.errors import CheckpointCorruptError, WeightsIncompatibleError
from nnunet_invariance.weights.checkpoint import IMPORTED, SUFFIX, save_checkpoint
from nnunet_invariance.weights.foreign import open_foreign
from nnunet_invariance.weights.importers.network import ForeignNetwork, own_heads, own_tensors
from nnunet_invariance.weights.importers.registry import IMPORTERS, get_importer
from nnunet_invariance.weights.metadata import problem_of
from nnunet_invariance.weights.output import refuse_existing
from nnunet_invariance.weights.trusted_architecture import malformed

PACKAGES = ("nnunet_invariance", "nnunetv2", "torch")
SHOWN = 6
#: Exceptions that an importer raises on a dictionary with the right keys and malformed values.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, StopIteration, RuntimeError, RecursionError)


def recognise(path: Path, content: Mapping[str, Any]) -> str:
    """The name of the importer that reads a file with this content.

    Raises:
        WeightsIncompatibleError: no importer reads it; names the first keys of the file and the nearest importer.
    """
    importers = {name: get_importer(name) for name in IMPORTERS}
    for name, importer in importers.items():
        if importer.recognises(content):
            return name
    keys = [str(key) for key in content]

    def lacking(prefixes: tuple[str, ...]) -> list[str]:
        return [prefix for prefix in prefixes if not any(key.startswith(prefix) for key in keys)]

    shares = {name: 1 - len(lacking(importer.KEYS)) / len(importer.KEYS) for name, importer in importers.items()}
    nearest = max(shares, key=shares.__getitem__)
    missing = ", ".join(lacking(importers[nearest].KEYS))
    hint = f"The nearest format is {nearest} ({importers[nearest].DESCRIPTION}), but the file lacks {missing}."
    known = "; ".join(f"{name}: {importer.DESCRIPTION}" for name, importer in importers.items())
    raise WeightsIncompatibleError(
        f"No importer reads {path}. Its first keys: {', '.join(keys[:SHOWN]) or 'none'}. "
        f"{hint if shares[nearest] else 'No known format is near.'} Known formats: {known}."
    )


def read_network(
    path: Path,
    content: Mapping[str, Any],
    importer: str | None = None,
    plans: Mapping[str, Any] | None = None,
    configuration: str = "3d_fullres",
) -> tuple[str, ForeignNetwork]:
    """The name of the importer of an opened file, and the network in the file.

    Raises:
        WeightsIncompatibleError: no importer reads the file, ``importer`` does not, or our trainers cannot use the
            network.
        CheckpointCorruptError: the file has the right keys, but malformed values.
    """
    found = recognise(path, content)
    if importer not in (None, found):
        msg = f"{path} is {get_importer(found).DESCRIPTION}, which the importer {importer!r} does not read. "
        raise WeightsIncompatibleError(f"{msg}Import it with {found!r}.")
    try:
        return found, get_importer(found).read(path, content, plans, configuration)
    except MALFORMED as error:
        msg = f"{path} cannot be imported: its plans cannot be read ({type(error).__name__}: {error}). "
        raise CheckpointCorruptError(msg + "Use the file as its authors released it.") from error


def import_foreign(
    path: str | os.PathLike,
    out_path: str | os.PathLike | None = None,
    importer: str | None = None,
    plans: Mapping[str, Any] | None = None,
    configuration: str = "3d_fullres",
) -> Path:
    """Write the network in a file of another tool as a checkpoint in our format (section ``network``, the student).

    The method in its metadata is that of the importer (:attr:`.ForeignNetwork.method`), or ``import:NAME`` if the
    importer declares none: a trainer of a method that happens to have the importer's name does not take the file.

    Args:
        out_path: default: the name of the file with the suffix of our checkpoints, or ``.imported.safetensors``.
        importer: a key of :data:`IMPORTERS`; default: the importer that recognises the file.
        plans: content of a plans file, for files without plans of their own.

    Raises:
        OutputError: ``out_path`` exists or cannot be written. Also raises the errors of
            :func:`~nnunet_invariance.weights.foreign.open_foreign` and :func:`read_network`.
    """
    path = Path(path)
    suffix = f".imported{SUFFIX}" if path.suffix == SUFFIX else SUFFIX
    out = path.with_suffix(suffix) if out_path is None else Path(out_path)
    refuse_existing(out)
    name, network = read_network(path, open_foreign(path), importer, plans, configuration)
    tensors, pretrained, left_out = own_tensors(path, network)
    metadata = {
        **network.facts,
        "method": network.method or IMPORTED + name,
        "finished": True,
        "step": network.epochs or 0,
        "total_steps": network.epochs or 0,
        "architecture": network.architecture.to_dict(),
        "pretrained": pretrained,
        "options": {"imported": path.name, "unit_of_steps": "epoch", **network.notes, "left_out": left_out},
        "manifest_sha256": None,
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "citation": network.citation,
        "parent_sha256": sha256_of_file(path),
    }
    if problem := problem_of(metadata, added=False):
        raise malformed(path, f"its plans {problem}", "plans as nnU-Net writes them")
    heads = own_heads(path, network)
    sections = (("network", tensors), ("heads", heads))
    save_checkpoint(out, {f"{section}.{key}": t for section, named in sections for key, t in named.items()}, metadata)
    return out
