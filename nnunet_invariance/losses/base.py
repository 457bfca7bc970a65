"""What every loss shares: validated parameters that its representation shows, and validated input shapes."""

import inspect
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from nnunet_invariance.common.options import choice, count, number
from nnunet_invariance.errors import OptionError, ShapeError


class Loss(nn.Module):
    """Base class of the losses: ``repr`` shows the parameters of the constructor.

    Every parameter of the constructor is stored in an attribute of the same name.

    >>> class Distance(Loss):
    ...     def __init__(self, power: float = 2.0) -> None:
    ...         super().__init__()
    ...         self.power = power
    >>> Distance()
    Distance(power=2.0)
    """

    def __init__(self) -> None:
        super().__init__()

    def extra_repr(self) -> str:
        """The parameters of the constructor with their values."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def check_temperature(value: float, name: str = "temperature") -> float:
    """A finite number larger than 0.

    Raises:
        OptionError: the value is not one.
    """
    return _checked(name, value, number(1.0, 0, math.inf, low_excluded=True))


def check_number(name: str, value: float, low: float, high: float = math.inf, high_excluded: bool = False) -> float:
    """A finite number in [``low``, ``high``], or below ``high``.

    Raises:
        OptionError: the value is outside of the range.
    """
    return _checked(name, value, number(low, low, high, high_excluded=high_excluded))


def check_count(name: str, value: int, least: int) -> int:
    """A whole number of at least ``least``.

    Raises:
        OptionError: the value is not one.
    """
    return _checked(name, value, count(least, least))


def check_choice(name: str, value: str, *choices: str) -> str:
    """One of several strings.

    Raises:
        OptionError: the value is none of them.
    """
    return _checked(name, value, choice(*choices))


def _checked(name: str, value: Any, field: Any) -> Any:
    if not field.metadata["accepts"](value):
        raise OptionError(f"Argument {name!r} is {value!r}; expected {field.metadata['expected']}.")
    return value


def check_shape(name: str, tensor: Tensor, expected: Sequence[int], meaning: str) -> None:
    """Require the shape that other arguments imply; nothing broadcasts.

    Args:
        name: the argument, for the message.
        tensor: its value.
        expected: the shape that it must have.
        meaning: the expected shape in the letters of the documentation, such as "(B, N)".

    Raises:
        ShapeError: the shape is another one.
    """
    if tuple(tensor.shape) != tuple(expected):
        raise ShapeError(f"{name!r} has shape {tuple(tensor.shape)}; expected {tuple(expected)}, which is {meaning}.")


def check_dimensions(name: str, tensor: Tensor, least: int, meaning: str, most: int | None = None) -> None:
    """Require a number of axes.

    Raises:
        ShapeError: the tensor has fewer than ``least`` or more than ``most`` axes.
    """
    if tensor.ndim < least or (most is not None and tensor.ndim > most):
        raise ShapeError(f"{name!r} has shape {tuple(tensor.shape)}; expected {meaning}.")
