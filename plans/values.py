"""Which names and lists are valid in the options block."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_invariance.common.options import is_int
from nnunet_invariance.common.wording import did_you_mean
from nnunet_invariance.errors import OptionError


def require_known(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuse unknown names of options.

    Args:
        where: place of the names, for the message.

    Raises:
        OptionError: suggests the nearest known name, or lists all of them.
    """
    known = sorted(known)
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known) or f" Known options: {', '.join(known)}."
            raise OptionError(f"Unknown option {name!r} {where}.{hint}")


def are_axes(value: Any) -> bool:
    """Whether a value is a list of different axes of a volume, each 0, 1 or 2."""
    whole = isinstance(value, list) and all(is_int(axis) and 0 <= axis <= 2 for axis in value)
    return whole and len(set(value)) == len(value)


def are_stages(value: Any) -> bool:
    """Whether a value is a list of different encoder stages with at least one."""
    whole = isinstance(value, list) and all(is_int(stage) and stage >= 0 for stage in value)
    return whole and len(value) > 0 and len(set(value)) == len(value)


def are_names(value: Any) -> bool:
    """Whether a value is a list of texts that are not blank; it may be empty."""
    return isinstance(value, list | tuple) and all(isinstance(name, str) and name.strip() for name in value)


def are_paths(value: Any) -> bool:
    """Whether a value is a list of absolute paths; it may be empty."""
    return are_names(value) and all(Path(path).is_absolute() for path in value)
