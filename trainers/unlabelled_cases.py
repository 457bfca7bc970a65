"""The unlabelled cases of a training, and a data loader of their patches."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_invariance.common.lock import lock_folder
from nnunet_invariance.errors import FolderLockedError, OptionError, TooFewVolumesError
from nnunet_invariance.nnunet.cases import scan_cases
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.nnunet.unlabelled_images import preprocess_images
from nnunet_invariance.plans.unlabelled import REST, UnlabelledOptions

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_TRIES = 5


class UnlabelledCase(NamedTuple):
    """One unlabelled case: its name and the folder with its preprocessed files.

    >>> UnlabelledCase("scan_7", "/preprocessed/images/scans_1f0c").name
    'scan_7'
    """

    name: str
    folder: str


def find_unlabelled(
    options: UnlabelledOptions, dataset: PlannedDataset, train: Collection[str], val: Collection[str]
) -> list[UnlabelledCase]:
    """The unlabelled cases of one fold; scans of folders are preprocessed first, and then come from a cache.

    Scans with the name of a training or validation case of the fold are left out and named in the log.

    Args:
        train, val: names of the labelled cases of the fold.

    Raises:
        OptionError: a named case does not exist, or is one of the fold.
        ImagesFolderError, WorkerError: see :func:`preprocess_images`.
        TooFewVolumesError: there is no unlabelled case.
    """
    own = {*train, *val}
    cases = [UnlabelledCase(name, str(dataset.folder)) for name in _named_cases(options, dataset.folder, own)]
    for folder in _preprocessed_folders([Path(path) for path in options.images], dataset):
        found, skipped = scan_cases(folder, len(dataset.channel_names), (1, 1, 1), missing=True)
        for scan in skipped:
            logger.warning("skipped scan %s of %s: %s", scan.name, folder, scan.reason)
        if shared := sorted({scan.name for scan in found} & own):
            logger.warning("left out scans that are cases of this fold: %s", ", ".join(shared))
        cases += [UnlabelledCase(scan.name, str(folder)) for scan in found if scan.name not in own]
    if not cases:
        raise TooFewVolumesError(
            f'The option "unlabelled" finds no case: {dataset.folder} contains none outside of the fold\'s {len(own)} '
            f"training and validation cases, and 'images' is {list(options.images)}. Name folders with scans in "
            "'images', preprocess more cases, or choose a fold with fewer cases."
        )
    return cases


def _named_cases(options: UnlabelledOptions, folder: Path, own: Collection[str]) -> list[str]:
    known = infer_dataset_class(str(folder)).get_identifiers(str(folder))
    if options.cases == REST:
        return sorted(set(known) - set(own))
    for name in options.cases:
        if name not in known or name in own:
            why = "is a training or validation case of this fold" if name in own else f"is not in {folder}"
            raise OptionError(
                f"Option 'cases' of \"unlabelled\" names {name!r}, which {why}. Remove it in your plans copy."
            )
    return list(options.cases)


def _preprocessed_folders(folders: Sequence[Path], dataset: PlannedDataset) -> list[Path]:
    """Preprocess scans; if another training does so at the same time, wait for it."""
    if not folders:
        return []
    waiting = False
    while True:
        try:
            with lock_folder(dataset.base / "nnunet_invariance_images"):
                return [images.folder for images in preprocess_images(folders, dataset)]
        except FolderLockedError as error:
            if not waiting:
                logger.warning("waiting for another training that preprocesses scans: %s", error)
            waiting = True
            time.sleep(SECONDS_BETWEEN_TRIES)


class UnlabelledDataset:
    """Preprocessed cases of several folders for nnU-Net's data loader, without the locations of their labels."""

    def __init__(self, cases: Sequence[UnlabelledCase]) -> None:
        self.cases: Mapping[str, UnlabelledCase] = {f"{index}_{case.name}": case for index, case in enumerate(cases)}
        self.identifiers = list(self.cases)
        self.folders = {folder: infer_dataset_class(folder)(folder, []) for folder in {case.folder for case in cases}}

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load as nnU-Net does."""
        case = self.cases[str(identifier)]
        image, segmentation, *_ = self.folders[case.folder].load_case(case.name)
        return image, segmentation, None, {"class_locations": None}


class UnlabelledLoader(nnUNetDataLoader):
    """nnU-Net's loader of patches at random places, without targets.

    The transforms read the segmentation only to know the voxels outside of the image.

    Args:
        dataset: the cases.
        labelled: the loader of the labelled cases, whose sizes of batch and patch are taken.
        labels: as for nnU-Net's loader.
        transforms: nnU-Net's training transforms for one view.
    """

    def __init__(
        self, dataset: UnlabelledDataset, labelled: nnUNetDataLoader, labels: LabelManager, transforms: BasicTransform
    ) -> None:
        spatial = slice(1 if labelled.patch_size_was_2d else 0, None)
        sizes = labelled.patch_size[spatial], labelled.final_patch_size[spatial]
        super().__init__(dataset, labelled.batch_size, *sizes, labels, transforms=transforms)
        self.has_ignore = False  # otherwise patches are centred on annotated voxels

    def generate_train_batch(self) -> dict[str, Any]:
        """Image and names of a batch."""
        batch = super().generate_train_batch()
        return {name: batch[name] for name in ("data", "keys")}
