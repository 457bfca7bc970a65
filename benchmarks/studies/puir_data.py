"""The data of puir_real.py in nnU-Net's raw layout: one patient for training, another for the test.

A draw is the choice of the training patient. Every draw has its own raw data set, so that neither planning nor
pre-training sees the other patient. For a CPU, images have half the resolution within their slices (brats: in all
directions). An existing file is not changed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmarks.studies.raw_data import ENDING, describe, like, present, read_description, write_image

ABOVE = 4.0  # the background is this many standard deviations below the mean of the brain
LEAST = 0.1


@dataclass(frozen=True)
class Task:
    """Training, translation and test of a data set; subsets are names of modalities joined by +.

    Attributes:
        patch_size: voxels, before nnU-Net makes it divisible.
        subsets: on which segmentation is tested; None: all.
        sources: from which all other modalities are synthesised.
        replaced: the subsets that are also tested with synthesised images for the missing modalities.
    """

    dataset: str
    patch_size: Sequence[int]
    subsets: Sequence[str] | None
    sources: Sequence[str]
    replaced: Sequence[str]


def lay_out_pgbm(data: Path, raw: Path, draw: int) -> Task:
    """Write six channels and two visits of each patient; draw 0 trains on patient 001."""
    source = data / "Dataset900_PGBM"
    channels = list(read_description(source)["channel_names"].values())
    patients = _dealt(["PGBM-001", "PGBM-003"], draw)
    target = raw / f"Dataset{910 + draw}_PGBM{draw}"
    for patient, part in zip(patients, ("Tr", "Ts"), strict=True):
        for path in sorted((source / "labelsTr").glob(f"{patient}_*{ENDING}")):
            case = path.name.removesuffix(ENDING)
            images = [_read(source / "imagesTr" / f"{case}_{c:04d}{ENDING}") for c in range(len(channels))]
            _write_case(target, part, case, images, _read(path), (2, 2, 1))
    describe(target, channels, {"background": 0, "tumour": 1})
    structural = "T1+T1ce+T2+FLAIR"
    subsets = ["+".join(channels), structural, "T1+ADC", "T1+nRCBV_x100", *channels]
    sources = [structural, "T1", "ADC", "nRCBV_x100"]
    return Task(target.name, (12, 48, 48), subsets, sources, [structural, "T1"])


def lay_out_brats(data: Path, raw: Path, draw: int) -> Task:
    """Write FLAIR and T1c in the bounding box of the brain, 0 outside of its mask; the whole tumour is one class."""
    patients = _dealt(["brats_2013_pat0005_1", "brats_2013_pat0006_1"], draw)
    target = raw / f"Dataset{920 + draw}_BRATS{draw}"
    for patient, part in zip(patients, ("Tr", "Ts"), strict=True):
        folder = data / "brats2015_2ch" / patient
        mask = _read(folder / f"brainmask{ENDING}")
        box = _box(sitk.GetArrayViewFromImage(mask) > 0)
        images = [_brain(_read(folder / f"{name}_subtrMeanDivStd{ENDING}"), mask) for name in ("Flair", "T1c")]
        labels = _read(folder / f"OTMultiClass{ENDING}") > 0
        _write_case(target, part, patient, [image[box] for image in images], labels[box], (2, 2, 2))
    describe(target, ["FLAIR", "T1c"], {"background": 0, "tumour": 1})
    return Task(target.name, (32, 32, 32), None, ["FLAIR", "T1c"], ["FLAIR", "T1c"])


#: In the order in which they run.
SETS: dict[str, Callable[[Path, Path, int], Task]] = {"brats": lay_out_brats, "pgbm": lay_out_pgbm}
DRAWS = 2


def _dealt(patients: Sequence[str], draw: int) -> list[str]:
    """The training patient and the test patient."""
    return [patients[draw], patients[1 - draw]]


def _brain(image: sitk.Image, mask: sitk.Image) -> sitk.Image:
    """The image, shifted so that the brain is brighter than the background, which is 0."""
    inside = sitk.GetArrayViewFromImage(mask) > 0
    array = np.where(inside, np.maximum(sitk.GetArrayViewFromImage(image) + ABOVE, LEAST), 0)
    return like(array.astype(np.float32), image)


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The bounding box in SimpleITK's axis order."""
    return tuple(slice(int(index.min()), int(index.max()) + 1) for index in reversed(np.nonzero(mask)))


def _write_case(
    target: Path, part: str, case: str, images: Iterable[sitk.Image], labels: sitk.Image, factors: tuple[int, ...]
) -> None:
    """Write the means of blocks of voxels; a block is tumour if at least half of its voxels are."""
    for channel, image in enumerate(images):
        shrunk = sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), factors)
        write_image(shrunk, target / f"images{part}" / f"{case}_{channel:04d}{ENDING}")
    share = sitk.BinShrink(sitk.Cast(labels, sitk.sitkFloat32), factors)
    tumour = like((sitk.GetArrayViewFromImage(share) >= 0.5).astype(np.uint8), share)
    write_image(tumour, target / f"labels{part}" / f"{case}{ENDING}")


def _read(path: Path) -> sitk.Image:
    return sitk.ReadImage(present(path))
