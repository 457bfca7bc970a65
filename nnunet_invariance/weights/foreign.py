"""The one place that opens files of other programs (.pth, .pt, .safetensors), and it never runs code from one.

``torch.load(weights_only=True)`` calls nothing but PyTorch's own constructors and those of :data:`ALLOWED`. NumPy's
constructors are replaced by ours: a crafted state could declare the bytes of a number to be object pointers.
"""

import argparse
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from nnunet_invariance.common.file_types import mistaken_file_type
from nnunet_invariance.errors import CheckpointCorruptError, UnsafeCheckpointError, WeightsNotFoundError
from nnunet_invariance.weights.foreign_limits import check_file, check_tensors, check_torch


class _Dtype:
    """Stands for ``numpy.dtype``: numbers and truth values only, and of a state only the byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[?]|b1|[iufc](1|2|4|8|16)", code):
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL numpy.dtype({code!r})")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    """Stands for ``numpy._core.multiarray.scalar``."""
    return np.frombuffer(data, dtype.value, count=1)[0]


class _Array(np.ndarray):
    """Stands for ``numpy.ndarray``."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        super().__setstate__((1, shape, dtype.value, fortran, bytes(data)))


def _reconstruct(subtype: type, shape: tuple, code: bytes) -> _Array:
    """Stands for ``numpy._core.multiarray._reconstruct``, which makes an empty array for ``__setstate__``."""
    return np.empty(0).view(_Array)


#: What a file may name beside PyTorch's own list: numbers as stock nnU-Net logs them, and command-line arguments.
ALLOWED = (
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_Array, "numpy.ndarray"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    (argparse.Namespace, "argparse.Namespace"),
)


def open_foreign(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Open a checkpoint that another program wrote: PyTorch's format, or safetensors by its suffix.

    Raises:
        WeightsNotFoundError: there is no such file.
        UnsafeCheckpointError: it names a function or class outside the list (nothing of it was called), it breaks a
            limit of :mod:`~nnunet_invariance.weights.foreign_limits`, or torch is older than 2.6.
        CheckpointCorruptError: it is not a PyTorch checkpoint, is truncated, or does not hold a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"There is no file {path}. Check the spelling of the path.")
    check_torch()
    if what := mistaken_file_type(path):
        raise CheckpointCorruptError(f"{path} cannot be read as a checkpoint: {what}.")
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            content = load_file(path, device=str(map_location))
        else:
            with _only(ALLOWED):
                content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # unreadable bytes raise what they like, down in torch and zip code
        first_line = str(error).split("\n")[0]
        raise _unreadable(path, f"{type(error).__name__}: {first_line}") from error
    if not isinstance(content, dict):
        msg = f"{path} holds a {type(content).__name__}, expected a dictionary of weights. "
        raise CheckpointCorruptError(msg + "Save it again as a dictionary, for example module.state_dict().")
    check_tensors(path, content)
    return content


@contextmanager
def _only(allowed: tuple) -> Iterator[None]:
    """Allow exactly these beside PyTorch's own, whatever other packages of this process have allowed."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _refused(path: Path, reason: str) -> UnsafeCheckpointError | CheckpointCorruptError:
    """Name the global that was refused; a pickle that breaks otherwise is not one that torch.save writes."""
    reason = reason.partition("WeightsUnpickler error: ")[2] or reason
    found = re.search(r"GLOBAL (.+?)(?: was not| whose module|$)", reason, re.MULTILINE)
    if found is None:
        return _unreadable(path, reason.split("\n")[0].strip())
    return UnsafeCheckpointError(
        f"{path} was not opened: it needs {found.group(1)}, which could run code. "
        "Ask its author for a file with tensors and plain values only (a state_dict, or safetensors)."
    )


def _unreadable(path: Path, reason: str) -> CheckpointCorruptError:
    msg = f"{path} cannot be read as a checkpoint ({reason}). "
    return CheckpointCorruptError(msg + "It is truncated or of another kind: copy it again from where it came.")
