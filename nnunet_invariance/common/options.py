"""Options as frozen dataclasses; each field declares its valid range, which the constructor checks.

>>> @dataclass(frozen=True)
... class MyOptions(Options):
...     steps: int = count(100, 1, doc="Length of the run in steps.")
...     rate: float = number(1e-3, 0, 1, low_excluded=True, doc="Peak learning rate.")
...     mode: str = choice("fast", "exact", doc="Which algorithm runs.")
>>> MyOptions(steps=5).rate
0.001
>>> MyOptions(rate=2)
Traceback (most recent call last):
nnunet_invariance.errors.OptionError: Option 'rate' is 2; expected a number in (0, 1]. Correct it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from nnunet_invariance.errors import OptionError

__all__ = ["OptionDescription", "Options", "choice", "count", "flag", "is_int", "number", "option", "text"]


def option(default: Any, expected: str, accepts: Callable[[Any], bool], doc: str = "") -> Any:
    """Dataclass field with a default, the valid range (as text and as a predicate) and a one-sentence description."""
    return field(default=default, metadata={"expected": expected, "accepts": accepts, "doc": doc})


def count(default: int | None, least: int, optional: bool = False, doc: str = "") -> Any:
    """Field for an integer of at least ``least``, or None if ``optional``."""
    expected = f"a whole number of at least {least}" + (", or null" if optional else "")
    return option(default, expected, lambda v: (optional and v is None) or (is_int(v) and v >= least), doc)


def number(
    default: float | None,
    low: float,
    high: float,
    low_excluded: bool = False,
    high_excluded: bool = False,
    optional: bool = False,
    doc: str = "",
) -> Any:
    """Field for a finite int or float between ``low`` and ``high`` (no bool), or None if ``optional``."""
    closing = ")" if high_excluded or high == math.inf else "]"
    expected = f"a number in {'(' if low_excluded else '['}{low:g}, {high:g}{closing}"
    expected += ", or null" if optional else ""

    def accepts(value: Any) -> bool:
        if value is None:
            return optional
        if not (is_int(value) or isinstance(value, float)) or not math.isfinite(value):
            return False
        above = low < value if low_excluded else low <= value
        return above and (value < high if high_excluded else value <= high)

    return option(default, expected, accepts, doc)


def choice(*values: str, doc: str = "") -> Any:
    """Field for one of several strings; the first one is the default."""
    expected = "one of " + ", ".join(map(repr, values))
    return option(values[0], expected, lambda v: isinstance(v, str) and v in values, doc)


def flag(default: bool, doc: str = "") -> Any:
    """Field for a boolean."""
    return option(default, "true or false", lambda v: isinstance(v, bool), doc)


def text(default: str | None, expected: str = "a text", optional: bool = False, doc: str = "") -> Any:
    """Field for a string, or None if ``optional``."""
    expected += ", or null" if optional else ""
    return option(default, expected, lambda v: (optional and v is None) or isinstance(v, str), doc)


def is_int(value: Any) -> bool:
    """Whether a value is an integer and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool)


class OptionDescription(NamedTuple):
    """Description of one option, for help texts and documentation.

    >>> OptionDescription("steps", 100, "a whole number of at least 1", "Length of the run in steps.").name
    'steps'
    """

    name: str
    default: Any
    expected: str
    doc: str


@dataclass(frozen=True)
class Options:
    """Base class of all options; the constructor checks each field against its declared range.

    >>> @dataclass(frozen=True)
    ... class MyOptions(Options):
    ...     steps: int = count(100, 1, doc="Length of the run in steps.")
    >>> MyOptions(steps=5).to_dict()
    {'steps': 5}

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    #: Subject of the error message; formatted with ``name`` and ``value``.
    subject: ClassVar[str] = "Option {name!r} is {value!r}"
    #: Last sentence of the error message.
    remedy: ClassVar[str] = "Correct it."

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if "accepts" in item.metadata and not item.metadata["accepts"](value):
                raise self.error(item.name, item.metadata["expected"])

    def error(self, name: str, expected: str) -> OptionError:
        """Create the error for an invalid option; subclasses use it for constraints between options."""
        subject = self.subject.format(name=name, value=getattr(self, name))
        return OptionError(f"{subject}; expected {expected}. {self.remedy}")

    def to_dict(self) -> dict[str, Any]:
        """Options as a dictionary of built-in types, for a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def describe(cls) -> Iterator[OptionDescription]:
        """Yield name, default, range and description of every option."""
        for item in dataclasses.fields(cls):
            yield OptionDescription(
                item.name, item.default, item.metadata.get("expected", ""), item.metadata.get("doc", "")
            )
