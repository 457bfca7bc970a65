"""Prediction for cases that lack modalities: files that are absent, and images that are constant.

nnU-Net's preprocessing computes its crop and its statistics from all channels, so that a constant image changes the
others. :class:`MissingChannelsPreprocessor` therefore replaces it by zeros before anything else.
"""

import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_invariance.common.image_files import read_image
from nnunet_invariance.errors import ImagesFolderError
from nnunet_invariance.networks.presence import one_value, present_channels
from nnunet_invariance.nnunet.planned_dataset import channel_names_of

STOCK = DefaultPreprocessor.__name__


def missing_channels(image: np.ndarray) -> np.ndarray:
    """Detect the channels of a raw case that contain no image; (C, *spatial) to (C,) bool.

    A channel is missing if it is constant, or constant inside a box that is surrounded by zeros, or has no values but 0
    and another one, which it has wherever an image with more values is not 0 (a constant inside a brain mask). Voxels
    that are not finite, such as NaN outside of a field of view, count as 0.

    >>> image = np.stack([np.full((4, 4, 4), -1000.0), np.random.default_rng(0).random((4, 4, 4))])
    >>> missing_channels(image).tolist()
    [True, False]
    """
    x = torch.from_numpy(np.where(np.isfinite(image), image, 0))
    present = present_channels(x[None])[0]
    masked = present & one_value(x[None])[0]
    if masked.any() and not masked[present].all():
        covered = (x[present & ~masked] != 0).any(0)
        present[masked] &= ~(x[masked][:, covered] != 0).all(1)
    return ~present.numpy()


def with_images(files: Mapping[int, Path]) -> dict[int, Path]:
    """The files of a case, by channel index, that contain an image, see :func:`missing_channels`.

    Raises:
        VolumeError: SimpleITK cannot read a file.
    """
    if not files:
        return {}
    missing = missing_channels(np.stack([sitk.GetArrayFromImage(read_image(path)) for path in files.values()]))
    return {channel: path for (channel, path), lacks in zip(files.items(), missing, strict=True) if not lacks}


def channel_of(file: str, ending: str) -> int | None:
    """Number at the end of the name of an image file; None if it has none.

    >>> channel_of("case_000_0002.nii.gz", ".nii.gz")
    2
    """
    found = re.search(rf"_(\d{{4}}){re.escape(ending)}$", file)
    return int(found[1]) if found else None


def complete_case(image: np.ndarray, files: Sequence[str], channels: int, ending: str) -> np.ndarray:
    """All channels of a case as float32, with zeros for those that are missing and for voxels that are not finite.

    Args:
        image: (C', *spatial), as nnU-Net's reader reads ``files``.
        files: one per channel, named CASE_0000 and so on; or fewer files, each with several channels.
        channels: C, number of channels of the dataset.
        ending: file ending of the dataset.

    Raises:
        ImagesFolderError: the channels of the files are not clear, or none contains an image.
    """
    whole = np.zeros((channels, *image.shape[1:]), np.float32)
    found = range(channels) if len(image) == channels else [channel_of(file, ending) for file in files]
    numbers = [number for number in found if number is not None and number < channels]
    if not len(image) == len(numbers) == len(found):
        raise ImagesFolderError(
            f"The files {', '.join(files)} hold {len(image)} channels, and the dataset has {channels}. Name them "
            f"CASE_0000{ending} to CASE_{channels - 1:04d}{ending}, one channel each."
        )
    whole[numbers] = np.where(np.isfinite(image), image, 0)
    missing = missing_channels(whole)
    if missing.all():
        raise ImagesFolderError(f"The case of {files[0]} has no image: every channel is constant. Leave it out.")
    whole[missing] = 0
    return whole


class MissingChannelsPreprocessor(DefaultPreprocessor):
    """nnU-Net's preprocessing for cases that lack channels: the result is that of images of zeros in their place.

    A plans file names it as ``preprocessor_name``.
    """

    def run_case(
        self,
        image_files: list[str],
        seg_file: str | None,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict | str,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """As nnU-Net, for the files that exist.

        Raises:
            ImagesFolderError: see :func:`complete_case`.
        """
        described = load_json(dataset_json) if isinstance(dataset_json, str) else dataset_json
        reader = plans_manager.image_reader_writer_class()
        image, properties = reader.read_images(image_files)
        image = complete_case(image, image_files, len(channel_names_of(described)), described["file_ending"])
        seg = reader.read_seg(seg_file)[0] if seg_file else None
        return self.run_case_npy(image, seg, properties, plans_manager, configuration_manager, described)


def accept_missing_channels(configuration: MutableMapping[str, Any]) -> bool:
    """Name :class:`MissingChannelsPreprocessor` in a configuration of plans; False if it has a preprocessor of its own.

    >>> configuration = {"preprocessor_name": "DefaultPreprocessor"}
    >>> accept_missing_channels(configuration), configuration["preprocessor_name"]
    (True, 'MissingChannelsPreprocessor')
    """
    if configuration["preprocessor_name"] not in (STOCK, MissingChannelsPreprocessor.__name__):
        return False
    configuration["preprocessor_name"] = MissingChannelsPreprocessor.__name__
    return True
