"""Checks that JSON content has the expected form; the first difference is described with its place.

A form is a type (``int`` and ``float`` exclude booleans, ``float`` includes ``int``), a tuple of types, a list with the
form of all entries, a dictionary with the form of every required key, or one of the three classes below.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["AtLeast", "Maybe", "Objects", "difference"]

_NAMES = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


@dataclass(frozen=True)
class Maybe:
    """A key that may be missing or null, and the form of its value otherwise.

    >>> difference({"plans": None}, {"plans": Maybe(str)}) is None
    True
    """

    form: Any


@dataclass(frozen=True)
class Objects:
    """An object with any keys, and the form of all values.

    >>> difference({"a": 1, "b": "x"}, Objects(int))
    "b is 'x', expected a whole number"
    """

    form: Any


@dataclass(frozen=True)
class AtLeast:
    """A whole number of at least ``least``.

    >>> difference({"seed": -1}, {"seed": AtLeast(0)})
    'seed is -1, expected a whole number of at least 0'
    """

    least: int


def difference(value: Any, form: Any, place: str = "") -> str | None:
    """The first place where a value differs from a form, in words; None if there is none.

    >>> difference({"subsets": [{"shots": 3}, {"shots": None}]}, {"subsets": [{"shots": int}]})
    'subsets[1].shots is None, expected a whole number'
    """
    if isinstance(form, Maybe):
        return None if value is None else difference(value, form.form, place)
    if isinstance(form, AtLeast):
        fits = _is_a(value, int) and value >= form.least
        return None if fits else f"{place or 'it'} is {_short(value)}, expected a whole number of at least {form.least}"
    if isinstance(form, Objects):
        return _first(value, dict, place, lambda: ((key, item, form.form) for key, item in value.items()))
    if isinstance(form, Mapping):
        return _first(value, dict, place, lambda: ((key, value.get(key, _MISSING), part) for key, part in form.items()))
    if isinstance(form, list):
        return _first(value, list, place, lambda: ((number, item, form[0]) for number, item in enumerate(value)))
    kinds = form if isinstance(form, tuple) else (form,)
    if any(_is_a(value, kind) for kind in kinds):
        return None
    return f"{place or 'it'} is {_short(value)}, expected {' or '.join(_NAMES[kind] for kind in kinds)}"


class _Missing:
    def __repr__(self) -> str:
        return "missing"


_MISSING = _Missing()


def _first(value: Any, kind: type, place: str, parts: Any) -> str | None:
    if not isinstance(value, kind):
        return difference(value, kind, place)
    for key, item, form in parts():
        if item is _MISSING and isinstance(form, Maybe):
            continue
        inner = f"{place}[{key}]" if kind is list else f"{place}.{key}" if place else str(key)
        if found := difference(item, form, inner):
            return found
    return None


def _is_a(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
