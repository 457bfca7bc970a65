"""Predict the missing modalities of all cases in a folder."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_invariance.common.image_files import read_image, write_like
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import ImagesFolderError, OptionError, OutputError
from nnunet_invariance.modality_translation.translator import ModalityTranslator
from nnunet_invariance.nnunet.grids import check_case
from nnunet_invariance.nnunet.missing_channels import find_cases
from nnunet_invariance.nnunet.missing_files import with_images


def channels_of(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Channel indices of modalities that are given by name.

    >>> channels_of(["T2"], ["T1", "T2"])
    [1]

    Raises:
        OptionError: the dataset has no channel of that name.
    """
    if strange := [name for name in names if name not in known]:
        raise OptionError(f"{', '.join(strange)}: no such channel; the dataset has {', '.join(known)}. Correct it.")
    return [known.index(name) for name in names]


def translate_folder(
    translator: ModalityTranslator,
    images: Path,
    out: Path,
    sources: Sequence[str] = (),
    targets: Sequence[str] = (),
    keep: bool = False,
) -> int:
    """Predict the missing modalities of each case and write them as float32 on the grid of the case.

    Args:
        translator: trained translator.
        images: folder with files ``CASE_0000`` and so on, as for ``nnUNetv2_predict``; a missing modality has no file
            or a constant image.
        out: output folder; it must be empty or not exist.
        sources: names of the source modalities; default: all that a case has.
        targets: names of the modalities to write; default: all except the sources.
        keep: also copy the source images to ``out``.

    Returns:
        Number of cases.

    Raises:
        ImagesFolderError: the folder contains no image, the channels of a case have different grids, or a case has no
            source modality.
        VolumeError: an image is damaged.
        OptionError: the dataset has no modality of that name.
        OutputError: ``out`` is not empty or cannot be written.
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
        for case, files in Progress(used.items(), desc="translating", unit="case"):
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
    """Select the images of the source modalities of a case; a constant image marks a missing modality.

    Raises:
        VolumeError: an image is damaged.
        ImagesFolderError: the grids differ, or the case has no source modality.
    """
    given = {channel: path for channel, path in files.items() if channel in allowed}
    if given:
        check_case(list(given.values()))
    found = with_images(given)
    if not found:
        folder = next(iter(files.values())).parent
        msg = f"Case {case} in {folder} has no image of {names} (a constant image counts as missing). "
        raise ImagesFolderError(f"{msg}Choose other source modalities, or remove the case.")
    return found
