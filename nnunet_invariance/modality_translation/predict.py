"""Predict the missing modalities of all cases in a folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_invariance.common.image_files import check_image, read_image, write_like
from nnunet_invariance.errors import ImagesFolderError, OptionError, OutputError
from nnunet_invariance.modality_translation.translator import ModalityTranslator
from nnunet_invariance.nnunet.grids import check_same_grid
from nnunet_invariance.nnunet.missing_channels import find_cases


def channels_of(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Indices of modalities by name.

    Raises:
        OptionError: one is not a channel of the data set.
    """
    if strange := [name for name in names if name not in known]:
        raise OptionError(f"{', '.join(strange)}: no such channel; the data set has {', '.join(known)}. Correct it.")
    return [known.index(name) for name in names]


def translate_folder(
    translator: ModalityTranslator,
    images: Path,
    out: Path,
    sources: Sequence[str] = (),
    targets: Sequence[str] = (),
    keep: bool = False,
) -> int:
    """Write the other modalities of each case, float32 on the grid of its images; returns the number of cases.

    Args:
        images: files ``CASE_0000`` and so on, as for ``nnUNetv2_predict``, some of them absent or constant.
        out: a folder that is empty or not there.
        sources: modalities to use, by name; none: all that a case has.
        targets: modalities to write; none: all that are not used.
        keep: also copy the images that were used.

    Raises:
        ImagesFolderError: no images, different grids, or a case with none of the sources.
        VolumeError: an image is damaged.
        OptionError: a name that the data set does not have.
        OutputError: ``out`` holds something or cannot be written.
    """
    names, ending = translator.planned.channel_names, translator.planned.dataset_json["file_ending"]
    allowed, wanted = channels_of(sources or names, names), channels_of(targets, names)
    used: dict[str, dict[int, Path]] = {}
    for case, files in find_cases(images, ending, names).items():
        if given := {c: path for c, path in files.items() if c in allowed}:
            for path in given.values():
                check_image(path)
            check_same_grid(list(given.values()))
        used[case] = {c: path for c, path in given.items() if not is_empty(path)}
        if not used[case]:
            whose = ", ".join(sources or names)
            msg = f"Case {case} in {images} has no image of {whose}; one that is constant stands for a missing one. "
            raise ImagesFolderError(f"{msg}Name others, or leave the case out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty and is not written into. Give a new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for case, files in tqdm(used.items(), desc="cases", unit="case", disable=None):
            predicted = translator.predict(files)
            grid = read_image(next(iter(files.values())))
            for channel in wanted or [c for c in range(len(names)) if c not in files]:
                write_like(out / f"{case}_{channel:04d}{ending}", predicted[channel].astype(np.float32), grid)
            for channel, path in files.items() if keep else ():
                if channel not in wanted:
                    shutil.copyfile(path, out / f"{case}_{channel:04d}{ending}")
    except OSError as error:
        msg = f"{out} could not be written ({error.strerror}). Free space, or give a place that is writable."
        raise OutputError(msg) from error
    return len(used)


def is_empty(path: Path) -> bool:
    """Whether an image is constant, which marks a missing modality."""
    return not np.ptp(sitk.GetArrayFromImage(read_image(path)))
