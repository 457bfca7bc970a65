"""The only module that opens files of other programs (.pth, .pt, .safetensors); it never runs code from a file.

:mod:`~nnunet_invariance.weights.foreign_limits` checks the size, the archive and the pickle first. Then
``torch.load(weights_only=True)`` calls PyTorch's own constructors and those of :data:`ALLOWED` only. NumPy's
constructors are replaced by ours, because a crafted state could declare the bytes of a number to be object pointers.
Memory: at most twice the file, and 100 bytes for each byte of its pickle.
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
from nnunet_invariance.weights.foreign_limits import check_file, check_pickles, check_tensors, check_torch


class _Dtype:
    """Replacement of ``numpy.dtype``: accepts numbers and booleans only, and reads only the byte order of a state."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[?]|b1|[iufc](1|2|4|8|16)", code):
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL numpy.dtype({code!r})")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    """Replacement of ``numpy._core.multiarray.scalar``."""
    return np.frombuffer(data, dtype.value, count=1)[0]


class _Array(np.ndarray):
    """Replacement of ``numpy.ndarray``."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError(f"the values of an array are a {type(data).__name__}, expected bytes")
        super().__setstate__((1, shape, dtype.value, fortran, data))


def _reconstruct(subtype: type, shape: tuple, code: bytes) -> _Array:
    """Replacement of ``numpy._core.multiarray._reconstruct``, which makes an empty array for ``__setstate__``."""
    return np.empty(0).view(_Array)


#: Names that a file may use beside PyTorch's own list: numbers as nnU-Net logs them, and command-line arguments.
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
    """Open a checkpoint that another program wrote: PyTorch's format, or safetensors if the suffix says so.

    Raises:
        WeightsNotFoundError: there is no such file.
        UnsafeCheckpointError: it names a function or class outside the list (which was not called), it exceeds a limit
            of :mod:`~nnunet_invariance.weights.foreign_limits`, or torch is older than 2.6.
        CheckpointCorruptError: it is not a PyTorch checkpoint, is truncated or damaged, or is not a dictionary.

    >>> open_foreign("no_such_file.pth")
    Traceback (most recent call last):
    nnunet_invariance.errors.WeightsNotFoundError: There is no file no_such_file.pth. Check the spelling of the path.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise WeightsNotFoundError(f"There is no file {path}. Check the spelling of the path.")
    check_torch()
    if what := mistaken_file_type(path):
        raise CheckpointCorruptError(f"{path} cannot be read as a checkpoint: {what}.")
    check_file(path)
    if path.suffix != ".safetensors":
        check_pickles(path)
    try:
        if path.suffix == ".safetensors":
            content = load_file(path, device=str(map_location))
        else:
            with _only(ALLOWED):
                content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, str(error)) from error
    except Exception as error:  # torch and safetensors raise errors of any type on damaged bytes
        first_line = str(error).split("\n")[0]
        raise _unreadable(path, f"{type(error).__name__}: {first_line}") from error
    if not isinstance(content, dict):
        msg = f"{path} contains a {type(content).__name__}, expected a dictionary of weights. "
        raise CheckpointCorruptError(msg + "Save it again as a dictionary, for example module.state_dict().")
    check_tensors(path, content)
    return content


@contextmanager
def _only(allowed: tuple) -> Iterator[None]:
    """Allow exactly these names beside PyTorch's own, whatever other packages of this process have allowed."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _refused(path: Path, reason: str) -> UnsafeCheckpointError | CheckpointCorruptError:
    """The error for a name that PyTorch refused; any other error of its unpickler means a damaged file."""
    reason = reason.partition("WeightsUnpickler error: ")[2] or reason
    found = re.search(r"GLOBAL (.+?)(?: was not| whose module|$)", reason, re.MULTILINE)
    if found is None:
        return _unreadable(path, reason.strip().split("\n")[0])
    return UnsafeCheckpointError(
        f"{path} was not opened: it needs {found.group(1)}, which could run code. "
        "Ask its author for a file with tensors and plain values only (a state_dict, or safetensors)."
    )


def _unreadable(path: Path, reason: str) -> CheckpointCorruptError:
    msg = f"{path} cannot be read as a checkpoint ({reason}). "
    return CheckpointCorruptError(msg + "It is truncated, damaged or of another kind: copy it again from its origin.")
