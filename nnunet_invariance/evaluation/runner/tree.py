"""The comparison's own nnU-Net folders: preprocessed cases, splits and test images, separate from the user's."""

import functools
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.errors import ComparisonError, OutputError
from nnunet_invariance.evaluation.protocols.cases import PREPROCESSED_ENDINGS
from nnunet_invariance.evaluation.protocols.splits import Subset
from nnunet_invariance.evaluation.runner.jobs import TEST_IMAGES, TEST_LABELS, CaseSet
from nnunet_invariance.evaluation.scoring.label_maps import renumber
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset


def link(source: Path, target: Path) -> None:
    """Create a hard link, or a copy if the file system has no hard links; an existing target is kept.

    Raises:
        OutputError: neither is possible.
    """
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source.resolve(), target)  # link() does not follow a symlink, and a relative one would break
        except OSError:
            partial = target.with_name(f"{target.name}.partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
    except OSError as error:
        msg = f"{target} could not be written ({error.strerror}). Check the space and permissions of the output folder."
        raise OutputError(msg) from error


def build_preprocessed(
    out: Path,
    dataset: PlannedDataset,
    subsets: Sequence[Subset],
    plans: Iterable[str] = (),
    without_labels: Collection[str] = (),
) -> None:
    """Fill ``out/nnUNet_preprocessed`` with the plans and the cases of the subsets; fold ``i`` is ``subsets[i]``.

    Args:
        plans: names of further plans that arms train with.
        without_labels: further cases, which arms learn from without their labels.
    """
    base = out / "nnUNet_preprocessed" / dataset.name
    copy_plans(base, dataset, plans)
    link_preprocessed(base, dataset, {c for s in subsets for c in (*s.train, *s.val)} | set(without_labels))
    write_json(base / "splits_final.json", _folds(subsets))


def require_same_folds(out: Path, dataset: str, subsets: Sequence[Subset]) -> None:
    """Refuse subsets that would number the folds differently from the models in a comparison's folder.

    Raises:
        ComparisonError: names the file with the earlier folds.
    """
    file = out / "nnUNet_preprocessed" / dataset / "splits_final.json"
    before, now = read_json(file, default=[], form=[{"train": [str], "val": [str]}]), _folds(subsets)
    if before != now[: len(before)]:
        msg = (
            f"{file} has {len(before)} folds that are not those of this call, and the folder's models belong to them. "
        )
        raise ComparisonError(f"{msg}Give all earlier --shots and --draws in the same order, or another --out.")


def _folds(subsets: Sequence[Subset]) -> list[dict[str, list[str]]]:
    return [{"train": list(s.train), "val": list(s.val)} for s in subsets]


def copy_plans(base: Path, dataset: PlannedDataset, plans: Iterable[str] = ()) -> None:
    """Copy the plans, further plans by name, dataset.json and the fingerprint."""
    files = [f"{name}.json" for name in (dataset.plans.plans_name, *plans, "dataset", "dataset_fingerprint")]
    for name in files:  # copies, not links: later edits of the user's files must not change the comparison
        content = (dataset.base / name).read_bytes()
        atomic_write(base / name, functools.partial(_write, content))


def _write(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def link_preprocessed(base: Path, dataset: PlannedDataset, cases: Iterable[str]) -> None:
    """Link the preprocessed files of these cases, and their segmentations."""
    ending = dataset.dataset_json["file_ending"]
    for case in sorted(cases):
        for suffix in PREPROCESSED_ENDINGS:
            if (source := dataset.folder / f"{case}{suffix}").is_file():
                link(source, base / dataset.folder.name / source.name)
        truth = Path("gt_segmentations", f"{case}{ending}")
        if (dataset.base / truth).is_file():
            link(dataset.base / truth, base / truth)


def build_tests(out: Path, tests: Sequence[CaseSet], ending: str, reader: BaseReaderWriter) -> None:
    """Fill ``out/test_images`` and ``out/test_labels`` with the test cases and nothing else.

    Labels are in the training's numbering; ``reader`` writes those that are not.
    """
    for test in tests:
        for case in test.cases:
            for channel, image in enumerate(case.images):  # dataset.json may give files other names
                link(image, test.within(out / TEST_IMAGES) / f"{case.name}_{channel:04d}{ending}")
            label = test.within(out / TEST_LABELS) / f"{case.name}{ending}"
            if test.values is None:
                link(case.label, label)
            elif not label.is_file():
                segmentation, properties = reader.read_seg(str(case.label))
                partial = label.with_name(f"partial_{label.name}")  # the ending decides the format
                label.parent.mkdir(parents=True, exist_ok=True)
                reader.write_seg(renumber(segmentation[0], test.values), str(partial), properties)
                partial.replace(label)


def build_results(folder: Path, pretrainings: Iterable[Path]) -> None:
    """Create an arm's results folder, with links to the pre-trainings that its trainer loads."""
    shortcuts = folder / "pretraining"
    if shortcuts.is_symlink():
        shortcuts.unlink()
    shortcuts.mkdir(parents=True, exist_ok=True)
    for pretraining in pretrainings:
        if not (shortcut := shortcuts / pretraining.name).is_symlink():
            shortcut.symlink_to(pretraining.resolve(), target_is_directory=True)
