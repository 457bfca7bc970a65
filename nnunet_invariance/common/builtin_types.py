"""Conversion to built-in types, so that checkpoints load with ``torch.load(weights_only=True)``."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch


def to_builtin(value: Any) -> Any:
    """Convert NumPy scalars and arrays, devices and paths to built-in types, recursively; tensors are unchanged.

    >>> to_builtin({"spacing": np.array([1.0, 2.0]), "case": PurePath("a")})
    {'spacing': [1.0, 2.0], 'case': 'a'}

    Raises:
        TypeError: a value of any other type.
    """
    if isinstance(value, np.generic | np.ndarray):  # before float, because np.float64 is a subclass of float
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str | torch.Tensor):
        return value
    if isinstance(value, Mapping):
        return {to_builtin(key): to_builtin(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_builtin(item) for item in value)
    if isinstance(value, torch.device | PurePath):
        return str(value)
    raise TypeError(f"A checkpoint contains built-in types only, found a {type(value).__name__}: {value!r}.")
