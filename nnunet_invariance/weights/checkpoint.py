"""Checkpoint file: one safetensors file with tensors in sections, and metadata in its header."""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nnunet_invariance.common.atomic import atomic_write, previous_of
from nnunet_invariance.common.file_types import mistaken_file_type
from nnunet_invariance.errors import CheckpointCorruptError, WeightsNotFoundError
from nnunet_invariance.weights.metadata import FORMAT, KEY, from_header, problem_of, to_header

SUFFIX = ".safetensors"
#: Prefix of the method in imported checkpoints whose importer declares no method, as in ``import:nnssl``.
IMPORTED = "import:"
SECTIONS = ("network", "teacher", "heads", "optimizer", "rng")

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint file.

    Attributes:
        path: the file.
        metadata: built-in types, see :data:`~nnunet_invariance.weights.metadata.REQUIRED`; also ``format``,
            ``created`` and ``sha256`` (of the tensors).
        tensors: by full name, section prefix included.

    >>> checkpoint = Checkpoint(Path("a.safetensors"), {}, {"teacher.encoder.bias": torch.zeros(4)})
    >>> list(checkpoint.section("teacher"))
    ['encoder.bias']
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def section(self, name: str) -> dict[str, Tensor]:
        """The tensors of one section without prefix; empty if the section is missing or was not loaded."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def save_checkpoint(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], keep_previous: bool = True
) -> None:
    """Write a checkpoint atomically; adds ``format``, ``created`` and ``sha256`` to the metadata.

    Args:
        path: a ``.safetensors`` file.
        tensors: by full name, ``<section>.<name>`` with a section of :data:`SECTIONS`; copied to the CPU, dtypes kept.
        metadata: built-in types, with every key of :data:`~nnunet_invariance.weights.metadata.REQUIRED`.
        keep_previous: keep the replaced file as ``<stem>.previous.safetensors``.

    Raises:
        OutputError: the disk is full or the folder is not writable; an older file at ``path`` is unchanged.
        ValueError: the metadata or the names of the tensors are not as described.
    """
    if problem := problem_of(metadata, added=False):
        raise ValueError(f"Checkpoint metadata {problem}.")
    strange = [name for name in tensors if name.split(".", 1)[0] not in SECTIONS or "." not in name]
    if strange:
        raise ValueError(f"Tensors outside the sections {', '.join(SECTIONS)}: {', '.join(strange[:5])}.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    complete = {"created": created, **metadata, "format": FORMAT, "sha256": tensors_sha256(tensors)}
    atomic_write(path, lambda file: _write(file, tensors, complete), keep_previous)


def load_checkpoint(path: str | os.PathLike, sections: Iterable[str] | None = None) -> Checkpoint:
    """Load a checkpoint, or some sections of it; verifies the checksums of the metadata and of all tensors.

    A file that a running process replaces in the meantime is read again, because safetensors opens the header and the
    tensors of a file one after the other.

    Raises:
        WeightsNotFoundError: there is no such file.
        CheckpointCorruptError: the file is truncated, of another format, or does not match a checksum.
    """
    wanted = None if sections is None else tuple(f"{section}." for section in sections)
    while True:
        path = _existing(path)
        version = _version(path)
        try:
            return _load(path, wanted)
        except CheckpointCorruptError:
            if _version(path) == version:
                raise


def _load(path: Path, wanted: tuple[str, ...] | None) -> Checkpoint:
    """Load the tensors whose names start with one of ``wanted``; None: all."""
    tensors, digest = {}, hashlib.sha256()
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = _metadata(path, file.metadata())
            for name in sorted(file.keys()):
                if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES.values():
                    raise _corrupt(path, f"{name} has dtype {dtype}, expected one of {', '.join(_DTYPES.values())}")
                tensor = file.get_tensor(name)
                _update(digest, name, tensor)
                if wanted is None or name.startswith(wanted):
                    tensors[name] = tensor
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if digest.hexdigest() != metadata["sha256"]:
        found, expected = digest.hexdigest()[:12], metadata["sha256"][:12]
        raise _corrupt(path, f"its tensors have the checksum {found}..., but its header says {expected}...")
    return Checkpoint(path, metadata, tensors)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a checkpoint; reads the header only and verifies the checksum of the metadata only.

    Raises:
        WeightsNotFoundError: there is no such file.
        CheckpointCorruptError: the file is truncated, not safetensors, not ours, or of another format version.
    """
    path = _existing(path)
    try:
        with safe_open(path, framework="np") as file:
            return _metadata(path, file.metadata())
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def holds_metadata(path: str | os.PathLike) -> bool:
    """Whether a file has our metadata or an unreadable header; False for safetensors files of other tools."""
    try:
        with safe_open(path, framework="np") as file:
            return KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return True


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of the tensors in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _update(digest, name, tensors[name])
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The raw little-endian bytes of a tensor in C order; no copy if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _update(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(json.dumps([name, _DTYPES[tensor.dtype], list(tensor.shape)]).encode())
    digest.update(tensor_bytes(tensor))


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write the safetensors format to an open file.

    The writers of the library either create a file themselves (readable by its owner only) or need a second copy of all
    bytes in memory; :func:`atomic_write` needs neither.
    """
    # Widest types first keeps every tensor aligned to its own element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": to_header(metadata)}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + math.prod(tensor.shape) * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        file.write(tensor_bytes(tensors[name]))


def _existing(path: str | os.PathLike) -> Path:
    path = Path(path)
    if os.path.isdir(path):
        msg = f"{path} is a folder, not a checkpoint. Name the file in it, for example checkpoint_final{SUFFIX}."
        raise WeightsNotFoundError(msg)
    if not os.path.isfile(path):
        raise WeightsNotFoundError(f"There is no checkpoint {path}. Check the spelling of the path.")
    return path


def _version(path: Path) -> tuple[int, int, int]:
    """Differs between two files that were at a path one after the other."""
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _metadata(path: Path, header: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        return from_header(header or {})
    except ValueError as error:
        raise _corrupt(path, str(error)) from error


def _unreadable(path: Path, error: Exception) -> CheckpointCorruptError:
    """The error for a file that safetensors cannot read; recognises frequent mistakes by the first bytes."""
    with open(path, "rb") as file:
        start = file.read(4)
    what = mistaken_file_type(path) or f"it is truncated or not a safetensors file ({error})"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        what = "it is a PyTorch file (.pth), which `nnunet-invariance weights import` converts to a checkpoint"
    return _corrupt(path, what)


def _corrupt(path: Path, what: str) -> CheckpointCorruptError:
    previous = previous_of(path)
    if os.path.isfile(previous):
        remedy = f"The previous version is kept: {previous}."
    else:
        remedy = "Copy it again from its origin, or pre-train again."
    return CheckpointCorruptError(f"{path} cannot be used: {what}. {remedy}")
