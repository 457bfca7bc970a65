"""Label maps of one data set in the numbering of another: classes are matched by name, or by a names file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.errors import ComparisonError

#: Entry of a names file for a source class: name(s) or value(s) in the target's label map.
Named = str | int | Sequence[str | int]


@dataclass(frozen=True)
class MatchedLabels:
    """Correspondence of a target's label map and the one that is trained on.

    Attributes:
        values: every value that the target's files may contain -> value of the source; 0 for unmatched classes.
        classes: source classes that the target has, in the source's order.
        only_source, only_target: names of classes that the other map does not have.

    >>> match_labels({"background": 0, "liver": 1}, {"background": 0, "liver": 6}, {}).changes
    True
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
        source: of the data set that is trained on.
        target: of the data set that is tested.
        names: source classes that the target names differently: a name in ``target``, a value in its files, or several
            of either, which are merged.

    Raises:
        ComparisonError: a name is unknown, a value belongs to two classes, no class is in both, regions differ, or the
            target has an ignore label that the source does not have.

    >>> match_labels({"background": 0, "liver": 1}, {"background": 0, "spleen": 1, "liver": 2}, {}).values
    {0: 0, 1: 0, 2: 1}
    """
    if any(isinstance(value, list) for labels in (source, target) for value in labels.values()):
        return _same_regions(source, target)
    if unknown := [name for name in names if name not in source]:
        raise ComparisonError(
            f"The names file has entries for {', '.join(unknown)}; the data set that is trained on has "
            f"{', '.join(source)}. Correct the names on the left."
        )
    if "ignore" in target and "ignore" not in source:
        msg = "The target has an ignore label, the data set that is trained on has none, so it cannot be kept. "
        raise ComparisonError(f"{msg}Add one to the latter's dataset.json, or remove it from the target's label maps.")
    owners = _owners(source, target, names)
    matched = [name for name in source if name in owners.values() and name not in ("background", "ignore")]
    if not matched:
        raise ComparisonError(
            f"No class is in both label maps: {', '.join(source)} and {', '.join(target)}. Match classes in a names "
            "file (--names)."
        )
    return MatchedLabels(
        values=dict.fromkeys(target.values(), 0) | {value: source[name] for value, name in owners.items()},
        classes=tuple(matched),
        only_source=tuple(name for name in source if name not in (*matched, "background", "ignore")),
        only_target=tuple(name for name, value in target.items() if value not in owners),
    )


def _owners(source: Mapping[str, int], target: Mapping[str, int], names: Mapping[str, Named]) -> dict[int, str]:
    """The source class of every value in the target's files that has one."""
    owners: dict[int, str] = {}
    for name in source:
        for value in _target_values(name, target, names):
            if owners.setdefault(value, name) != name:
                msg = f"Value {value} of the target belongs to {owners[value]} and {name}. Correct the names file."
                raise ComparisonError(msg)
    return owners


def _target_values(name: str, target: Mapping[str, int], names: Mapping[str, Named]) -> list[int]:
    """Values in the target's files that belong to a source class."""
    if name not in names:
        return [target[name]] if name in target else []
    said = names[name]
    words = [said] if isinstance(said, str | int) else list(said)
    if unknown := [word for word in words if isinstance(word, str) and word not in target]:
        msg = f"The names file has {', '.join(unknown)} for {name}; the target has {', '.join(target)}. "
        raise ComparisonError(f"{msg}Give one of these names, or values.")
    return [target[word] if isinstance(word, str) else word for word in words]


def _same_regions(source: Mapping[str, Any], target: Mapping[str, Any]) -> MatchedLabels:
    """Match labels that are regions: they share values, so that only equal label maps match."""
    if dict(source) != dict(target):
        raise ComparisonError(
            f"Labels that are regions must be the same in both data sets: {dict(source)} and {dict(target)}. Convert "
            "the target's label maps and dataset.json to those of the data set that is trained on."
        )
    values = {v for value in source.values() for v in (value if isinstance(value, list) else [value])}
    classes = [name for name in source if name not in ("background", "ignore")]
    return MatchedLabels({value: value for value in values}, tuple(classes), (), ())


def read_names(path: Path) -> dict[str, dict[str, Named]]:
    """Read a names file: JSON of the form ``{TARGET: {SOURCE CLASS: name, value or list of them}}``.

    Raises:
        DamagedFileError: the file is missing or is not JSON.
        ComparisonError: the file has another form.
    """
    form = '{"Dataset902_MR": {"liver": 5, "aorta": "Aorta", "kidney": ["left kidney", "right kidney"]}}'
    content = read_json(path, remedy=f"Expected JSON such as {form}.")
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ComparisonError(f"{path} is no names file. Expected {form}.")
    for target, entry in content.items():
        for name, said in entry.items():
            words = said if isinstance(said, list) else [said]
            if not words or any(isinstance(word, bool) or not isinstance(word, str | int) for word in words):
                raise ComparisonError(
                    f"{path}, {target}, {name}: {said!r} is neither a name nor a value. Expected {form}."
                )
    return content


def renumber(segmentation: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """Replace every value of a label map; each must be a key of ``values``.

    >>> renumber(np.array([[0, 2], [1, 2]]), {0: 0, 1: 0, 2: 1})
    array([[0, 1],
           [0, 1]], dtype=int16)
    """
    found, index = np.unique(segmentation, return_inverse=True)
    new = np.array([values[int(value)] for value in found], dtype=np.int16)
    return new[index].reshape(segmentation.shape)
