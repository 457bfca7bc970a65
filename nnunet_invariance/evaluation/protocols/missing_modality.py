"""The missing-modality protocol: the same networks, tested on every subset of the modalities."""

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_invariance.errors import ComparisonError, OutputError
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.evaluation.protocols.missing_channels import zeros_like
from nnunet_invariance.evaluation.runner.jobs import CaseSet

logger = logging.getLogger(__name__)

PROTOCOL = "missing-modality"
JOIN = "+"
#: Folder of a comparison with the images that stand for missing modalities.
EMPTY = "empty_slots"


def choose_subsets(channels: Sequence[str], words: Sequence[str] | None = None) -> list[tuple[int, ...]]:
    """Indices of the modalities of each subset: those that the words name ("T1+FLAIR"), or all 2^n - 1, largest first.

    Raises:
        ComparisonError: a subset is empty or names a modality that is not there, or there is one modality only.
    """
    if len(channels) < 2 or len(set(channels)) < len(channels):
        raise ComparisonError(
            f"The channels are {', '.join(channels)}: modalities can be missing where there are at least two, each "
            "with its own name. Take a dataset with several, or correct channel_names in dataset.json."
        )
    if words is None:
        sizes = range(len(channels), 0, -1)
        return [subset for size in sizes for subset in itertools.combinations(range(len(channels)), size)]
    return list(dict.fromkeys(_subset(word, channels) for word in words))


def _subset(word: str, channels: Sequence[str]) -> tuple[int, ...]:
    if word in channels:  # a name may hold the sign itself
        return (channels.index(word),)
    names = [name.strip() for name in word.split(JOIN) if name.strip()]
    if not names:
        raise ComparisonError(
            f"The subset {word!r} is empty: no network can segment without any image. Name at least one of "
            f"{', '.join(channels)}, several joined by {JOIN}."
        )
    if strange := [name for name in names if name not in channels]:
        raise ComparisonError(
            f"The subset {word!r} names {', '.join(strange)}, but the channels are {', '.join(channels)}. Correct it."
        )
    return tuple(sorted({channels.index(name) for name in names}))


def missing_modalities(
    channels: Sequence[str], subsets: Sequence[tuple[int, ...]], ending: str
) -> Callable[[Sequence[LabelledCase], Path], list[CaseSet]]:
    """The ``conditions`` of ``few_shot``: a test set for each subset, zeros in the slots of the other modalities.

    A case that lacks a modality itself (a constant image) is in the sets only for which it has all.
    """

    def conditions(cases: Sequence[LabelledCase], out: Path) -> list[CaseSet]:
        present = {case.name: _present(case) for case in cases}
        sets = []
        for subset in subsets:
            name = JOIN.join(channels[c] for c in subset).replace("/", "_")
            usable = [case for case in cases if set(subset) <= present[case.name]]
            if not usable:
                raise ComparisonError(
                    f"No test case has all modalities of the subset {name}. Name other subsets or test cases."
                )
            if len(usable) < len(cases):
                logger.info("%s: %d of %d test cases have all of it", name, len(usable), len(cases))
            sets.append(CaseSet(name, [_reduced(case, subset, out / EMPTY, ending) for case in usable]))
        return sets

    return conditions


def _present(case: LabelledCase) -> set[int]:
    """Channels of a case that are not constant."""
    images = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in case.images)
    return {channel for channel, image in enumerate(images) if np.ptp(image) > 0}


def _reduced(case: LabelledCase, subset: tuple[int, ...], folder: Path, ending: str) -> LabelledCase:
    """The case with images of zeros in place of the modalities that are not in the subset."""
    images = tuple(
        path if channel in subset else _empty_slot(path, folder / f"{case.name}_{channel:04d}{ending}")
        for channel, path in enumerate(case.images)
    )
    return LabelledCase(case.name, images, case.label)


def _empty_slot(like: Path, path: Path) -> Path:
    """An image of zeros in the geometry of another; an existing one stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            partial = path.with_name(f"partial_{path.name}")
            sitk.WriteImage(zeros_like(like), str(partial))
            partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written ({error.strerror}). Free space, or give another --out."
        ) from error
    return path
