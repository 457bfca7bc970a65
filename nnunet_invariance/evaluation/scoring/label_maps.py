"""Label maps of one data set in the numbering of another: classes matched by name, or by a file of names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_invariance.errors import ComparisonError

#: What a names file says of a source class: name(s) or value(s) in the other map.
Named = str | int | Sequence[str | int]


@dataclass(frozen=True)
class MatchedLabels:
    """How the label map of a target fits the one that is trained on.

    Attributes:
        values: every value that the target may hold -> value of the source; unmatched ones become background.
        classes: source classes that the target has, in the source's order.
        only_source, only_target: names of classes that the other map does not have.
    """

    values: Mapping[int, int]
    classes: tuple[str, ...]
    only_source: tuple[str, ...]
    only_target: tuple[str, ...]

    @property
    def changes(self) -> bool:
        """Whether the target's files have to be rewritten."""
        return any(value != new for value, new in self.values.items())


def match_labels(source: Mapping[str, Any], target: Mapping[str, Any], names: Mapping[str, Named]) -> MatchedLabels:
    """Match the classes of two ``labels`` entries of dataset.json by name.

    Args:
        names: source classes that the target calls otherwise: a name of it, a value in its files, or several of either,
            which are merged.

    Raises:
        ComparisonError: a name is unknown, a value stands for two classes, no class is left, regions that differ, or an
            ignore label that the source does not have.
    """
    if any(isinstance(value, list) for labels in (source, target) for value in labels.values()):
        return _same_regions(source, target)
    if unknown := [name for name in names if name not in source]:
        raise ComparisonError(
            f"The names file speaks of {', '.join(unknown)}; the data set that is trained on has {', '.join(source)}. "
            "Correct the names on the left."
        )
    if "ignore" in target and "ignore" not in source:
        msg = "The target has an ignore label, the data set that is trained on has none, so it cannot be kept. "
        raise ComparisonError(f"{msg}Add one to the latter's dataset.json, or take it out of the target's maps.")
    values = dict.fromkeys(target.values(), 0)
    owner: dict[int, str] = {}
    for name, number in source.items():
        for value in _target_values(name, target, names):
            if value in owner and owner[value] != name:
                msg = f"Value {value} of the target stands for {owner[value]} and {name}. Correct the names file."
                raise ComparisonError(msg)
            owner[value] = name
            values[value] = number
    classes = [name for name in source if name not in ("background", "ignore") and name in owner.values()]
    if not classes:
        raise ComparisonError(
            f"No class is in both label maps: {', '.join(source)} and {', '.join(target)}. Say in a names file which "
            "belong together."
        )
    foreign = [name for name, value in target.items() if value not in owner]
    missing = [name for name in source if name not in owner.values() and name not in ("background", "ignore")]
    return MatchedLabels(values, tuple(classes), tuple(missing), tuple(foreign))


def _target_values(name: str, target: Mapping[str, int], names: Mapping[str, Named]) -> list[int]:
    """Values in the target's files that stand for a source class."""
    if name not in names:
        return [target[name]] if name in target else []
    said = names[name]
    words = [said] if isinstance(said, str | int) else list(said)
    if unknown := [word for word in words if isinstance(word, str) and word not in target]:
        msg = f"The names file says {', '.join(unknown)} for {name}; the target has {', '.join(target)}. "
        raise ComparisonError(f"{msg}Give one of these names, or values.")
    return [target[word] if isinstance(word, str) else word for word in words]


def _same_regions(source: Mapping[str, Any], target: Mapping[str, Any]) -> MatchedLabels:
    """Regions share values, so that only equal ones are matched."""
    if dict(source) != dict(target):
        raise ComparisonError(
            f"Labels that are regions must be the same in both data sets: {dict(source)} and {dict(target)}. Write the "
            "target's maps and dataset.json as those of the data set that is trained on."
        )
    values = {v for value in source.values() for v in (value if isinstance(value, list) else [value])}
    classes = [name for name in source if name not in ("background", "ignore")]
    return MatchedLabels({value: value for value in values}, tuple(classes), (), ())


def read_names(path: Path) -> dict[str, dict[str, Named]]:
    """Read a names file, JSON: ``{TARGET: {SOURCE CLASS: name, value or list of them}}``.

    Raises:
        ComparisonError: it is missing or not of this form.
    """
    form = '{"Dataset902_MR": {"liver": 5, "aorta": "Aorta", "kidney": ["left kidney", "right kidney"]}}'
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path} cannot be read ({error}). Expected JSON such as {form}.") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ComparisonError(f"{path} is no names file. Expected {form}.")
    for target, entry in content.items():
        for name, said in entry.items():
            words = said if isinstance(said, list) else [said]
            if not words or any(isinstance(word, bool) or not isinstance(word, str | int) for word in words):
                raise ComparisonError(f"{path}, {target}, {name}: {said!r} is neither name nor value. Expected {form}.")
    return content


def renumber(segmentation: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """The same map with every value replaced; all of its values must be keys of ``values``."""
    found, place = np.unique(segmentation, return_inverse=True)
    new = np.array([values[int(value)] for value in found], dtype=np.int16)
    return new[place].reshape(segmentation.shape)
