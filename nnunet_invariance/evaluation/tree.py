"""The comparison's own nnU-Net tree: preprocessed cases, splits and test images, apart from the user's."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nnunet_invariance.errors import OutputError
from nnunet_invariance.evaluation.cases import PREPROCESSED_ENDINGS, LabelledCase
from nnunet_invariance.evaluation.splits import Subset
from nnunet_invariance.pretraining.planned_dataset import PlannedDataset
from nnunet_invariance.weights.atomic import atomic_write


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system allows none; an existing target stays.

    Raises:
        OutputError: neither is possible.
    """
    if target.exists():
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            partial = target.with_name(f"{target.name}.partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
    except OSError as error:
        msg = f"{target} could not be written ({error.strerror}). Check the space and permissions of the output folder."
        raise OutputError(msg) from error


def build_preprocessed(out: Path, dataset: PlannedDataset, subsets: Sequence[Subset]) -> None:
    """Fill ``out/nnUNet_preprocessed`` with the plans and the cases of the subsets; fold ``i`` is ``subsets[i]``."""
    base = out / "nnUNet_preprocessed" / dataset.name
    base.mkdir(parents=True, exist_ok=True)
    ending = dataset.dataset_json["file_ending"]
    for name in (f"{dataset.plans.plans_name}.json", "dataset.json", "dataset_fingerprint.json"):
        # Copies, not links: an edit of the user's file must not reach a comparison that has begun.
        atomic_write(base / name, lambda file, name=name: file.write((dataset.base / name).read_bytes()))
    for case in sorted({c for s in subsets for c in (*s.train, *s.val)}):
        for suffix in PREPROCESSED_ENDINGS:
            if (source := dataset.folder / f"{case}{suffix}").is_file():
                link(source, base / dataset.folder.name / source.name)
        truth = Path("gt_segmentations", f"{case}{ending}")
        link(dataset.base / truth, base / truth)
    splits = [{"train": s["train"], "val": s["val"]} for s in map(asdict, subsets)]
    atomic_write(base / "splits_final.json", lambda file: file.write(json.dumps(splits, indent=1).encode()))


def build_test_images(out: Path, cases: Sequence[LabelledCase]) -> None:
    """Fill ``out/test_images`` with the images of the test cases and nothing else."""
    for case in cases:
        for image in case.images:
            link(image, out / "test_images" / image.name)


def build_results(folder: Path, pretraining: Path) -> None:
    """Make an arm's results folder and let its trainers find the user's finished pre-trainings."""
    folder.mkdir(parents=True, exist_ok=True)
    shortcut = folder / "pretraining"
    if pretraining.is_dir() and not shortcut.is_symlink():
        shortcut.symlink_to(pretraining.resolve(), target_is_directory=True)
