"""Ranges of the numbers in a method's settings."""

import math
from typing import Any

from nnunet_invariance.errors import OptionError


def check_range(options: Any, low: float, high: float, *names: str, ends: bool = True) -> None:
    """Each named field must be finite and lie between ``low`` and ``high``, these included if ``ends``.

    Raises:
        OptionError: names the first field that does not.
    """
    for name in names:
        value = getattr(options, name)
        if not (low <= value <= high if ends else low < value < high) or not math.isfinite(value):
            interval = f"{'[' if ends else '('}{low:g}, {high:g}{']' if ends and high < math.inf else ')'}"
            raise OptionError(f"--set {name}={value}: expected a number in {interval}. Correct it.")
