"""What a trainer writes beside tensors: native types only, so that it opens without code being run."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch


def to_builtin(value: Any) -> Any:
    """Tensors as they are; NumPy numbers, arrays, devices and paths as Python's own types, inside containers too.

    Raises:
        TypeError: a value of any other type.
    """
    if isinstance(value, np.generic | np.ndarray):  # first, because np.float64 is a float
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return value
    if isinstance(value, Mapping):
        return {to_builtin(key): to_builtin(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_builtin(item) for item in value)
    if isinstance(value, torch.device | PurePath):
        return str(value)
    raise TypeError(f"A checkpoint holds native types only, found a {type(value).__name__}: {value!r}.")
