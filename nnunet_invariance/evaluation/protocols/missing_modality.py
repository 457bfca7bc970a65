"""The missing-modality protocol: the same networks, tested on every subset of the modalities."""

import itertools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import SimpleITK as sitk

from nnunet_invariance.errors import ComparisonError, OutputError
from nnunet_invariance.evaluation.protocols.arms import open_comparison
from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.evaluation.protocols.few_shot import run_few_shot
from nnunet_invariance.evaluation.protocols.protocol import ProtocolOptions
from nnunet_invariance.evaluation.runner.jobs import CaseSet
from nnunet_invariance.nnunet.missing_channels import zeros_like
from nnunet_invariance.nnunet.missing_files import with_images

logger = logging.getLogger(__name__)

PROTOCOL = "missing-modality"
JOIN = "+"
#: Folder of a comparison with the images of zeros that replace missing modalities.
EMPTY = "empty_slots"


def missing_modality(
    dataset: str,
    configuration: str,
    trainers: Sequence[str] = ("PUIRTrainer",),
    baselines: Sequence[str] = ("BaselineTrainer", "ChannelDropoutTrainer"),
    *,
    subsets: Sequence[str] | None = None,
    plans: str = "nnUNetPlans",
    options: ProtocolOptions | None = None,
    test: Sequence[str] | Path | None = None,
    n_test: int = 20,
) -> Path:
    """Train as :func:`few_shot` does, and test every network on subsets of the modalities.

    The images of the other modalities are replaced by zeros. A case that lacks a modality itself is left out of the
    subsets that contain it.

    Args:
        subsets: subsets by the names of their channels, joined by ``+``; None: all 2^n - 1.
        dataset, configuration, trainers, baselines, plans, options, test, n_test: as for :func:`few_shot`.

    Returns:
        The comparison's folder; every subset is a condition of its tables.

    Raises:
        ComparisonError: as for :func:`few_shot`, or a subset is not possible.

    >>> missing_modality("Dataset001_BrainTumour", "3d_fullres", subsets=["T1+FLAIR", "T1"])  # doctest: +SKIP
    """
    planned, selection = open_comparison(dataset, configuration, plans, trainers, baselines)
    chosen = choose_subsets(planned.channel_names, subsets)
    conditions = missing_modalities(planned.channel_names, chosen, planned.dataset_json["file_ending"])
    return run_few_shot(
        planned,
        selection,
        options or ProtocolOptions(),
        test=test,
        n_test=n_test,
        protocol=PROTOCOL,
        conditions=conditions,
    )


def choose_subsets(channels: Sequence[str], words: Sequence[str] | None = None) -> list[tuple[int, ...]]:
    """Indices of the modalities of each subset: the given ones ("T1+FLAIR"), or all 2^n - 1, largest first.

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
    if word in channels:  # a name may contain the sign itself
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
    """The ``conditions`` of `run_few_shot`: one test set per subset, with zeros in place of the other modalities.

    A case that lacks a modality itself (a constant image) is only in the sets whose modalities it has.
    """

    def conditions(cases: Sequence[LabelledCase], out: Path) -> list[CaseSet]:
        present = {case.name: with_images(dict(enumerate(case.images))).keys() for case in cases}
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


def _reduced(case: LabelledCase, subset: tuple[int, ...], folder: Path, ending: str) -> LabelledCase:
    """The case with images of zeros for the modalities that are not in the subset."""
    images = tuple(
        path if channel in subset else _empty_slot(path, folder / f"{case.name}_{channel:04d}{ending}")
        for channel, path in enumerate(case.images)
    )
    return LabelledCase(case.name, images, case.label)


def _empty_slot(like: Path, path: Path) -> Path:
    """Write an image of zeros with the geometry of another one; an existing file is kept."""
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
