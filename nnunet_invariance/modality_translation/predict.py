"""Predict the missing modalities of all cases in a folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_invariance.common.image_files import read_image, write_like
from nnunet_invariance.errors import ImagesFolderError, OptionError, OutputError
from nnunet_invariance.modality_translation.translator import ModalityTranslator
from nnunet_invariance.nnunet.grids import check_case
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
    used = {
        case: _source_images(case, files, allowed, ", ".join(sources or names))
        for case, files in find_cases(images, ending, names).items()
    }
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty. Give a new folder.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for case, files in tqdm(used.items(), desc="cases", unit="case", disable=None):
            predicted, grid = translator.predict(files), read_image(next(iter(files.values())))
            written = wanted or [channel for channel in range(len(names)) if channel not in files]
            for channel in written:
                write_like(out / f"{case}_{channel:04d}{ending}", predicted[channel].astype(np.float32), grid)
            for channel in set(files) - set(written) if keep else ():
                shutil.copyfile(files[channel], out / f"{case}_{channel:04d}{ending}")
    except OSError as error:
        msg = f"{out} could not be written ({error.strerror}). Free space, or give a writable folder."
        raise OutputError(msg) from error
    return len(used)


def _source_images(case: str, files: Mapping[int, Path], allowed: Sequence[int], names: str) -> dict[int, Path]:
    """Images of the source modalities that a case has; a constant image marks a missing one.

    Raises:
        VolumeError, ImagesFolderError: an image is damaged, grids differ, or the case has no source modality.
    """
    given = {channel: path for channel, path in files.items() if channel in allowed}
    if given:
        check_case(list(given.values()))
    found = {channel: path for channel, path in given.items() if not is_empty(path)}
    if not found:
        folder = next(iter(files.values())).parent
        msg = f"Case {case} in {folder} has no image of {names}; one that is constant stands for a missing one. "
        raise ImagesFolderError(f"{msg}Name others, or leave the case out.")
    return found


def is_empty(path: Path) -> bool:
    """Whether an image is constant, which marks a missing modality."""
    return not np.ptp(sitk.GetArrayFromImage(read_image(path)))
