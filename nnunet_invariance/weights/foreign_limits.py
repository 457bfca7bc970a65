"""Limits for foreign files: size, zip archive, pickle, and kind of tensors."""

import os
import re
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.errors import CheckpointCorruptError, UnsafeCheckpointError
from nnunet_invariance.weights.pickle_scan import PickleRefused, scan_pickle

OLDEST_TORCH = (2, 6)
MAX_BYTES = 32 * 2**30
MAX_ENTRIES = 100_000
MAX_HEADER = 16 * 2**20
MAX_PICKLE = 16 * 2**20
#: Number of bytes that the calls in the pickle of a small file may allocate.
SMALLEST_BUDGET = 2**16
#: First pickle of PyTorch's old format, and the number of pickles in such a file.
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
OLD_PICKLES = 4
#: Start and end of the last 22 bytes of a zip archive without comment.
END_RECORD = b"PK\x05\x06" + bytes(18)


def check_torch(version: str = torch.__version__) -> None:
    """Refuse versions of torch whose ``weights_only`` can be made to run code (CVE-2025-32434).

    Raises:
        UnsafeCheckpointError: torch is older than 2.6.

    >>> check_torch("2.6.0")
    """
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if found < OLDEST_TORCH:
        msg = f"Foreign checkpoints are not opened with torch {version}: before 2.6 they can run code. "
        raise UnsafeCheckpointError(msg + "Update torch (pip install -U torch).")


def check_file(path: Path) -> None:
    """Check the size, and the zip archive or the safetensors header, before anything is loaded.

    PyTorch never compresses entries and never lets them overlap, so that the entries of its archives are together no
    larger than the file. Every entry must match its CRC.

    Raises:
        UnsafeCheckpointError: a limit is exceeded. CheckpointCorruptError: the archive is damaged.
    """
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise _refused(path, f"it has {size:,} bytes", f"at most {MAX_BYTES:,}")
    if path.suffix == ".safetensors":
        _check_header(path, size)
    elif _is_archive(path):
        try:
            _check_archive(path, size)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeDecodeError, struct.error) as error:
            raise _damaged(path, str(error)) from error


def check_pickles(path: Path) -> None:
    """Follow the pickle of a PyTorch file without running it, see :mod:`~nnunet_invariance.weights.pickle_scan`.

    Raises:
        UnsafeCheckpointError: a call outside the list, more memory than the file has bytes, or a pickle that
            ``torch.save`` did not write. CheckpointCorruptError: the pickle is truncated or damaged.
    """
    budget = max(os.path.getsize(path), SMALLEST_BUDGET)
    try:
        if _is_archive(path):
            _scan_archive(path, budget)
        else:
            _scan_old_format(path, budget)
    except PickleRefused as error:
        msg = f"{path} was not opened: {error}. "
        raise UnsafeCheckpointError(
            msg + "Ask its author for a file with tensors and plain values only (a state_dict, or safetensors)."
        ) from error
    except (ValueError, KeyError, OverflowError, zipfile.BadZipFile) as error:
        raise _damaged(path, str(error).split("\n")[0]) from error


def _scan_archive(path: Path, budget: int) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry.file_size for entry in archive.infolist()}
        pickles = [name for name in entries if PurePosixPath(name).name == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"its archive has {len(pickles)} entries named data.pkl, expected one")
        folder = pickles[0].removesuffix("data.pkl")
        scan_pickle(archive.read(pickles[0]), lambda key: entries.get(f"{folder}data/{key}"), budget, MAX_PICKLE)


def _scan_old_format(path: Path, budget: int) -> None:
    """A file without an archive: magic number, protocol, system information, content and storage keys as pickles."""
    with open(path, "rb") as file:
        start = file.read(len(MAGIC))
        if start != MAGIC:
            if start[:1] == b"\x80" and start[1:2] <= b"\x05":
                raise PickleRefused("it is a plain pickle that torch.save did not write, and reading it could run code")
            raise ValueError("its first bytes are not those of a PyTorch file")
        for _ in range(OLD_PICKLES):
            scan_pickle(file, None, budget, MAX_PICKLE)


def _is_archive(path: Path) -> bool:
    """Whether PyTorch reads this file as a zip archive: it looks at the first bytes only."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_header(path: Path, size: int) -> None:
    with open(path, "rb") as file:
        start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if length > MAX_HEADER:
        raise _refused(path, f"its header claims {length:,} bytes of a file of {size:,}", f"at most {MAX_HEADER:,}")


def _check_archive(path: Path, size: int) -> None:
    with open(path, "rb") as file:
        file.seek(max(0, size - len(END_RECORD)))
        end = file.read()
    # Two readers may disagree on an archive whose end record is not at the end of the file.
    if end[:4] != END_RECORD[:4] or end[-2:] != END_RECORD[-2:]:
        raise zipfile.BadZipFile("its zip archive does not end with its table of contents")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _check_entries(path, entries, size)
        if damaged := archive.testzip():
            msg = f"{path} cannot be read as a checkpoint: its entry {damaged!r} does not match its CRC. "
            raise CheckpointCorruptError(msg + "Copy it again from its origin, or save it again with torch.save.")


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise _refused(path, f"its archive has {len(entries):,} entries", f"at most {MAX_ENTRIES:,}")
    names = [entry.filename for entry in entries]
    if any(PurePosixPath(name).name == "constants.pkl" for name in names):
        raise _refused(path, "it is a TorchScript archive (a program)", "weights")
    for entry in entries:
        _check_entry(path, entry)
    if len(set(names)) < len(names):
        raise _refused(path, "its archive has two entries of one name", "each name once")
    if min((entry.header_offset for entry in entries), default=0) != 0:
        raise _refused(path, "its archive does not start at the first byte", "an archive as PyTorch writes it")
    total = sum(entry.file_size for entry in entries)
    if total > size:
        raise _refused(path, f"its entries unfold to {total:,} bytes out of {size:,}", "no more than the file has")


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    if "\\" in name or ":" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise _refused(path, f"its archive has an entry {name!r}", "names that stay inside the archive")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise _refused(path, f"its entry {name!r} is compressed", "entries as PyTorch stores them, uncompressed")
    if entry.flag_bits & 1:
        raise _refused(path, f"its entry {name!r} is encrypted", "entries as PyTorch stores them")
    if name.endswith(".pkl") and entry.file_size > MAX_PICKLE:
        raise _refused(path, f"its {name!r} has {entry.file_size:,} bytes", f"at most {MAX_PICKLE:,}")


def check_tensors(path: Path, content: Any) -> None:
    """Refuse tensors that are larger than their bytes in the file, and tensors that are not dense arrays of numbers.

    Raises:
        UnsafeCheckpointError: a tensor expands its bytes, or is sparse, quantized or on the meta device.
    """
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:  # a pickle may contain itself
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
        raise _refused(path, f"it contains a tensor of kind {kind}", "dense tensors")
    stored, claimed = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if claimed > stored:
        raise _refused(path, f"a tensor of {stored:,} bytes unfolds to {claimed:,}", "tensors as large as their bytes")


def _refused(path: Path, found: str, expected: str) -> UnsafeCheckpointError:
    msg = f"{path} was not opened: {found}; expected {expected}. "
    return UnsafeCheckpointError(msg + "Ask its author for a file as torch.save or safetensors write it.")


def _damaged(path: Path, reason: str) -> CheckpointCorruptError:
    msg = f"{path} cannot be read as a checkpoint ({reason}). "
    return CheckpointCorruptError(msg + "It is truncated, damaged or of another kind: copy it again from its origin.")
