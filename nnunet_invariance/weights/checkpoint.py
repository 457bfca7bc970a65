"""The checkpoint file: one safetensors file with sections, and metadata that say what it is."""

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

FORMAT = 1
KEY = "nnunet_invariance"
SUFFIX = ".safetensors"
#: Prefix of the method in imported checkpoints whose importer declares no method, as in ``import:nnssl``.
IMPORTED = "import:"
SECTIONS = ("network", "teacher", "heads", "optimizer", "rng")
REQUIRED = (
    "method",
    "finished",
    "step",
    "total_steps",
    "architecture",
    "channel_names",
    "normalization_schemes",
    "spacing",
    "patch_size",
    "dataset_name",
    "plans_name",
    "configuration",
    "data_identifier",
    "plans",
    "pretrained",
    "options",
    "manifest_sha256",
    "versions",
    "citation",
    "parent_sha256",
)

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
    """What was read from a checkpoint file.

    Attributes:
        path: the file.
        metadata: native types, see :data:`REQUIRED`; also ``format``, ``created`` and ``sha256``.
        tensors: by full name, section prefix included.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def section(self, name: str) -> dict[str, Tensor]:
        """The tensors of one section without their prefix; empty where the file (or what was read of it) has none."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): tensor for key, tensor in self.tensors.items() if key.startswith(prefix)}


def save_checkpoint(
    path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], keep_previous: bool = True
) -> None:
    """Write a checkpoint atomically; ``format``, ``created`` and ``sha256`` are added to the metadata.

    Args:
        path: a ``.safetensors`` file.
        tensors: by full name, ``<section>.<name>`` with a section of :data:`SECTIONS`; written from CPU, dtypes kept.
        metadata: native types, with every key of :data:`REQUIRED`.
        keep_previous: keep the file that is replaced as ``<stem>.previous.safetensors``.

    Raises:
        OutputError: the disk is full, the place not writable; an older file there stays as it was.
    """
    lacking = [key for key in REQUIRED if key not in metadata]
    if lacking:
        raise ValueError(f"Checkpoint metadata lack {', '.join(lacking)}.")
    strange = [name for name in tensors if name.split(".", 1)[0] not in SECTIONS or "." not in name]
    if strange:
        raise ValueError(f"Tensors outside the sections {', '.join(SECTIONS)}: {', '.join(strange[:5])}.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    metadata = {"created": created, **metadata, "format": FORMAT, "sha256": tensors_sha256(tensors)}
    atomic_write(path, lambda file: _write(file, tensors, metadata), keep_previous)


def load_checkpoint(path: str | os.PathLike, sections: Iterable[str] | None = None) -> Checkpoint:
    """Read a checkpoint (or only some sections of it) and verify the checksum over all of its tensors.

    Raises:
        WeightsNotFoundError: there is no such file.
        CheckpointCorruptError: the file is truncated, of another format, or does not match its checksum.
    """
    path = _existing(path)
    wanted = None if sections is None else tuple(f"{section}." for section in sections)
    tensors, digest = {}, hashlib.sha256()
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = _parse(path, file.metadata() or {})
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                _update(digest, name, tensor)
                if wanted is None or name.startswith(wanted):
                    tensors[name] = tensor
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if digest.hexdigest() != metadata["sha256"]:
        found, expected = digest.hexdigest()[:12], str(metadata["sha256"])[:12]
        raise _corrupt(path, f"its tensors have the checksum {found}..., but its header says {expected}...")
    return Checkpoint(path, metadata, tensors)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a checkpoint; reads the header only and verifies no checksum.

    Raises:
        WeightsNotFoundError: there is no such file.
        CheckpointCorruptError: the file is truncated, not safetensors, not ours, or of another format version.
    """
    path = _existing(path)
    try:
        with safe_open(path, framework="np") as file:
            return _parse(path, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def holds_metadata(path: str | os.PathLike) -> bool:
    """Whether a file has our header, or none that can be read; False for the safetensors files of other tools."""
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
    """The raw little-endian bytes of a tensor, C order; no copy where it is contiguous and on the CPU."""
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _update(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(json.dumps([name, _DTYPES[tensor.dtype], list(tensor.shape)]).encode())
    digest.update(tensor_bytes(tensor))


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Stream the safetensors format.

    The library's own writer renames a file of its own making (readable by its owner alone) or holds all bytes in
    memory a second time; neither goes with :func:`atomic_write`.
    """
    # Widest types first keeps every tensor aligned to its own element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(metadata)}}
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
    if path.is_dir():
        msg = f"{path} is a folder, not a checkpoint. Name the file in it, for example checkpoint_final{SUFFIX}."
        raise WeightsNotFoundError(msg)
    if not path.is_file():
        raise WeightsNotFoundError(f"There is no checkpoint {path}. Check the spelling of the path.")
    return path


def _parse(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    if KEY not in header:
        what = f"it is a safetensors file without our metadata (header key {KEY!r})"
        raise _corrupt(path, f"{what}; of another tool, `nnunet-invariance weights import` makes it ours")
    try:
        metadata = json.loads(header[KEY])
    except json.JSONDecodeError as error:
        raise _corrupt(path, f"its metadata are not JSON ({error})") from error
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if version != FORMAT:
        msg = f"{path} has checkpoint format {version!r}, but this version of nnunet-invariance reads format {FORMAT}. "
        raise CheckpointCorruptError(msg + "Use the version that wrote it, or pre-train again.")
    lacking = [key for key in (*REQUIRED, "created", "sha256") if key not in metadata]
    if lacking:
        raise _corrupt(path, f"its metadata lack {', '.join(lacking)}")
    return metadata


def _unreadable(path: Path, error: Exception) -> CheckpointCorruptError:
    """Name the usual mistakes by their first bytes."""
    with open(path, "rb") as file:
        start = file.read(4)
    what = mistaken_file_type(path) or f"it is truncated or not a safetensors file ({error})"
    if start.startswith((b"PK\x03\x04", b"\x80")):
        what = (
            "it is a PyTorch file (.pth), not a checkpoint of nnunet-invariance "
            "(`nnunet-invariance weights import` makes it one)"
        )
    return _corrupt(path, what)


def _corrupt(path: Path, what: str) -> CheckpointCorruptError:
    previous = previous_of(path)
    if previous.is_file():
        remedy = f"The version before it is kept: {previous}."
    else:
        remedy = "Copy it again from where it came, or pre-train again."
    return CheckpointCorruptError(f"{path} cannot be used: {what}. {remedy}")
