"""What a foreign file may not be: too large, a bomb, or an archive whose names leave it."""

import os
import re
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.errors import UnsafeCheckpointError

OLDEST_TORCH = (2, 6)
MAX_BYTES = 32 * 2**30
MAX_ENTRIES = 100_000
MAX_HEADER = 16 * 2**20
MAX_PICKLE = 64 * 2**20


def check_torch(version: str = torch.__version__) -> None:
    """Refuse versions whose ``weights_only`` can be made to run code (CVE-2025-32434).

    Raises:
        UnsafeCheckpointError
    """
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if found < OLDEST_TORCH:
        msg = f"Foreign checkpoints are not opened with torch {version}: before 2.6 they can run code. "
        raise UnsafeCheckpointError(msg + "Update torch (pip install -U torch).")


def check_file(path: Path) -> None:
    """Refuse by size and by the table of contents of a zip archive or the length of a safetensors header.

    PyTorch never compresses and never lets entries overlap, so the entries of its archives cannot be larger together
    than the file.

    Raises:
        UnsafeCheckpointError
    """
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise _refused(path, f"it has {size:,} bytes", f"at most {MAX_BYTES:,}")
    if path.suffix == ".safetensors":
        _check_header(path, size)
    elif zipfile.is_zipfile(path):
        _check_archive(path, size)


def _check_header(path: Path, size: int) -> None:
    with open(path, "rb") as file:
        start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if length > MAX_HEADER:
        raise _refused(path, f"its header claims {length:,} bytes of a file of {size:,}", f"at most {MAX_HEADER:,}")


def _check_archive(path: Path, size: int) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise _refused(path, f"its archive has {len(entries):,} entries", f"at most {MAX_ENTRIES:,}")
    names = [entry.filename for entry in entries]
    if any(PurePosixPath(name).name == "constants.pkl" for name in names):
        raise _refused(path, "it is a TorchScript archive (a program)", "weights")
    for entry in entries:
        name = entry.filename
        if "\\" in name or ":" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise _refused(path, f"its archive has an entry {name!r}", "names that stay inside the archive")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _refused(path, f"its entry {name!r} is compressed", "entries as PyTorch stores them, uncompressed")
        if name.endswith(".pkl") and entry.file_size > MAX_PICKLE:
            raise _refused(path, f"its {name!r} has {entry.file_size:,} bytes", f"at most {MAX_PICKLE:,}")
    if len(set(names)) < len(names):
        raise _refused(path, "its archive has two entries of one name", "each name once")
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise _refused(path, f"its entries unfold to {total:,} bytes out of {size:,}", "no more than the file has")


def check_tensors(path: Path, content: Any) -> None:
    """Refuse tensors that are larger than their bytes in the file, or that are not plain arrays of numbers.

    Raises:
        UnsafeCheckpointError
    """
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:  # a pickle may hold itself
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            _check_tensor(path, value)
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value


def _check_tensor(path: Path, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else tensor.layout
        raise _refused(path, f"it holds a tensor of kind {kind}", "plain dense tensors")
    stored, claimed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if claimed > stored:
        raise _refused(path, f"a tensor of {stored:,} bytes unfolds to {claimed:,}", "tensors as large as their bytes")


def _refused(path: Path, found: str, expected: str) -> UnsafeCheckpointError:
    msg = f"{path} was not opened: {found}; expected {expected}. "
    return UnsafeCheckpointError(msg + "Ask its author for a file as torch.save or safetensors write it.")
