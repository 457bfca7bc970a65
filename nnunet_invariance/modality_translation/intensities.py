"""Intensity scale of each modality, measured on the training images, to invert nnU-Net's normalisation."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from nnunet_invariance.common.image_files import check_image
from nnunet_invariance.common.json_files import read_json, write_json
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import DamagedFileError, UnsupportedConfigurationError, WeightsNotFoundError
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset

logger = logging.getLogger(__name__)

FILE = "intensities.json"


@dataclass(frozen=True)
class Intensities:
    """Intensity scale of one modality: raw = normalised * scale + offset.

    >>> Intensities("T1", "ZScoreNormalization", scale=12.0, offset=100.0, masked=False, background=0.0).scale
    12.0

    Attributes:
        channel: name of the modality.
        scheme: nnU-Net's normalisation scheme.
        scale, offset: scale and offset in raw intensities.
        masked: whether voxels outside nnU-Net's nonzero mask are set to ``background``.
        background: raw intensity outside nnU-Net's crop.
    """

    channel: str
    scheme: str
    scale: float
    offset: float
    masked: bool
    background: float = 0.0


def affine_of(scheme: str, values: np.ndarray, properties: dict[str, float]) -> tuple[float, float]:
    """Scale and offset that invert a normalisation scheme of nnU-Net.

    >>> affine_of("RescaleTo01Normalization", np.array([1.0, 5.0]), {})
    (4.0, 1.0)

    Args:
        scheme: name of the normalisation scheme.
        values: voxels that the normalisation is computed from.
        properties: nnU-Net's foreground intensity properties of the channel.

    Raises:
        UnsupportedConfigurationError: the scheme is not one of nnU-Net's.
    """
    if scheme == "ZScoreNormalization":
        return max(float(values.std()), 1e-8), float(values.mean())
    if scheme == "CTNormalization":
        return max(properties["std"], 1e-8), properties["mean"]
    if scheme == "RescaleTo01Normalization":
        return float(np.ptp(values)), float(values.min())
    if scheme in ("NoNormalization", "RGBTo01Normalization"):
        return (1.0 if scheme == "NoNormalization" else 255.0), 0.0
    msg = f"The normalisation {scheme} cannot be undone. Plan with one of nnU-Net's own schemes."
    raise UnsupportedConfigurationError(msg)


def measure_intensities(planned: PlannedDataset, cases: Sequence[Sequence[Path]]) -> list[Intensities]:
    """Measure the intensity scale of each modality: the median over all cases in which it is present.

    The background of a case is 0, or the minimum of the image if nnU-Net does not crop it.

    Args:
        planned: dataset and configuration.
        cases: raw image files of each case, one per channel.

    Raises:
        VolumeError: an image is damaged.
        UnsupportedConfigurationError: a modality is missing in all cases, or its normalisation cannot be inverted.
    """
    manager, plans = planned.configuration, planned.plans
    reader = plans.image_reader_writer_class()
    found: list[list[tuple[float, float, float]]] = [[] for _ in planned.channel_names]
    for case in Progress(cases, desc="intensities", unit="case"):
        for path in case:
            check_image(path)
        raw, _ = reader.read_images([str(path) for path in case])
        image, inside, _ = crop_to_nonzero(raw.astype(np.float32))
        for channel, scheme in enumerate(manager.normalization_schemes):
            values = image[channel][inside[0] >= 0] if manager.use_mask_for_norm[channel] else image[channel]
            if np.ptp(values) > 0:
                properties = plans.foreground_intensity_properties_per_channel[str(channel)]
                empty = image.shape != raw.shape or manager.use_mask_for_norm[channel]
                background = 0.0 if empty else float(image[channel].min())
                found[channel].append((*affine_of(scheme, values, properties), background))
    if lacking := [name for name, facts in zip(planned.channel_names, found, strict=True) if not facts]:
        msg = f"No case of {planned.name} has an image of {', '.join(lacking)}, so it cannot be predicted."
        raise UnsupportedConfigurationError(f"{msg} Add such cases, or remove the channel.")
    return [
        _median(name, scheme, bool(masked), np.array(facts))
        for name, scheme, masked, facts in zip(
            planned.channel_names, manager.normalization_schemes, manager.use_mask_for_norm, found, strict=True
        )
    ]


def _median(channel: str, scheme: str, masked: bool, facts: np.ndarray) -> Intensities:
    scale, offset = np.median(facts[:, :2], axis=0).tolist()
    background = np.quantile(facts[:, 2], 0.5, method="lower").item()  # a value between air (CT) and 0 would be tissue
    return Intensities(channel, scheme, scale, offset, masked, background)


def write_intensities(folder: Path, intensities: Sequence[Intensities]) -> None:
    """Write the intensity scales to the folder of a checkpoint."""
    write_json(folder / FILE, [asdict(i) for i in intensities])


def read_intensities(folder: Path) -> list[Intensities]:
    """Read the intensity scales that :func:`write_intensities` wrote.

    Raises:
        WeightsNotFoundError: the file does not exist.
        DamagedFileError: the file is damaged.
    """
    if not (folder / FILE).is_file():
        msg = f"{folder / FILE} does not exist; `nnunet-invariance translate train` writes it beside its checkpoint."
        raise WeightsNotFoundError(f"{msg} Keep both together, or train again.")
    remedy = "Train the translator again, or restore the file."
    try:
        return [Intensities(**entry) for entry in read_json(folder / FILE, remedy=remedy, form=[dict])]
    except TypeError as error:
        raise DamagedFileError(f"{folder / FILE} contains other keys than expected ({error}). {remedy}") from error
